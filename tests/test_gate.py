"""What the server refuses before a function is called, and what listeners refuse."""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from fake_engine import FakeEngine, Parrot
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hypothesis import HealthCheck, Phase, given, settings
from listeners import Listeners
from pages import EXAMPLES, PICTURE, serve
from PIL import Image
from strategies import KNOWN
from waiting import until

import vlm
from vlm import picture_file
from vlm.ui import gate, header
from vlm.ui.again import part
from vlm.ui.keep import restored
from vlm.ui.matching import KEPT_SIDE, pictures_of
from vlm.ui.models import Models
from vlm.ui.refusing import as_text, refusal

EVIL = "192.0.2.1"  # an address of nobody (RFC 5737)


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine(delay=0)) as served:
        yield served


@pytest.fixture(scope="module")
def client(site) -> httpx.Client:
    return httpx.Client(base_url=f"{site.url}/gradio_api/", timeout=20)


@pytest.fixture(scope="module")
def listeners() -> Listeners:
    pair = vlm.load_pair(EXAMPLES.parent / "tiny-pair", device="cpu")
    return Listeners([Parrot(delay=0), FakeEngine(delay=0, name="other")], pair)


# --- the server -----------------------------------------------------------------------


def test_a_body_that_is_too_long_is_not_read(client):
    kind = {"content-type": "application/json"}
    for count, statuses in ((10, {200, 400, 422}), (400_000, {400, 413})):
        body = b'{"data":[' + b"[]," * count + b'"cat"]}'
        for path in ("call/detect", "component_server", "queue/join"):
            status = client.post(path, headers=kind, content=body).status_code
            assert status in statuses, (path, count)
    assert client.post("call/detect", headers=kind, content=body).status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"x": NaN}', b'{"x": Infinity}', b'{"x": "\\ud800"}', b"NaN", b"{"],
)
def test_a_body_without_what_is_asked_for_is_refused(client, body):
    kind = {"content-type": "application/json"}
    reply = client.post("call/detect", content=body, headers=kind)
    assert (reply.status_code, "not what is taken" in reply.text) == (400, True)


@pytest.mark.parametrize(
    "path", ["call/nothing", "run/nothing", "call/v2/nothing", "call/../nothing"]
)
def test_an_unknown_function_is_told_to_be_none(client, path):
    reply = client.post(path, json={"data": []})
    assert reply.status_code in (404, 405)


def test_what_changes_a_property_can_be_called_by_anybody(site, client):
    every = [each["api_name"] or "" for each in site.demo.config["dependencies"]]
    ends = [name for name in every if "ended" in name]
    assert len(ends) > 1
    for name in ends:
        event = client.post(f"call/{name}", json={"data": []}).json()["event_id"]
        assert "event: complete" in client.get(f"call/{name}/{event}").text, name


def test_an_unknown_number_of_a_function_is_told_to_be_none(client):
    asked = {"data": [], "fn_index": 10**6, "session_hash": "x"}
    reply = client.post("queue/join", json=asked)
    assert (reply.status_code, "no such function" in reply.text) == (404, True)


def test_an_upload_without_a_name_is_refused(client):
    reply = client.post("upload", files={"files": ("", b"x")})
    assert (reply.status_code, "not what is taken" in reply.text) == (400, True)


@pytest.mark.parametrize("path", ["process_recording", "deep_link", "dev/reload"])
def test_what_is_no_part_of_the_page_is_closed(client, path):
    assert client.get(path).status_code == 404
    assert client.post(path, files={"video": b"x"}).status_code == 404


def test_nobody_is_told_of_the_traffic(site):
    assert "console" not in httpx.get(f"{site.url}/monitoring").text


def test_nothing_is_taken_when_the_disk_is_nearly_full(site, client, monkeypatch):
    before = set(Path(get_upload_folder()).rglob("*"))
    files = {"files": ("full.png", bytes(2000))}
    with monkeypatch.context() as full:
        full.setattr(gate, "LEAST_FREE", 2**70)
        reply = client.post("upload", files=files)
        assert (reply.status_code, reply.json()) == (507, {"detail": gate.FULL})
        assert client.get("startup-events").status_code == 200
    assert set(Path(get_upload_folder()).rglob("*")) == before
    (path,) = client.post("upload", files=files).json()
    until(Path(path).is_file)  # it is put there after the reply


def test_uploads_that_are_refused_leave_nothing_behind(site, client, monkeypatch):
    monkeypatch.setattr(gate, "MAX_UPLOAD", 2**20)
    before = files_kept()
    large = [("files", (f"{i}.png", bytes(300_000))) for i in range(4)]
    assert client.post("upload", files=large).status_code == 413
    host, port = site.url.removeprefix("http://").split(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 900000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as line:
        line.sendall(head.encode() + bytes(200_000))
        until(lambda: files_kept() - before)  # the server has begun to read
    until(lambda: not files_kept() - before)
    small = client.post("upload", files={"files": ("a.png", bytes(1000))})
    assert small.status_code == 200
    assert len(files_kept() - before) == 1


@pytest.mark.parametrize(
    "path",
    [
        f"//{EVIL}/",
        f"/\\{EVIL}",
        f"/gradio_api/file=http://{EVIL}/x",
        f"/gradio_api/file=//{EVIL}/x",
        f"/file=https://{EVIL}",
        f"/gradio_api/proxy=http://{EVIL}/",
        f"/login?_target_url=//{EVIL}",
        f"/logout?_target_url=//{EVIL}",
        "/gradio_api/upload/",
    ],
)
def test_no_address_leads_to_another_host(site, path):
    reply = httpx.get(f"{site.url}{path}", follow_redirects=False)
    there = reply.headers.get("location", "")
    assert there == "" or there.startswith(site.url)


@pytest.mark.parametrize("origin", [f"http://{EVIL}", "null"])
def test_no_other_origin_may_read_what_the_server_says(site, client, origin):
    asked = {"headers": {"origin": origin}}
    replies = [
        httpx.get(f"{site.url}/config", **asked),
        client.post("call/detect", json={"data": []}, **asked),
        client.options("upload", headers={**asked["headers"], **PREFLIGHT}),
    ]
    for reply in replies:
        allowed = reply.headers.get("access-control-allow-origin")
        assert allowed in (None, site.url)


PREFLIGHT = {"access-control-request-method": "POST"}


# --- what endpoints are sent ----------------------------------------------------------


def test_an_address_is_not_even_looked_up(site, client, monkeypatch):
    asked = []
    resolve = socket.getaddrinfo

    def heard(host, *rest, **more):
        asked.append(str(host))
        return resolve(host, *rest, **more)

    known = {"path": f"https://{EVIL}/x.png", "meta": KNOWN}
    monkeypatch.setattr(socket, "getaddrinfo", heard)
    for image in (known, {"path": "x", "inner": known}, [known]):
        event, data = called(client, "detect", [image, "cat", 9, ""])
        assert event == "error" and "opens no address" in data
    with pytest.raises(AppError, match="opens no address"):
        address = handle_file(f"https://{EVIL}/x.png")
        Client(site.url, verbose=False).predict(address, "cat", api_name="/detect")
    assert not [host for host in asked if EVIL in host]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("detect", ["too few"], "not what this asks for"),
        ("detect", [{"path": "x\0", "meta": KNOWN}, "cat", 9, ""], "not what this"),
        ("detect", [{"path": "/etc/passwd", "meta": KNOWN}, "cat", 9, ""], "not what"),
        ("detect", [{"path": "/etc/passwd"}, "cat", 9, ""], "as a file"),
        ("explain", [["lens"], -1, "", ""], "There is no"),
        ("explain", [{}, -1, "", ""], "There is no"),
        ("explain", ["lens", None, "", ""], "token is null"),
        ("attention", [None, "", None, None, ""], "token is null"),
        ("compare", [None, ["x"], "", ""], "given as text"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(client, name, data, message):
    if name not in ("detect",):
        with PICTURE.open("rb") as file:
            (path,) = client.post("upload", files={"files": file}).json()
        data = [{"path": path, "meta": KNOWN}, "caption en", *data]
    event, told = called(client, name, data)
    assert event == "error" and message in told


def test_halves_of_characters_come_back_whole(site, client):
    with PICTURE.open("rb") as file:
        (path,) = client.post("upload", files={"files": file}).json()
    image = {"path": path, "meta": KNOWN}
    asked = [image, "capt\ud800ion en", "A\u202e big\ud800", *DRAWN]
    event, told = called(client, "probe", asked)
    assert event == "complete" and json.loads(told)[0]["text"].startswith("A big")


DRAWN = ("Greedy", 1, 0.9, 40, 0, 1, 8, "", None)


def test_a_message_repeats_only_the_ends_of_what_is_long():
    message = as_text("Seed is " + "<x>" * 10**6 + "\ud800; give a whole number.")
    assert len(message) < 2000
    assert message.startswith("Seed is &lt;x&gt;") and " … " in message
    assert message.endswith("?; give a whole number.")
    message.encode()
    assert as_text("short") == "short"


# --- what listeners are sent ----------------------------------------------------------


@pytest.mark.parametrize(
    "event", [None, 5, float("nan"), "x", [], {}, {"code": []}, {"index": 10**30}]
)
@pytest.mark.parametrize(
    "name", ["respoken", "bring", "pick", "renewed", "branch", "paint", "region"]
)
def test_an_event_may_be_anything(listeners, name, event):
    listener = listeners.named(name)
    inputs = listeners.plausible(listener)
    with pytest.raises(gr.Error) if name != "renewed" else contextlib.nullcontext():
        listeners.call(listener, inputs, event)


@pytest.mark.parametrize("name", ["respoken", "bring", "pick", "branch", "region"])
def test_there_may_be_no_event(listeners, name):
    listener = listeners.named(name)
    inputs = [*listeners.plausible(listener), None]  # where the event belongs
    with pytest.raises(gr.Error):
        called_without(listener.fn, inputs)


def called_without(function, inputs):
    """Call it as Gradio does where nothing has happened: with None for the event."""
    names = list(inspect.signature(function).parameters)
    given = [value for value in inputs if value is not None]
    place = names.index("event")
    return function(*given[:place], None, *given[place : len(names) - 1])


def test_what_only_the_browser_does_is_not_called(listeners):
    ours = listeners.demo.fns.values()
    (listener,) = [each for each in ours if each.fn is None and each.js][:1]
    with pytest.raises(gr.Error, match="not what this asks for"):
        listeners.call(listener, [None] * len(listener.inputs), None)


@pytest.mark.parametrize("view", [None, 5, "x", [], {"run": {}}, {"model": ["x"]}])
def test_the_viewers_own_value_may_be_anything(listeners, view):
    show = listeners.named("show")
    *given, _ = listeners.plausible(show)
    (value,) = listeners.call(show, [*given, view], None)
    assert value["picture"]


def test_what_is_to_be_asked_next_may_be_nothing(listeners):
    for follow in [each for each in listeners.all if each.name == "follow"]:
        with pytest.raises(gr.Error, match="Press Run"):
            listeners.call(follow, listeners.plausible(follow), None)


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/zero", "/dev/stdin"])
def test_a_file_of_the_server_is_not_opened_even_before_it_serves(listeners, path):
    preview = listeners.named("preview")
    _, *others = listeners.plausible(preview)
    with pytest.raises(gr.Error, match="not what this asks for"):
        listeners.call(preview, [{"path": path, "meta": KNOWN}, *others], None)


def test_whatever_is_called_answers_or_refuses(listeners):
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(listeners.calls())
    def each(call):
        with contextlib.suppress(gr.Error):
            listeners.call(*call)

    each()


def test_a_path_of_no_file_is_a_broken_link():
    asked = {"model": "x", "prompt": "x", "start": "", "settings": {}}
    for path in ("\0", "\ud800", "x" * 5000, "/etc/passwd", "../../etc/passwd"):
        with pytest.raises(ValueError, match="damaged or cut short"):
            restored({**asked, "picture": {"path": path}}, [])


@pytest.mark.parametrize(
    "source", ["~nobody-of-this-name", "x" * 400, "\0", "\ud800", "a\nb", None, "~root"]
)
def test_a_name_of_no_model_is_refused_and_nothing_is_looked_up(source):
    engine = FakeEngine(delay=0)
    told = header.chosen(Models.of(engine), source)
    assert told["error"]
    models = Models(lambda source, progress: FakeEngine(), ["one"], switching=True)
    models.wait()
    assert isinstance(header.chosen(models, source)["error"], str)


def test_many_pictures_share_the_memory_of_one(tmp_path, monkeypatch):
    side = 2 * KEPT_SIDE + 52
    Image.new("RGB", (side, side)).save(tmp_path / "large.png", compress_level=1)
    sent = {"path": str(tmp_path / "large.png"), "meta": KNOWN}
    assert [each.size for each in pictures_of([sent] * 2)] == [(side // 2,) * 2] * 2
    room = 12 * side**2 + 4 * (side // 2) ** 2
    monkeypatch.setattr(picture_file, "MEMORY", room)
    with pytest.raises(ValueError, match="Picture 3: .* at most 4.04 million"):
        pictures_of([sent] * 3)


def test_a_part_of_what_is_no_dict_is_nothing():
    assert part({"run": 5}, "run") == 5
    assert part([], "run") is part(None, "run") is part("run", "run") is None
    assert refusal("x").print_exception is False


def called(client: httpx.Client, name: str, data: list) -> tuple[str, str]:
    """The last event of a call by plain HTTP, and its data."""
    body = json.dumps({"data": data})
    kind = {"content-type": "application/json"}
    begun = client.post(f"call/{name}", content=body, headers=kind)
    told = client.get(f"call/{name}/{begun.json()['event_id']}")
    event, data = told.text.strip().splitlines()[-2:]
    return event.removeprefix("event: "), data.removeprefix("data: ")


def files_kept() -> set[Path]:
    folder = Path(get_upload_folder())
    return {each for each in folder.rglob("*") if each.is_file()}
