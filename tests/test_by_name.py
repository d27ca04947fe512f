"""Each published structure by its name: from the Hub, through the page, to an answer.

A running `python app.py` is given a stand-in for the Hub. Its repositories have the
names, config files, tensor names and shards of published ones; the weights are random,
and widths, depths and vocabulary small. transformers reads the same folders and says
what the answers are to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sentencepiece
import torch
import transformers
from gradio_client import Client, handle_file
from hub_server import Answer, Asked, HubServer, sha256
from oracle import filled, read
from pages import EXAMPLES, PATIENT, PICTURE, answered, opened
from PIL import Image
from playwright.sync_api import Browser, expect
from published_configs import published
from safetensors.torch import save_file
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)
from waiting import until

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "assets" / "tiny" / "tokenizer.model"
TENSORS = json.loads((ROOT / "tests" / "data" / "published_tensors.json").read_text())
INDEX = "model.safetensors.index.json"
PIECES = 2213  # of that tokenizer; <image> comes behind them
WIDTH, COUNT = 96, 12  # of the decoder; tokens of an answer
SECONDS = 300  # a shared machine may be slow
PROMPT = "detect cat ; dog"
SHOWN = EXAMPLES / "penguins.webp"  # what is on a fresh page

# Name and revision to what its config is made of, the weights' dtype, their shards.
Published = tuple[str, int, torch.dtype, int]
FIRST = ("paligemma-3b", 224)
SHELF: dict[str, Published] = {
    "google/paligemma-3b-mix-224": (*FIRST, torch.float32, 3),
    "google/paligemma-3b-mix-224@bfloat16": (*FIRST, torch.bfloat16, 2),
    "google/paligemma-3b-pt-896": ("paligemma-3b", 896, torch.float32, 3),
    "google/paligemma2-3b-mix-224": ("paligemma2-3b", 224, torch.bfloat16, 2),
    "google/paligemma2-10b-ft-docci-448": ("paligemma2-10b", 448, torch.bfloat16, 4),
    "google/paligemma2-28b-pt-224": ("paligemma2-28b", 224, torch.bfloat16, 6),
    "someone/untied-224": (*FIRST, torch.float32, 1),
}
WATCHED = "google/paligemma2-3b-mix-224"  # the one that is loaded in a browser


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    server = HubServer()
    for name in SHELF:
        repository, _, revision = name.partition("@")
        folder = tmp_path_factory.mktemp("hub")
        publish(folder, name)
        revisions = server.repositories.setdefault(repository, {})
        revisions[revision or "main"] = folder
    yield server
    server.close()


@pytest.fixture(scope="module")
def app(
    hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """What a user has who starts it on their own machine, with an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    given = {name: text for name, text in os.environ.items() if name[:3] != "HF_"}
    given |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    given |= {"GRADIO_TEMP_DIR": str(home)}
    command = [sys.executable, str(ROOT / "app.py"), "--menu", "--port", str(port)]
    with open(home / "log", "w") as log:
        running = subprocess.Popen(command, env=given, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(
            lambda: answers(port) or running.poll() is not None,
            "the app",
            seconds=SECONDS,
        )
        assert running.poll() is None, (home / "log").read_text()
        patient = {"timeout": SECONDS}
        client = Client(url, verbose=False, httpx_kwargs=patient)
        yield SimpleNamespace(url=url, client=client)
    finally:
        running.terminate()
        running.wait(20)


@pytest.mark.parametrize("name", [name for name in SHELF if name != WATCHED])
def test_a_published_structure_is_loaded_by_its_name_and_answers_as_it_should(
    app: SimpleNamespace, hub: HubServer, name: str
) -> None:
    call(app, "choose", name)
    news: dict[str, Any] = {}

    def is_there() -> bool:
        news.update(call(app, "news", {}))
        return not news["loading"]

    until(is_there, name, seconds=SECONDS)
    assert news["error"] == "" and news["names"] == [name]
    assert (
        f"× {config_of(name)['text_config']['num_attention_heads']} heads"
        in (news["facts"])
    )
    said = app.client.predict(
        handle_file(PICTURE), PROMPT, max_tokens=COUNT, api_name="/probe"
    )
    ids, chances = answer_of(folder_of(hub, name), PROMPT)
    assert [token["id"] for token in said["tokens"]] == ids
    # Rounded to four digits; some of these models say one word again and again.
    told = [token["probability"] for token in said["tokens"]]
    assert told == pytest.approx(chances, abs=2e-4)
    assert len({round(chance, 4) for chance in chances}) > 3


def test_a_name_is_chosen_on_the_page_which_goes_on_answering_meanwhile(
    app: SimpleNamespace, hub: HubServer, browser: Browser
) -> None:
    folder = folder_of(hub, WATCHED)
    far = re.compile(rf"{WATCHED}: Downloading {WATCHED}: [1-9]\.\d\d of \d\.\d\d MB")
    with held_back(hub, sorted(folder.glob("*.safetensors"))[-1]) as let_go:
        for page in opened(app, browser, width=1280, height=860):
            page.click("#sampling button")
            page.get_by_label("number input for Maximum tokens").fill(str(COUNT))
            page.keyboard.press("Tab")
            name, facts = (
                page.locator(f"#header .model {of}") for of in ("b", ".facts")
            )
            before = call(app, "news", {})["names"][0]
            expect(name).to_have_text(before)
            page.click("#header button.model")
            page.fill("#menu-text", "paligemma2-3b mix-224")
            page.click("#header li:visible button")
            line = page.locator("#header .loading")
            expect(line).to_contain_text(far, timeout=PATIENT)
            page.keyboard.press("Escape")
            answered(page, "detect penguin")
            expect(facts).to_contain_text(f"loading {WATCHED}")
            expect(name).to_have_text(before)

            let_go.set()
            expect(name).to_have_text(WATCHED, timeout=PATIENT)
            answered(page, PROMPT)
            ids, _ = answer_of(folder, PROMPT, SHOWN)
            expect(page.locator("#scope .chip.said")).to_have_count(len(ids))
            page.click("#scope .save")
            with page.expect_download() as saved:
                page.click("#scope [data-save=json]")
            view = json.loads(Path(saved.value.path()).read_text())["view"]
            assert view["model"] == WATCHED
            assert [token["id"] for token in view["tokens"]] == ids
    assert INDEX in hub.files_asked()


# What is asked of the app


def call(app: SimpleNamespace, name: str, data: Any) -> Any:
    """What the header's script calls as `server.NAME(data)`."""
    components = app.client.config["components"]
    (header,) = (c for c in components if c["props"].get("elem_id") == "header")
    asked = {"session_hash": "test", "component_id": header["id"]}
    asked |= {"fn_name": name, "data": data}
    where = f"{app.url}/gradio_api/component_server"
    reply = httpx.post(where, json=asked, timeout=SECONDS)
    reply.raise_for_status()
    return reply.json()


def answers(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def held_back(hub: HubServer, path: Path) -> Iterator[threading.Event]:
    """The bytes of a file do not come before the event is set."""
    let_go, where = threading.Event(), f"/storage/{sha256(path)}"

    def wait(asked: Asked) -> Answer | None:
        if asked.path == where:
            let_go.wait(SECONDS)
        return None

    hub.refuse = wait
    try:
        yield let_go
    finally:
        let_go.set()
        hub.refuse = lambda asked: None


def folder_of(hub: HubServer, name: str) -> Path:
    repository, _, revision = name.partition("@")
    return hub.repositories[repository][revision or "main"]


# What is published


def publish(folder: Path, name: str) -> None:
    """A repository of random weights."""
    size, _, dtype, count = SHELF[name]
    raw = config_of(name)
    made = {key: value for key, value in raw.items() if key != "model_type"}
    # Each has weights of its own, so that none is taken for another.
    model = filled(transformers.PaliGemmaConfig(**made), seed=list(SHELF).index(name))
    tensors = {
        published_name(key): tensor.to(dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if raw.get("tie_word_embeddings", True):
        del tensors["language_model.lm_head.weight"]
        kinds = {re.sub(r"\.\d+\.", ".#.", key) for key in tensors}
        assert kinds == TENSORS["tensors"][size].keys()
    write(folder, tensors, count)
    generation = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(raw))
    shutil.copy(TOKENIZER, folder)


def config_of(name: str) -> dict[str, Any]:
    """Published, with as little of everything as leaves its structure."""
    raw = published(*SHELF[name][:2])
    # Attention alone takes seconds there; the first layer is one that has a window.
    large = SHELF[name][1] == 896
    few = {"num_hidden_layers": 1 if large else 4, "intermediate_size": 80}
    text = {**raw["text_config"], **few, "hidden_size": WIDTH}
    text |= {"vocab_size": PIECES + 7}
    few = {"num_hidden_layers": 1 if large else 2, "intermediate_size": 72}
    vision = {**raw["vision_config"], **few, "hidden_size": 64}
    vision |= {"projection_dim": WIDTH}
    raw |= {"text_config": text, "vision_config": vision, "projection_dim": WIDTH}
    raw |= {"image_token_index": PIECES}
    return raw | ({"tie_word_embeddings": False} if "untied" in name else {})


def published_name(key: str) -> str:
    """Of a tensor that this version of transformers calls otherwise in memory."""
    for theirs, name in (
        (r"model\.language_model\.", "language_model.model."),
        (r"model\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
        (r"model\.(?=multi_modal_projector\.)", ""),
        (r"lm_head\.", "language_model.lm_head."),
    ):
        key = re.sub(f"^{theirs}", name, key)
    return key


def write(folder: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
    """In one file, or in so many shards with an index."""
    if count == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys, places = list(tensors), {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        shard = {key: tensors[key] for key in keys[number::count]}
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


# What the answers are to be


@torch.no_grad()
def answer_of(
    folder: Path, prompt: str, picture: Path = PICTURE
) -> tuple[list[int], list[float]]:
    """What transformers says of a picture, greedily, and how probable each is."""
    # Gemma 2's soft-cap is computed by eager attention only.
    model = read(folder, {"text_config": "eager", "vision_config": "sdpa"})
    config = model.config
    side = config.vision_config.image_size
    look = SiglipImageProcessorPil(
        size={"height": side, "width": side},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    pixels = look(Image.open(picture).convert("RGB"), return_tensors="pt")
    places = [config.image_token_index] * (side // 14) ** 2
    ids = torch.tensor([[*places, 2, *vocabulary().encode(f"{prompt}\n")]])
    made = model.generate(
        input_ids=ids,
        pixel_values=pixels["pixel_values"],
        token_type_ids=torch.zeros_like(ids),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=COUNT,
        do_sample=False,
        eos_token_id=[1, 107],
        output_logits=True,
        return_dict_in_generate=True,
    )
    said = made.sequences[0, ids.shape[1] :].tolist()
    said = said[:-1] if said[-1] in (1, 107) else said
    chances = torch.cat(made.logits).float().softmax(-1)
    return said, [float(row[token]) for row, token in zip(chances, said)]


@cache
def vocabulary() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
