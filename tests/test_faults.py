"""Faults: a sentence is told, others are unharmed, nothing is held or half-written."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image

import vlm
from vlm import weights
from vlm.cache import KVCache
from vlm.ui import faults, pictures
from vlm.ui.asking import Ask, views
from vlm.ui.models import Models
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.store import Store

ASSETS = Path(__file__).parents[1] / "assets"
PENGUINS = ASSETS / "examples" / "penguins.webp"
PROMPT = "detect penguin"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.open(PENGUINS).convert("RGB")


@pytest.fixture(scope="module")
def loaded() -> vlm.Engine:
    return vlm.load(ASSETS / "tiny", device="cpu")


@pytest.fixture
def tiny(loaded) -> vlm.Engine:
    loaded.prefixes.kept.clear()
    return loaded


@pytest.fixture
def caches(monkeypatch) -> Iterator[weakref.WeakSet]:
    """Those in memory, of which nothing but a reference keeps one there."""
    live, begin = weakref.WeakSet(), KVCache.__init__

    def counted(cache: KVCache, *given: int) -> None:
        begin(cache, *given)
        live.add(cache)

    monkeypatch.setattr(KVCache, "__init__", counted)
    # pytest keeps what is logged, with the frames of what was raised.
    monkeypatch.setattr(logging.getLogger(faults.__name__), "disabled", True)
    gc.collect()
    gc.disable()
    yield live
    gc.enable()


class Spoilt:
    """A function that does something else at its `at`th call."""

    def __init__(self, function, at: int, instead) -> None:
        self.function, self.left, self.instead = function, at, instead

    def __call__(self, *given, **named):
        self.left -= 1
        value = self.function(*given, **named)
        return value if self.left else self.instead(value)


def raising(kind: type[Exception], *words: str):
    def instead(_):
        raise kind(*words)

    return instead


# --- no numbers ----------------------------------------------------------------------


def no_number(tiny: vlm.Engine):
    """NaN for the token that ends an answer, which argmax takes for the largest."""

    def instead(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., tiny.config.eos[0]] = torch.nan
        return logits

    return instead


@pytest.mark.parametrize("sampler", [vlm.greedy, vlm.TopP(0.9)])
@pytest.mark.parametrize("at", [1, 3])
def test_logits_that_are_no_numbers_are_a_fault_and_no_empty_answer(
    tiny, image, monkeypatch, at, sampler
):
    due = tiny.generate(image, PROMPT).text
    tiny.prefixes.kept.clear()
    with monkeypatch.context() as spoiling:
        spoilt = Spoilt(tiny.model.decoder.logits, at, no_number(tiny))
        spoiling.setattr(tiny.model.decoder, "logits", spoilt)
        with pytest.raises(ValueError, match="no numbers"):
            tiny.generate(image, PROMPT, sampler=sampler)
    assert tiny.generate(image, PROMPT).text == due, "nothing of it was kept"


def test_a_given_answer_is_not_scored_with_what_is_no_number(tiny, image, monkeypatch):
    spoilt = Spoilt(tiny.model.decoder.logits, 2, no_number(tiny))
    monkeypatch.setattr(tiny.model.decoder, "logits", spoilt)
    with pytest.raises(ValueError, match="no numbers"):
        tiny.score(image, PROMPT, "two penguins")


@pytest.mark.parametrize("at", [1, 2])
def test_many_questions_notice_it_too(tiny, image, monkeypatch, at):
    spoilt = Spoilt(tiny.model.decoder.logits, at, no_number(tiny))
    monkeypatch.setattr(tiny.model.decoder, "logits", spoilt)
    with pytest.raises(ValueError, match="no numbers"):
        list(vlm.answers(tiny, [(image, PROMPT), (image, "caption en")]))


# --- memory --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 4])
def test_out_of_memory_in_a_step_frees_its_cache_and_the_next_answer_is_right(
    tiny, caches, monkeypatch, at
):
    store, ask = Store(2**26), Ask("tiny", str(PENGUINS), PROMPT)
    due = list(views(tiny, store, ask))[-1]
    kept = len(caches)
    lacking = raising(torch.OutOfMemoryError, "CUDA out of memory.")
    failing = Spoilt(type(tiny)._decode, at, lacking)
    with monkeypatch.context() as spoiling:
        spoiling.setattr(type(tiny), "_decode", lambda *a, **k: failing(*a, **k))
        with pytest.raises(gr.Error) as told:
            list(refusing_all(views(tiny, store, ask)))
    assert told.value.message == faults.MEMORY
    assert not told.value.print_exception
    assert len(caches) == kept
    left = store.get(due["run"]).view, list(views(tiny, store, ask))[-1]
    assert all(each["text"] == due["text"] for each in left)


def test_what_was_said_before_a_fault_can_be_taken_away(tiny, monkeypatch):
    store, ask = Store(2**26), Ask("tiny", str(PENGUINS), PROMPT)
    failing = Spoilt(type(tiny)._decode, 3, raising(MemoryError))
    monkeypatch.setattr(type(tiny), "_decode", lambda *a, **k: failing(*a, **k))
    run = ""
    with pytest.raises(MemoryError):
        for now in views(tiny, store, ask):
            run = now["run"]
    left = store.get(run).view
    assert (left["done"], left["stopped"]) == (True, True)
    assert left["tokens"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("Write a prompt first."), "Write a prompt first."),
        (MemoryError(), faults.MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), faults.MEMORY),
        (RuntimeError("MPS backend out of memory"), faults.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), faults.MEMORY),
        (FULL, faults.DISK),
        (KeyError("/home/somebody/secret"), "failed on the server (KeyError)"),
        (FileNotFoundError(2, "no", "/srv/x"), "on the server (FileNotFoundError)"),
    ],
)
def test_a_fault_is_told_in_one_sentence_without_what_is_the_servers(error, told):
    def failing() -> None:
        raise error

    def failing_all() -> Iterator[None]:
        yield
        raise error

    for ask in (failing, lambda: list(refusing_all(failing_all()))):
        with pytest.raises(gr.Error) as refused:
            refusing(ask)
        assert told in refused.value.message
        assert "secret" not in refused.value.message
        assert refused.value.__context__ is None, "it holds the frames of the fault"


# --- disks and files -----------------------------------------------------------------


def test_a_full_disk_leaves_no_half_of_a_picture(tmp_path, image, monkeypatch):
    monkeypatch.setattr(pictures, "get_upload_folder", lambda: str(tmp_path))
    make = tempfile.NamedTemporaryFile

    def filling(**how):
        file = make(**how)
        write = file.file.write

        def half(content: bytes) -> None:
            write(content[: len(content) // 2])
            raise FULL

        monkeypatch.setattr(file, "write", half, raising=False)
        return file

    with monkeypatch.context() as full:
        full.setattr(pictures.tempfile, "NamedTemporaryFile", filling)
        with pytest.raises(gr.Error, match="disk of the server is full"):
            refusing(pictures.shown, image)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert Path(pictures.shown(image)["path"]).is_file()


def test_a_full_disk_leaves_a_saved_checkpoint_as_it_was(tmp_path, monkeypatch):
    shutil.copytree(ASSETS / "tiny", tmp_path, dirs_exist_ok=True)
    before = listed(tmp_path)

    def filling(tensors: dict, path: Path, **how) -> None:
        path.write_bytes(b"half of it")
        raise FULL

    monkeypatch.setattr(weights, "save_file", filling)
    with pytest.raises(OSError, match="No space left"):
        weights.write(tmp_path, {}, {"other": 1}, torch.float32)
    assert listed(tmp_path) == before


@pytest.mark.parametrize("quantize", ["auto", "int8"])
def test_a_damaged_checkpoint_is_told_the_old_one_answers_and_nothing_is_written(
    tmp_path, monkeypatch, quantize, image
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damaged = tmp_path / "damaged"
    shutil.copytree(ASSETS / "tiny", damaged)
    file = damaged / weights.WEIGHTS
    with file.open("r+b") as part:
        part.truncate(file.stat().st_size // 2)
    before = listed(tmp_path)

    def load(source: str, *, progress) -> vlm.Engine:
        how = {"quantize": quantize} if source == str(damaged) else {}
        return vlm.load(source, device="cpu", progress=progress, **how)

    models = Models(load, [str(ASSETS / "tiny")], switching=True)
    models.wait()
    models.choose(str(damaged))
    with models._changed:
        assert models._changed.wait_for(lambda: models._error, 30)
    assert models.news()["error"].startswith(f"{file.resolve()} is damaged")
    assert models.names == ("tiny",)
    assert models["tiny"].generate(image, PROMPT).text
    assert listed(tmp_path) == before


def listed(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
