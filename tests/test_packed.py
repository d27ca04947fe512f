"""Packed int8 weights against integers counted one by one, and against plain ones."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracle import Batch, batch, load, random_model, write
from test_exact import mapped_from
from torch import Tensor, nn

from vlm import arithmetic, column_mlp, int8_file, packed, quantize
from vlm.layers import GatedMLP
from vlm.packed import MIDDLE, PIECE, STEP, Packed, pack, pieces
from vlm.paligemma import PaliGemma
from vlm.quantize import MANY, PAGE, Int8Linear, Rows, linears, quantize_rows

CPU = Path("/proc/cpuinfo")
pytestmark = pytest.mark.skipif(
    not CPU.exists() or "vnni" not in CPU.read_text(),
    reason="this processor does not multiply in int8, or is not asked to",
)


def test_it_works_where_there_are_such_instructions():
    assert packed.works()


@pytest.mark.parametrize("rows", [1, 31, 1152, 1536, 2000, 2560, 4304, 16384, 36864])
def test_pieces_are_all_rows_in_order_and_of_about_one_size(rows):
    parts = pieces(rows)
    assert [i for part in parts for i in range(rows)[part]] == [*range(rows)]
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= 1.5 * PIECE and min(sizes) >= min(rows, 0.7 * max(sizes))
    assert not any(part.start % STEP for part in parts)
    assert all(pieces(size) == [slice(0, size)] for size in sizes)


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("out, width", [(31, 320), (PIECE, 64), (2 * PIECE + 96, 333)])
def test_integers_are_multiplied_exactly(rows, out, width):
    x, weight = integers(rows, width), integers(out, width)
    x[0], weight[0] = 127, 127
    data = pack(weight.to(torch.int8))
    weights = Packed(data, torch.ones(out, 1), width)
    got = weights.product(unsigned(x), slice(None))
    assert torch.equal(got.double(), x.double() @ weight.double().T)
    assert sum(piece.size for piece in packed.layouts(out, width)) == len(data)


def test_a_part_is_some_columns_of_the_whole_and_has_its_scales():
    x, weight = integers(20, 100), integers(3 * PIECE + 8, 100)
    scale = torch.rand(len(weight), 1) + 0.5
    weights = Packed(pack(weight.to(torch.int8)), scale, 100)
    whole = weights.product(unsigned(x), slice(None))
    expected = (x.double() @ weight.double().T) * scale.double().T
    torch.testing.assert_close(whole.double(), expected, rtol=1e-6, atol=0)
    assert len(pieces(len(weight))) == 3
    for part in pieces(len(weight)):
        assert torch.equal(weights.product(unsigned(x), part), whole[:, part])


@pytest.mark.parametrize("rows", [1, MANY - 1, MANY, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_the_same_with_and_without(rows, bias, monkeypatch):
    linear = nn.Linear(96, 2 * PIECE + 40, bias=bias).requires_grad_(False)
    plain, both = layers(linear)
    x = 3 * torch.randn(2, rows, 96)[:1]
    asked = counted(monkeypatch)
    expected = plain(x)
    assert not asked
    torch.testing.assert_close(both(x), expected, rtol=1e-6, atol=1e-6)
    assert bool(asked) == (rows >= MANY)
    told = both.received(x[0])
    for part in pieces(2 * PIECE + 40):
        got = both.columns(told, part)
        torch.testing.assert_close(got, expected[0, :, part], rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_a_packed_layer_as_through_a_plain_one():
    plain, both = layers(nn.Linear(96, 200).requires_grad_(False))
    x, y = (torch.ones(1, 30, 96).requires_grad_() for _ in range(2))
    (plain(x) ** 2).sum().backward()
    (both(y) ** 2).sum().backward()
    assert x.grad.abs().sum() > 0 and torch.equal(x.grad, y.grad)


@torch.no_grad()
def test_a_copied_layer_follows_its_own_weights():
    _, both = layers(nn.Linear(96, 200).requires_grad_(False))
    x, other = torch.randn(30, 96), copy.deepcopy(both)
    torch.testing.assert_close(other(x), both(x), rtol=1e-6, atol=1e-6)
    other.weight.zero_()
    assert not (other(x) - other.bias).any() and (both(x) - both.bias).any()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 300])
def test_an_mlp_by_columns_of_packed_layers(rows):
    whole, found = GatedMLP(64, 3 * PIECE), []
    x = 3 * torch.randn(1, rows, 64)
    for act in (Rows, with_packed):
        model = nn.ModuleDict({"mlp": copy.deepcopy(whole)})
        made = {k: act(*quantize_rows(p.weight)) for k, p in linears(model).items()}
        quantize.swap(model, made)
        column_mlp.swap(model)
        found.append(model["mlp"](x))
    assert found[0].std() > 0.01
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_model_answers_the_same_from_a_file_that_holds_some_packed(
    tmp_path, monkeypatch
):
    folder = write(tmp_path / "model", random_model("gemma"))
    asked = batch(load(folder), prompts=(MANY,), answer=3)
    plain = logits(settled(folder), asked)
    monkeypatch.setattr(arithmetic, "WIDE", 1)
    model = settled(folder)
    layers = {n: p for n, p in model.named_modules() if isinstance(p, Int8Linear)}
    for name, layer in layers.items():
        assert (layer.packed is None) == (name == "decoder.head"), name
        if layer.packed is not None:
            file = mapped_from(layer.packed.data)
            assert file == str(tmp_path / "model-int8.safetensors")
            assert layer.packed.data.data_ptr() % PAGE == 0
    used = counted(monkeypatch)
    gc.collect()
    torch.testing.assert_close(logits(model, asked), plain, rtol=1e-4, atol=1e-4)
    assert len(used) > 5


def test_a_file_is_made_again_where_weights_are_packed_otherwise(tmp_path, monkeypatch):
    folder = write(tmp_path / "model", random_model("gemma"))
    monkeypatch.setattr(arithmetic, "WIDE", 1)
    settled(folder)
    made, act = [], packed.pack
    monkeypatch.setattr(packed, "pack", lambda rows: made.append(rows) or act(rows))
    settled(folder)
    assert not made
    here = packed.layout_of
    monkeypatch.setattr(packed, "layout_of", lambda *s: here(*s)._replace(name="other"))
    settled(folder)
    assert made
    made.clear()
    settled(folder)
    assert not made
    monkeypatch.setattr(packed, "works", lambda: False)  # by a PyTorch without all this
    model = settled(folder)
    assert not made
    assert all(p.packed is None for p in model.modules() if isinstance(p, Int8Linear))


def test_no_more_than_a_piece_is_in_memory_while_it_is_written(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(int8_file, "CHUNK", 1)
    monkeypatch.setattr(packed, "pack", lambda rows: seen.append(rows) or pack(rows))
    matrices = {"a": torch.randn(2 * PIECE + 16, 40), "b": torch.randn(96, 40)}
    path = tmp_path / "some.safetensors"
    int8_file.write(path, matrices, ["a"], "here")
    assert [len(rows) for rows in seen] == [PIECE + STEP, PIECE + 16 - STEP]
    held = int8_file.read(path, matrices, ["a"], "here")
    expected = Rows(*quantize_rows(matrices["a"]))
    assert torch.equal(held["a"].packed.data, pack(expected.weight))
    x = integers(20, 40)
    got = held["a"].packed.product(unsigned(x), slice(None))
    sums = (x.double() @ expected.weight.double().T) * expected.scale.double().T
    torch.testing.assert_close(got.double(), sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("missing", ["library", "function", "order", "machine"])
def test_what_cannot_be_had_or_errs_is_not_used(missing, monkeypatch):
    def refused(*given: object) -> None:
        raise OSError("no such library")

    def wrong(weight: Tensor) -> Tensor:
        return packed._bytes(packed._prepacked(weight.flip(0)))

    name, replaced = {
        "library": ("_library", refused),
        "function": ("_library", object),
        "order": ("pack", wrong),
        "machine": ("platform", SimpleNamespace(machine=lambda: "arm64")),
    }[missing]
    assert packed.works.__wrapped__()
    monkeypatch.setattr(packed, name, replaced)
    assert not packed.works.__wrapped__()


def integers(*shape: int) -> Tensor:
    dice = torch.Generator().manual_seed(shape[0])
    return torch.randint(-127, 128, shape, generator=dice)


def unsigned(x: Tensor) -> Tensor:
    return (x + MIDDLE).to(torch.uint8)


def with_packed(weight: Tensor, scale: Tensor) -> Rows:
    return Rows(weight, scale, Packed(pack(weight), scale, weight.shape[1]))


def layers(linear: nn.Linear) -> list[Int8Linear]:
    """Without packed weights, and with them."""
    rounded = quantize_rows(linear.weight)
    return [
        Int8Linear(rows.weight, rows.scale, linear.bias, rows.packed)
        for rows in (Rows(*rounded), with_packed(*rounded))
    ]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each product of packed weights."""
    asked, act = [], Packed.product

    def product(weights: Packed, rows: Tensor, part: slice) -> Tensor:
        asked.append(len(rows))
        return act(weights, rows, part)

    monkeypatch.setattr(Packed, "product", product)
    return asked


def settled(folder: Path) -> PaliGemma:
    model = load(folder)
    assert arithmetic.settle(model, folder, "int8") == "int8"
    return model


def logits(model: PaliGemma, asked: Batch) -> Tensor:
    return model(asked.ids, model.look(asked.pixels), **asked.ours())[0]
