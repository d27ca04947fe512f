"""The file of int8 weights: made once, mapped, refused when it is of another source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import load, random_model, write
from test_exact import mapped_from
from test_quantize import copied, random, settled
from torch import Tensor

from vlm import arithmetic, int8_file, quantize
from vlm.quantize import Int8Linear, linears, quantize_rows

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_file_is_made_once_and_mapped(cases, tmp_path, monkeypatch):
    folder = copied(cases["gemma"].folder, tmp_path)
    made = counted(monkeypatch)
    first, again = (settled(folder) for _ in range(2))
    assert len(made) == len(linears(load(folder)))
    file = tmp_path / "model-int8.safetensors"
    expected = linears(load(folder))
    for model in (first, again):
        for name, part in model.named_modules():
            if isinstance(part, Int8Linear):
                rows, scales = quantize_rows(expected[name].weight)
                assert torch.equal(part.weight, rows), name
                assert torch.equal(part.scale, scales), name
                assert mapped_from(part.weight) == str(file)
                assert part.weight.data_ptr() % quantize.PAGE == 0
    assert files(tmp_path) == ["model", "model-int8.safetensors"]


def rewritten(folder: Path, file: Path) -> None:
    write(folder, random_model("gemma", seed=9))


def touched(folder: Path, file: Path) -> None:
    os.utime(folder / "model.safetensors")


def cut_short(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def garbled(folder: Path, file: Path) -> None:
    file.write_bytes(b"no safetensors")


def of_another_model(folder: Path, file: Path) -> None:
    other = write(folder.parent / "other", random_model("gemma2"))
    settled(other)
    (folder.parent / "other-int8.safetensors").rename(file)


def of_another_scheme(folder: Path, file: Path) -> None:
    assert int8_file.SCHEME.encode() in file.read_bytes()
    other = int8_file.SCHEME[::-1].encode()
    file.write_bytes(file.read_bytes().replace(int8_file.SCHEME.encode(), other))


@pytest.mark.parametrize(
    "change",
    [rewritten, touched, cut_short, garbled, of_another_model, of_another_scheme],
)
def test_a_file_of_other_weights_is_refused_and_made_again(
    change: Callable[[Path, Path], None], cases, tmp_path, monkeypatch
):
    folder = copied(cases["gemma"].folder, tmp_path)
    settled(folder)
    change(folder, tmp_path / "model-int8.safetensors")
    made = counted(monkeypatch)
    model, expected = settled(folder), linears(load(folder))
    assert len(made) == len(expected)
    assert torch.equal(
        model.decoder.head.weight, quantize_rows(expected["decoder.head"].weight)[0]
    )
    settled(folder)
    assert len(made) == len(expected)  # not a third time


def test_an_interrupted_write_leaves_nothing(cases, tmp_path, monkeypatch):
    folder = copied(cases["gemma"].folder, tmp_path)

    def interrupted(x: Tensor):
        made.append(x)
        if len(made) == 3:
            raise KeyboardInterrupt
        return quantize_rows(x)

    made: list[Tensor] = []
    monkeypatch.setattr(int8_file, "quantize_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        settled(folder)
    assert files(tmp_path) == ["model"]
    settled(folder)
    assert files(tmp_path) == ["model", "model-int8.safetensors"]


def test_no_more_than_a_chunk_is_in_memory_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_file, "CHUNK", 40 * 10)
    seen = []

    def watched(x: Tensor):
        seen.append(x.numel())
        return quantize_rows(x)

    monkeypatch.setattr(int8_file, "quantize_rows", watched)
    tensors = {"a": random(95, 40), "b": random(3, 40), "c": random(7, 33)}
    path = tmp_path / "some.safetensors"
    int8_file.write(path, tensors, [], "here")
    assert max(seen) == 400 and len(seen) == 12
    held = int8_file.read(path, tensors, [], "here")
    for name, tensor in tensors.items():
        for ours, expected in zip(held[name], quantize_rows(tensor)):
            assert torch.equal(ours, expected), name


def test_a_folder_that_cannot_be_written_has_its_file_in_the_cache(
    cases, tmp_path, own_cache, monkeypatch
):
    folder = copied(cases["gemma"].folder, tmp_path)
    (tmp_path / "model-int8.safetensors").mkdir()  # in the way
    model = settled(folder)
    (file,) = own_cache.rglob("*.safetensors")
    assert mapped_from(model.decoder.head.weight) == str(file)
    made = counted(monkeypatch)
    settled(folder)
    assert not made


def test_where_nothing_can_be_written_it_is_made_in_memory(cases, tmp_path, own_cache):
    folder = copied(cases["gemma"].folder, tmp_path)
    (tmp_path / "model-int8.safetensors").mkdir()
    own_cache.write_text("in the way")
    said: list[str] = []
    model = load(folder)
    arithmetic.settle(model, folder, "int8", progress=said.append)
    assert any("cannot be written" in words for words in said)
    head = linears(load(folder))["decoder.head"].weight
    assert torch.equal(model.decoder.head.weight, quantize_rows(head)[0])


def test_the_file_of_a_hub_revision_lies_beside_the_cache_and_outlives_times(
    cases, tmp_path, own_cache, monkeypatch
):
    snapshots = tmp_path / "hub" / "models--some--name" / "snapshots"
    for revision in ("abc", "def"):
        shutil.copytree(cases["gemma"].folder, snapshots / revision)
        settled(snapshots / revision)
    made = counted(monkeypatch)
    os.utime(snapshots / "abc" / "model.safetensors")
    settled(snapshots / "abc")
    assert not made
    found = sorted(
        path.relative_to(own_cache) for path in own_cache.rglob("*.safetensors")
    )
    home = Path("paliscope/models--some--name/int8")
    assert found == [home / "abc.safetensors", home / "def.safetensors"]
    shutil.copy(own_cache / found[0], own_cache / found[1])
    settled(snapshots / "def")
    assert made  # another revision's


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is quantised from now on."""
    made: list[Tensor] = []

    def quantized(x: Tensor):
        made.append(x)
        return quantize_rows(x)

    monkeypatch.setattr(int8_file, "quantize_rows", quantized)
    return made


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "cache")
