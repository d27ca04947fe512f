"""Google's mask autoencoder, from a stand-in for the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Pair
from hub_server import Answer, HubServer, sha256, stand_in

import vlm
from vlm import mask_file
from vlm.masks import FILE, PUBLISHED, MaskAutoencoder, Masks

NAME = "some/paligemma"
WHERE = f"/spaces/{mask_file.SPACE}/resolve/main/{PUBLISHED}"
CODES = range(16)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small autoencoder in the published format, taken for Google's."""
    torch.manual_seed(1)
    small = MaskAutoencoder(down=(2, 2, 4, 4), code=8, up=(4, 4, 4, 2, 2), reach=1)
    folder = tmp_path / "space"
    folder.mkdir()
    path = folder / PUBLISHED
    np.savez(path, **{name: t.numpy() for name, t in small.state_dict().items()})
    monkeypatch.setattr(mask_file, "SHA256", sha256(path))
    return path


@pytest.fixture
def hub(
    file: Path, pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    server = stand_in(tmp_path, monkeypatch)
    server.repositories[NAME] = {"main": pairs["gemma"].folder}
    server.repositories[mask_file.SPACE] = {"main": file.parent}
    yield server
    server.close()


def load(source: str | Path = NAME, told: list[str] | None = None) -> vlm.Engine:
    tell = None if told is None else told.append
    return vlm.load(source, device="cpu", quantize="none", progress=tell)


def draws_as(engine: vlm.Engine, file: Path) -> bool:
    expected = Masks.load(file).decode(CODES)
    return bool(np.array_equal(engine.masks.decode(CODES), expected))


def test_what_is_loaded_by_name_draws_masks_with_googles_file(hub: HubServer, file):
    assert draws_as(load(), file)
    count = len(hub.asked)
    assert draws_as(load(), file)
    assert WHERE not in [asked.path for asked in hub.asked[count:]]


def test_a_folder_asks_nobody_and_takes_what_is_in_the_cache(hub, file, pairs):
    folder = pairs["gemma"].folder
    assert load(folder).masks is None
    assert hub.asked == []
    load()
    count = len(hub.asked)
    assert draws_as(load(folder), file)
    assert len(hub.asked) == count


@pytest.mark.parametrize("name", [FILE, PUBLISHED])
def test_the_file_beside_the_weights_comes_first(hub, pairs, tmp_path, name):
    folder = tmp_path / "own"
    shutil.copytree(pairs["gemma"].folder, folder)
    own = Masks(MaskAutoencoder(code=4))
    arrays = own.autoencoder.state_dict()
    if name == FILE:
        own.save(folder / name, torch.float32)
    else:
        np.savez(folder / name, **{key: t.numpy() for key, t in arrays.items()})
    assert draws_as(load(folder), folder / name)
    hub.repositories[NAME] = {"main": folder}
    assert draws_as(load(), folder / name)
    assert WHERE not in [asked.path for asked in hub.asked]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_where_it_cannot_be_had_the_model_loads_and_says_so(hub, status):
    def refuse(asked) -> Answer | None:
        return Answer(status) if asked.path == WHERE else None

    hub.refuse, told = refuse, []
    assert load(told=told).masks is None
    (words,) = [words for words in told if "Masks" in words]
    assert f"{PUBLISHED} cannot be had" in words and "beside the weights" in words


def test_a_damaged_file_is_fetched_again_and_never_used(hub, file, tmp_path):
    hub.damage = lambda content: content[:-1] + b"?"
    told: list[str] = []
    # What the weights' own hashes say is another matter.
    folder = tmp_path / "copy"
    shutil.copytree(hub.repositories[NAME]["main"], folder)
    how = {"fetch": True, "tell": told.append}
    assert mask_file.find(folder, **how) is None
    assert "arrived damaged" in told[-1]
    hub.damage = lambda content: content
    found = mask_file.find(folder, **how)
    assert found.read_bytes() == file.read_bytes()
    found.resolve().write_bytes(b"cut short")
    assert mask_file.find(folder, **how).read_bytes() == file.read_bytes()
