"""Joined int8 layers against the same layers one by one."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracle import Batch, batch, load, write
from test_quantize import wide_model
from torch import Tensor, nn

from vlm import arithmetic, joined, quantize
from vlm.cache import KVCache
from vlm.column_mlp import ColumnGatedMLP
from vlm.gemma import Attention
from vlm.joined import Joined, JoinedAttention, JoinedEncoderAttention, join
from vlm.paligemma import PaliGemma
from vlm.quantize import Int8Linear, Rows, linears, quantize_rows
from vlm.siglip import EncoderAttention

SIZES = (40, 16, 24)
WIDTH = 64
SHAPE = {"width": WIDTH, "heads": 4, "kv_heads": 2, "head_size": 16}
SHAPE |= {"attention_bias": False, "query_scale": 1, "attention_softcap": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose matrices fill whole pages, as real ones do."""
    return write(tmp_path_factory.mktemp("joined") / "model", wide_model("gemma"))


@pytest.fixture
def model(folder: Path) -> PaliGemma:
    model = load(folder)
    assert arithmetic.settle(model, folder, "int8") == "int8"
    return model


def test_a_row_gets_what_each_layer_makes_of_it():
    layers = some()
    row = 3 * torch.randn(1, 1, WIDTH)
    got = join(*layers)(row).split(SIZES, -1)
    for ours, layer in zip(got, layers, strict=True):
        assert ours.std() > 0.1 and torch.equal(ours, layer(row)[0])


def another_order(layers: list[Int8Linear]) -> list[nn.Module]:
    return [layers[1], layers[0], layers[2]]


def not_all(layers: list[Int8Linear]) -> list[nn.Module]:
    return [layers[0], layers[2]]


def weights_elsewhere(layers: list[Int8Linear]) -> list[nn.Module]:
    return [*layers[:2], Int8Linear(layers[2].weight.clone(), layers[2].scale, None)]


def scales_elsewhere(layers: list[Int8Linear]) -> list[nn.Module]:
    return [*layers[:2], Int8Linear(layers[2].weight, layers[2].scale.clone(), None)]


def with_a_bias(layers: list[Int8Linear]) -> list[nn.Module]:
    last = layers[2]
    return [*layers[:2], Int8Linear(last.weight, last.scale, torch.ones(SIZES[2]))]


def of_another_kind(layers: list[Int8Linear]) -> list[nn.Module]:
    return [*layers[:2], nn.Linear(WIDTH, SIZES[2], bias=False)]


@pytest.mark.parametrize(
    "changed",
    [
        another_order,
        not_all,
        weights_elsewhere,
        scales_elsewhere,
        with_a_bias,
        of_another_kind,
    ],
)
def test_what_does_not_lie_together_is_not_joined(changed):
    assert join(*some()) is not None
    assert join(*changed(some())) is None


@torch.no_grad()
def test_a_model_says_the_same_joined_and_not(model, monkeypatch):
    asked = batch(model, prompts=(9,), answer=0)
    used = counted(monkeypatch)
    cache = read(model, asked)
    assert not used  # many rows are not joined
    ours = said(model, cache)
    assert used == [1] * 2 * len(model.decoder.blocks) * 3
    for block in model.decoder.blocks:
        assert type(block.attention) is JoinedAttention
        assert type(block.mlp) is ColumnGatedMLP
        block.attention.joined = block.mlp.joined = None
    expected = said(model, read(model, asked))
    assert len(used) == 2 * len(model.decoder.blocks) * 3
    assert expected.std() > 0.1 and torch.equal(ours, expected)


def test_gradients_pass_as_through_the_layers_one_by_one(model, monkeypatch):
    used = counted(monkeypatch)
    x = torch.randn(1, 1, 512).requires_grad_()
    model.decoder.blocks[0].mlp(x).sum().backward()
    assert not used and x.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("least", [1, 1 << 30])  # weights of what is packed: all, none
def test_q_k_and_v_of_several_rows_are_rounded_once(folder, least, monkeypatch):
    monkeypatch.setattr(arithmetic, "WIDE", least)
    model = load(folder)
    arithmetic.settle(model, folder, "int8")
    asked = batch(model, prompts=(20,), answer=2)
    rounded, act = [], quantize.quantize_rows
    monkeypatch.setattr(
        quantize, "quantize_rows", lambda x: rounded.append(len(x)) or act(x)
    )
    ours = model(asked.ids, model.look(asked.pixels), **asked.ours())
    once = len(rounded)
    kinds = {Attention: JoinedAttention, EncoderAttention: JoinedEncoderAttention}
    parts = [each for each in model.modules() if type(each) in kinds.values()]
    assert {type(each) for each in parts} == {*kinds.values()}
    for plain, kind in kinds.items():
        monkeypatch.setattr(kind, "project", plain.project)
    expected = model(asked.ids, model.look(asked.pixels), **asked.ours())
    assert len(rounded) - once == once + 2 * len(parts)
    assert expected.std() > 0.1 and torch.equal(ours, expected)


def test_what_is_packed_and_what_is_not_are_rounded_apart():
    attention = Attention(SimpleNamespace(**SHAPE))
    model = nn.ModuleDict({"one": attention, "other": copy.deepcopy(attention)})
    made = {k: Rows(*quantize_rows(p.weight)) for k, p in linears(model).items()}
    made["other.q"] = made["other.q"]._replace(packed="some")
    quantize.swap(model, made)
    joined.swap(model)
    assert type(model["one"]) is JoinedAttention
    assert type(model["other"]) is Attention


@torch.no_grad()
def test_a_copied_model_follows_its_own_weights(model, monkeypatch):
    other = copy.deepcopy(model)
    used = counted(monkeypatch)
    row = torch.randn(1, 1, 512)
    mlp, expected = other.decoder.blocks[0].mlp, model.decoder.blocks[0].mlp(row)
    assert len(used) == 1
    assert torch.equal(mlp(row), expected)
    mlp.up.weight.zero_()
    assert not mlp(row).any() and torch.equal(
        model.decoder.blocks[0].mlp(row), expected
    )
    assert len(used) == 2  # the copy's is gone


def some() -> list[Int8Linear]:
    dice = torch.Generator().manual_seed(2)
    weight = torch.randn(sum(SIZES), WIDTH, generator=dice)
    weight *= torch.linspace(0.1, 3, len(weight))[:, None]
    parts = (each.split(SIZES) for each in quantize_rows(weight))
    return [Int8Linear(rows, scale, None) for rows, scale in zip(*parts)]


def read(model: PaliGemma, asked: Batch) -> KVCache:
    length = asked.ids.shape[1]
    cache = KVCache(len(model.decoder.blocks), length + 3)
    model(asked.ids, model.look(asked.pixels), cache=cache, **asked.ours())
    return cache


def said(model: PaliGemma, cache: KVCache) -> Tensor:
    """The logits of three tokens, one after the other."""
    tokens = [torch.tensor([[token]]) for token in (5, 9, 7)]
    return torch.cat([model(token, cache=cache) for token in tokens])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each product of joined layers."""
    used, act = [], Joined.__call__

    def product(joined: Joined, x: Tensor) -> Tensor:
        used.append(x.numel() // x.shape[-1])
        return act(joined, x)

    monkeypatch.setattr(Joined, "__call__", product)
    return used
