"""The named endpoints as programs call them: gradio_client, plain HTTP and MCP."""

from __future__ import annotations

import ast
import asyncio
import base64
import functools
import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fake_engine import THINGS, FakeEngine
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from pages import EXAMPLES, PICTURE, serve
from PIL import Image

import vlm
from vlm.probes import METHODS, TRIALS
from vlm.ui import view
from vlm.ui.replies import MAX_NUMBERS, numbers, whole_mask

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TINY = ROOT / "assets" / "tiny"
PENGUINS = EXAMPLES / "penguins.webp"
WIDTH, HEIGHT = 640, 480  # of PICTURE
SECONDS = 60  # a shared machine may be slow


class Asked(FakeEngine):
    """Keeps the prompts, and how many answers were in the making at once."""

    def __init__(self, **shape) -> None:
        super().__init__(**shape)
        self.prompts: list[str] = []
        self.most = 0

    def stream(self, image, prompt, **how):
        self.prompts.append(prompt)
        for step in super().stream(image, prompt, **how):
            self.most = max(self.most, self.live)
            yield step


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve([Asked(), Asked(name="other", layers=2)]) as served:
        yield served


@pytest.fixture(scope="module")
def client(site) -> Client:
    return Client(site.url, verbose=False)


@pytest.fixture(scope="module")
def tiny() -> Iterator[SimpleNamespace]:
    """The embedded model, as endpoints and as MCP tools."""
    with serve(vlm.load(TINY, device="cpu"), mcp_server=True) as served:
        yield served


def test_what_is_public_has_a_name_and_says_what_it_does(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    ours = {"/probe", "/detect", "/segment", "/mask_tokens", "/attention", "/explain"}
    ours |= {"/logit_lens", "/knockout", "/faithfulness", "/patching", "/shuffled"}
    assert ours <= set(named) <= ours | {"/compare"}
    assert all(len(named[name]["description"]) > 60 for name in named)
    parameters = {
        each["parameter_name"]: each["python_type"]["type"]
        for each in named["/probe"]["parameters"]
    }
    assert parameters["image"] == "filepath"
    assert parameters["tries"] == "int"
    assert "Top-k" in parameters["style"]


def test_probe_streams_tokens_and_then_the_objects(client):
    job = client.submit(handle_file(PICTURE), "detect cat ; dog", api_name="/probe")
    last = job.result(timeout=SECONDS)
    counts = [len(now["tokens"]) for now in job.outputs()]
    assert counts == sorted(counts) and len(set(counts)) > 3
    assert set(last) == {"text", "tokens", "objects", "done", "cut", "timing"}
    assert last["done"] is True and last["cut"] is False
    assert "".join(token["text"] for token in last["tokens"]) == last["text"]
    labels = [thing["label"] for thing in last["objects"]]
    assert labels == ["cat", "dog", "ball"]
    assert last["timing"]["first"] > 0


def test_probe_goes_on_from_a_start_and_tells_that_it_was_cut(client):
    picture = handle_file(PICTURE)
    asked = {"start": "A big", "max_tokens": 3}
    last = client.predict(picture, "caption en", **asked, api_name="/probe")
    assert last["text"].startswith("A big")
    assert len(last["tokens"]) == 5 and last["cut"] is True


def test_detect_gives_boxes_in_pixels_of_the_picture(site, client):
    found = client.predict(handle_file(PICTURE), " cat;dog ;; ", api_name="/detect")
    assert site.engine[0].prompts[-1] == "detect cat ; dog"
    assert [thing["label"] for thing in found["objects"]] == list(THINGS)
    for thing, edges in zip(found["objects"], THINGS.values(), strict=True):
        pixels = np.multiply(edges, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        assert thing["box"] == pytest.approx(pixels, abs=1)
        assert 0 < thing["confidence"] < 1
        assert "mask" not in thing
    assert found["text"].startswith("<loc0512>")


def test_segment_gives_a_mask_as_large_as_the_picture(tiny, tmp_path):
    image = Image.open(PENGUINS).convert("RGB").resize((500, 300))
    image.save(tmp_path / "wide.png")
    client = Client(tiny.url, verbose=False)
    picture = handle_file(tmp_path / "wide.png")
    found = client.predict(picture, "penguin", api_name="/segment")["objects"]
    said = tiny.engine.generate(image, "segment penguin").objects
    assert len(found) == len(said) > 0
    for thing, known in zip(found, said, strict=True):
        mask = opened(thing["mask"])
        assert mask.shape == (300, 500)
        same = mask == nearest(known.mask, known.box, (500, 300))
        assert same.mean() > 0.99
        assert mask.any()


def test_a_mask_becomes_tokens_that_can_begin_an_answer(tiny, tmp_path):
    rows, columns = np.mgrid[:300, :500]
    mask = ((columns - 300) / 120) ** 2 + ((rows - 180) / 70) ** 2 < 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    client = Client(tiny.url, verbose=False)
    drawn = handle_file(tmp_path / "mask.png")
    told = client.predict(drawn, api_name="/mask_tokens")
    assert told["text"] == vlm.mask_tokens(mask, tiny.engine.masks.encode)
    assert told["box"] == pytest.approx([180, 110, 420, 250], abs=1.5)
    picture, prompt = handle_file(PENGUINS), "segment fish"
    start = {"start": told["text"]}
    said = client.predict(picture, prompt, **start, api_name="/probe")
    assert said["text"].startswith(told["text"])
    thing = said["objects"][0]
    wide, high = Image.open(PENGUINS).size
    scale = np.array([wide / 500, high / 300] * 2)
    assert thing["box"] == pytest.approx(scale * told["box"], abs=0.2)
    (found,) = vlm.objects(
        tiny.engine.score(Image.open(PENGUINS), prompt, told["text"]),
        (500, 300),
        masks=tiny.engine.masks,
    )
    back = nearest(found.mask, found.box, (500, 300)) > 0
    iou = (back & mask).sum() / (back | mask).sum()
    assert told["iou"] == pytest.approx(iou, abs=0.02)
    assert iou > 0.9


def test_the_mask_that_segment_gives_is_taken_back(tiny, tmp_path):
    client = Client(tiny.url, verbose=False)
    asked = handle_file(PENGUINS), "fish"
    (thing,) = client.predict(*asked, api_name="/segment")["objects"]
    Image.fromarray(opened(thing["mask"])).save(tmp_path / "fish.png")
    drawn = handle_file(tmp_path / "fish.png")
    told = client.predict(drawn, api_name="/mask_tokens")
    assert vlm.grounding.overlap(told["box"], thing["box"]) > 0.85
    assert told["iou"] > 0.9


def test_the_mask_of_a_huge_picture_is_bounded_and_keeps_its_proportions():
    full = view.png(Image.new("L", (64, 64), 255))
    found = {"mask": full, "box": [1000.0, 0.0, 3000.0, 4000.0]}
    mask = opened(whole_mask(found, (8000, 4000)))
    assert mask.shape == (1024, 2048)
    assert mask[:, 260:760].all()
    assert not mask[:, :250].any() and not mask[:, 775:].any()


@pytest.mark.parametrize("box", [[30.0, 0.0, 10.0, 9.0], [0.0, 9.0, 9.0, 9.0]])
def test_a_box_without_an_area_has_no_mask(box):
    full = view.png(Image.new("L", (64, 64), 255))
    assert whole_mask({"mask": full, "box": box}, (50, 50)) is None


def test_attention_is_what_led_to_the_token_when_it_was_said(tiny):
    trace, prompt = vlm.Trace(), "detect penguin"
    said = list(tiny.engine.stream(Image.open(PENGUINS), prompt, tap=trace))
    client = Client(tiny.url, verbose=False)
    for token in (0, 4, -1):
        asked = handle_file(PENGUINS), prompt, token
        seen = client.predict(*asked, api_name="/attention")
        index = token % len(said)
        assert seen["token"] == index and seen["grid"] == [8, 8]
        assert [each["id"] for each in seen["tokens"]] == [step.token for step in said]
        maps, shares = np.array(seen["maps"]), np.array(seen["shares"])
        known = vlm.probes.image_attention(trace, index).numpy()
        assert maps == pytest.approx(known, abs=1e-5)
        assert maps.sum((2, 3)) == pytest.approx(shares[..., 0], abs=1e-4)
        assert shares.sum(-1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_token_is_explained_by_name(tiny, method):
    client = Client(tiny.url, verbose=False)
    asked = handle_file(PENGUINS), "detect fish", method, 1
    seen = client.predict(*asked, api_name="/explain")
    said = list(tiny.engine.stream(Image.open(PENGUINS), "detect fish"))
    assert [each["id"] for each in seen["tokens"]] == [step.token for step in said]
    assert (seen["token"], seen["grid"]) == (1, [8, 8])
    ids = tuple(step.token for step in said)
    why = vlm.probes.Asked(tiny.engine, Image.open(PENGUINS), "detect fish", ids)
    known = METHODS[method].heat(why, [1]).numpy()
    assert np.array(seen["map"]) == pytest.approx(known, rel=1e-3, abs=1e-6)
    assert seen["shows"] == METHODS[method].shows
    assert seen["hides"] == METHODS[method].hides


@pytest.fixture
def fish(tiny) -> vlm.probes.Asked:
    """What the embedded model says itself, for probes."""
    image = Image.open(PENGUINS)
    said = list(tiny.engine.stream(image, "detect fish"))
    ids = tuple(step.token for step in said)
    return vlm.probes.Asked(tiny.engine, image, "detect fish", ids)


# Of each endpoint, what is sent along, and what the probe is to be told instead.
TRIED = {
    "/logit_lens": ("layers", {}, {}),
    "/knockout": (
        "knockout",
        {"rows": "text", "box": [64, 128, 320, 256], "method": "lens"},
        {"rows": "text", "box": (0.125, 0.25, 0.625, 0.5), "heat": "lens"},
    ),
    "/faithfulness": ("faithfulness", {"method": "attention"}, {"heat": "attention"}),
    "/patching": ("patching", {"layer": 2}, {"layer": 2}),
    "/shuffled": ("shuffled", {}, {}),
}


@pytest.mark.parametrize("endpoint", TRIED)
def test_a_token_is_put_to_the_test_by_name_and_one_sees_how_far_it_is(
    tiny, fish, endpoint
):
    trial, sent, told = TRIED[endpoint]
    client = Client(tiny.url, verbose=False)
    asked = {"image": handle_file(PENGUINS), "prompt": "detect fish", "token": 1}
    job = client.submit(**asked, **sent, api_name=endpoint)
    seen = job.result(timeout=SECONDS)
    dones = [each["done"] for each in job.outputs()]
    assert dones == list(range(dones[0], seen["of"] + 1))
    assert (seen["token"], seen["done"]) == (1, seen["of"])
    assert [each["id"] for each in seen["tokens"]] == list(fish.answer)
    if "heat" in told:
        told = {**told, "heat": METHODS[told["heat"]].heat(fish, [1])}
    *_, (_, _, found) = TRIALS[trial].run(fish, 1, **told)
    assert {key: seen[key] for key in found} == nearly(found)
    assert seen["hides"] == TRIALS[trial].hides


def test_another_picture_may_spoil_the_pass(tiny, fish):
    client = Client(tiny.url, verbose=False)
    sent = handle_file(PENGUINS), "detect fish"
    other = handle_file(PICTURE)
    seen = client.predict(*sent, 1, 2, other, api_name="/patching")
    other = Image.open(PICTURE)
    *_, (_, _, found) = TRIALS["patching"].run(fish, 1, layer=2, other=other)
    assert {key: seen[key] for key in found} == nearly(found)
    noise = client.predict(*sent, 1, 2, api_name="/patching")
    assert noise["corrupt"] != pytest.approx(seen["corrupt"], rel=0.1)


def nearly(found):
    """The same with each number nearly itself."""
    if isinstance(found, dict):
        return {key: nearly(value) for key, value in found.items()}
    if isinstance(found, list):
        return [nearly(value) for value in found]
    return pytest.approx(found, rel=1e-3, abs=1e-5) if type(found) is float else found


def test_attention_of_one_layer_or_head_is_a_part_of_all(client):
    asked = functools.partial(
        client.predict, handle_file(PICTURE), "detect cat", api_name="/attention"
    )
    maps, shares = np.array(asked()["maps"]), np.array(asked()["shares"])
    assert maps.shape == (4, 4, 8, 8) and shares.shape == (4, 4, 4)
    assert not np.array_equal(maps[1], maps[2])
    assert np.array_equal(asked(layer=1)["maps"], maps[1])
    assert np.array_equal(asked(head=-1)["maps"], maps[:, 3])
    part = asked(layer=-2, head=0)
    assert np.array_equal(part["maps"], maps[2, 0])
    assert np.array_equal(part["shares"], shares[2, 0])


def test_attention_can_be_that_of_a_given_answer(tiny):
    client = Client(tiny.url, verbose=False)
    asked = handle_file(PENGUINS), "answer en is there a penguin?"
    own = client.predict(*asked, api_name="/attention")
    given = client.predict(*asked, answer="no", api_name="/attention")
    assert "".join(token["text"] for token in given["tokens"]) == "no"
    assert given["tokens"][0]["probability"] < own["tokens"][0]["probability"]


def test_numbers_are_short_exact_enough_and_not_too_many():
    values = np.float32([[1 / 3, 1.23456789e-7], [0, 1]])
    assert numbers(values) == [[0.333333, 1.23457e-07], [0.0, 1.0]]
    with pytest.raises(ValueError, match="one layer or one head"):
        numbers(np.zeros(MAX_NUMBERS + 1, np.float32))


def test_the_readmes_example_runs(tiny, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (example,) = [block for block in blocks if "gradio_client" in block]
    exec(example.replace("http://127.0.0.1:7860", tiny.url), {})
    said = capsys.readouterr().out
    assert "penguin [" in said and "fish" in said
    assert "data:image/png" in said


def test_a_model_is_chosen_by_its_name(client):
    picture = handle_file(PICTURE)
    seen = client.predict(picture, "caption en", model="other", api_name="/attention")
    assert len(seen["maps"]) == 2
    with pytest.raises(AppError, match="no model 'third', only fake, other"):
        client.predict(picture, "cat", model="third", api_name="/detect")


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        ("/probe", {"prompt": " "}, "Write a prompt first"),
        ("/probe", {"prompt": "caption en", "start": ["A"]}, "given as text"),
        ("/probe", {"prompt": "caption en", "style": "best"}, "Draw by one of"),
        ("/probe", {"prompt": "caption en", "temperature": "hot"}, "from 0.05 to 5"),
        ("/detect", {"things": " ; "}, "Say what to look for"),
        ("/detect", {"things": ["cat"]}, "Say what to look for"),
        ("/segment", {"things": "cat", "max_tokens": 513}, "from 1 to 512"),
        ("/segment", {"things": "cat", "image": None}, "Choose a picture first"),
        ("/mask_tokens", {}, "fake came without an encoder of masks"),
        ("/mask_tokens", {"model": "third"}, "no model 'third'"),
        ("/attention", {"prompt": "nothing"}, "no token to look at"),
        ("/attention", {"prompt": "caption en", "token": 99}, "token is 99"),
        ("/attention", {"prompt": "caption en", "layer": 4}, "from 0 to 3"),
        ("/attention", {"prompt": "caption en", "head": "all"}, "head is all"),
        ("/explain", {"prompt": "caption en", "token": -99}, "token is -99"),
        ("/explain", {"prompt": "caption en", "method": "lens"}, "asked why"),
        ("/explain", {"prompt": "caption en", "method": "magic"}, "magic"),
        ("/logit_lens", {"prompt": "caption en", "token": 99}, "token is 99"),
        ("/logit_lens", {"prompt": "caption en"}, "asked why"),
        ("/patching", {"prompt": "caption en", "token": "1"}, "token is 1"),
    ],
)
def test_what_cannot_be_asked_is_told(client, endpoint, options, message):
    name = "mask" if endpoint == "/mask_tokens" else "image"
    asked = {name: handle_file(PICTURE), **options}
    with pytest.raises(AppError, match=message):
        client.predict(**asked, api_name=endpoint)


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        ("/knockout", {"rows": "some"}, "rows are 'some'"),
        ("/knockout", {"box": [1, 2, 3]}, "x1, y1, x2, y2 in pixels"),
        ("/knockout", {"box": [0, 0, 1000, 10]}, "leaves the picture"),
        ("/knockout", {"method": "magic"}, "no 'magic'"),
        ("/faithfulness", {"method": ["lens"]}, "There is no"),
        ("/patching", {"layer": 4}, "layer 4 of 4"),
        ("/patching", {"layer": "last"}, "give a whole number"),
        ("/patching", {"other": {"path": "/etc/passwd"}}, "as a file"),
    ],
)
def test_a_test_that_cannot_be_is_told(tiny, endpoint, options, message):
    asked = {"image": handle_file(PENGUINS), "prompt": "detect fish", **options}
    with pytest.raises(AppError, match=message):
        Client(tiny.url, verbose=False).predict(**asked, api_name=endpoint)


def test_no_file_of_the_server_is_read_but_what_was_uploaded(site, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    known = {"_type": "gradio.FileData"}
    for path in (str(secret), "/etc/passwd"):
        for image in (path, {"path": path}, {"path": path, "meta": known}):
            event, data = called(site.url, "detect", [image, "cat", 9, ""])
            assert event == "error"
            assert "objects" not in data and "root:" not in data
    (uploaded,) = upload(site.url, PICTURE)
    image = {"path": uploaded, "meta": known}
    event, data = called(site.url, "detect", [image, "cat", 9, ""])
    assert event == "complete" and "objects" in data


def test_no_address_of_the_server_itself_is_fetched(client):
    fetched = []

    class Inside(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=EXAMPLES)

        def do_GET(self) -> None:
            fetched.append(self.path)
            super().do_GET()

    with http.server.HTTPServer(("127.0.0.1", 0), Inside) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
            url = f"http://{host}:{port}/{PICTURE.name}"
            with pytest.raises(AppError):
                client.predict(handle_file(url), "cat", api_name="/detect")
        server.shutdown()
    assert fetched == []


def test_one_question_at_a_time_whatever_the_endpoint(site, client):
    site.engine[0].most = 0
    picture = handle_file(PICTURE)
    jobs = [
        client.submit(picture, "caption en", api_name="/probe"),
        client.submit(picture, "cat", api_name="/detect"),
        client.submit(picture, "cat", api_name="/segment"),
    ]
    for job in jobs:
        job.result(timeout=SECONDS)
    assert site.engine[0].most == 1


def test_a_cancelled_question_stops_the_model(site, client):
    job = client.submit(handle_file(PICTURE), "forever", api_name="/probe")
    for _ in job:
        break
    job.cancel()
    asked = handle_file(PICTURE), "cat"
    client.predict(*asked, api_name="/detect")  # or it would wait for 512 tokens
    assert site.engine[0].live == 0


def test_an_mcp_client_finds_the_tools_and_what_each_argument_is(tiny):
    tools = {tool.name: tool for tool in talk(tiny.url, ClientSession.list_tools).tools}
    assert {"probe", "detect", "segment", "attention", "explain"} <= set(tools)
    assert {"logit_lens", "knockout", "faithfulness", "patching"} <= set(tools)
    assert "shuffled" in tools
    image = tools["detect"].inputSchema["properties"]["image"]
    assert image["type"] == "string" and "url" in image["format"]
    for tool in tools.values():
        assert len(tool.description) > 60
        arguments = tool.inputSchema["properties"]
        assert all(each["description"] for each in arguments.values()), tool.name
    assert set(tools["detect"].inputSchema["required"]) == {"image", "things"}


def test_an_mcp_client_detects(tiny):
    picture = base64.b64encode(PENGUINS.read_bytes()).decode()
    image = f"data:image/webp;base64,{picture}"
    reply = detected(tiny.url, image)
    assert not reply.isError
    found = ast.literal_eval(reply.content[0].text)
    said = tiny.engine.generate(Image.open(PENGUINS), "detect penguin")
    assert found["text"] == said.text
    assert [thing["label"] for thing in found["objects"]] == ["penguin"] * 2


@pytest.mark.parametrize(
    "image",
    [str(PICTURE), {"path": str(PICTURE), "meta": {"_type": "gradio.FileData"}}],
)
def test_an_mcp_client_names_no_file_of_the_server(tiny, image):
    assert detected(tiny.url, image).isError


def opened(url: str) -> np.ndarray:
    """A data URL of a mask as bool [H, W]."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def nearest(mask: np.ndarray, box: tuple, size: tuple[int, int]) -> np.ndarray:
    """What `mask` says of each pixel of a picture, without smoothing; bool [H, W]."""
    x1, y1, x2, y2 = box
    columns = np.floor((np.arange(size[0]) + 0.5 - x1) / (x2 - x1) * 64).astype(int)
    rows = np.floor((np.arange(size[1]) + 0.5 - y1) / (y2 - y1) * 64).astype(int)
    inside = np.outer((rows >= 0) & (rows < 64), (columns >= 0) & (columns < 64))
    return inside & (mask[np.ix_(rows.clip(0, 63), columns.clip(0, 63))] >= 0.5)


def upload(url: str, path: Path) -> list[str]:
    with open(path, "rb") as file:
        reply = httpx.post(f"{url}/gradio_api/upload", files={"files": file})
    return reply.json()


def called(url: str, name: str, data: list) -> tuple[str, str]:
    """The last event of a call by plain HTTP, and its data."""
    start = httpx.post(f"{url}/gradio_api/call/{name}", json={"data": data})
    address = f"{url}/gradio_api/call/{name}/{start.json()['event_id']}"
    lines = httpx.get(address, timeout=SECONDS).text.strip().splitlines()
    event, data = lines[-2:]
    return event.removeprefix("event: "), json.dumps(data)


def talk(url: str, act) -> types.Result:
    """What an MCP client gets for an act on its session."""

    async def session() -> types.Result:
        address = f"{url}/gradio_api/mcp/"
        async with streamable_http_client(address) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                return await act(session)

    # Playwright leaves its own loop running in this thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, session()).result()


def detected(url: str, image: object) -> types.CallToolResult:
    arguments = {"image": image, "things": "penguin"}
    return talk(url, lambda session: session.call_tool("detect", arguments))
