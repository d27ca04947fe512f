"""An edit changes what it says and nothing else."""

from __future__ import annotations

import pytest
import torch
from oracle import Case, batch
from torch import Tensor
from torch.testing import assert_close

from vlm.edit import Edit
from vlm.tap import Tap

CLOSE = {"atol": 5e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def run(case: Case, **how) -> Tensor:
    asked = batch(case.model, answer=4)
    return case.model(asked.ids, asked.features(case.model), **asked.ours(), **how)


class NoHead(Edit):
    def __init__(self, layer: int, head: int) -> None:
        self.layer, self.head = layer, head

    def heads(self, layer, out):
        if layer != self.layer:
            return out
        keep = torch.ones(out.shape[1], 1, 1)
        keep[self.head] = 0
        return out * keep


def test_a_head_that_gives_nothing_is_one_whose_weights_out_are_zero(any_case: Case):
    attention = any_case.model.decoder.blocks[1].attention
    edited = run(any_case, edit=NoHead(1, 0))
    before = run(any_case)
    kept = attention.out.weight.data.clone()
    attention.out.weight.data[:, : attention.head_size] = 0
    expected = run(any_case)
    attention.out.weight.data.copy_(kept)
    assert_close(edited, expected, **CLOSE)
    assert float((edited - before).abs().max()) > 1e-2


class Swap(Edit):
    """Takes the residual stream of one place from another pass."""

    def __init__(self, layer: int, states: Tensor) -> None:
        self.layer, self.states = layer, states

    def residual(self, layer, x):
        return self.states if layer == self.layer else x


class Residuals(Tap):
    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def residual(self, tower, layer, x):
        self.states.append(x)


@pytest.mark.parametrize("layer", [-1, 1])
def test_states_that_are_put_in_decide_all_that_follows(any_case: Case, layer: int):
    asked, other = batch(any_case.model, answer=4), batch(any_case.model, answer=4)
    other.pixels.neg_()
    model, seen = any_case.model, Residuals()
    expected = model(other.ids, other.features(model), **other.ours(), tap=seen)
    states = seen.states[layer]
    if layer == -1:
        states = model.embed(other.ids, other.features(model))
    edit = Swap(layer, states)
    edited = model(asked.ids, asked.features(model), **asked.ours(), edit=edit)
    assert_close(edited, expected, **CLOSE)
    assert float((edited - run(any_case)).abs().max()) > 1e-2


class Blind(Edit):
    """From one layer on, nobody sees one position but itself."""

    def __init__(self, position: int) -> None:
        self.position = position

    def mask(self, layer, mask):
        mask = mask.clone()
        others = torch.arange(mask.shape[2]) != self.position
        mask[:, :, others, self.position] = False
        return mask


def test_who_is_not_seen_changes_nothing_elsewhere(any_case: Case):
    asked, edit = batch(any_case.model, answer=4), Blind(3)
    features = asked.features(any_case.model)
    before = any_case.model(asked.ids, features, **asked.ours(), edit=edit)
    features[:, 3] += 5
    after = any_case.model(asked.ids, features, **asked.ours(), edit=edit)
    others = torch.arange(before.shape[1]) != 3
    assert_close(after[:, others], before[:, others], **CLOSE)
    assert float((after[:, 3] - before[:, 3]).abs().max()) > 1e-2


class Products(Tap):
    """What heads gave, and the weights times what they read."""

    def __init__(self) -> None:
        self.weights, self.pairs = [], []

    def attention(self, tower, layer, weights):
        self.weights.append(weights(slice(None)))

    def heads(self, tower, layer, values, out):
        shared = values.repeat_interleave(out.shape[1] // values.shape[1], 1)
        self.pairs.append((out, self.weights[-1] @ shared))


def test_the_tap_is_shown_what_heads_read_and_give(any_case: Case):
    seen = Products()
    asked = batch(any_case.model, answer=4)
    features = asked.features(any_case.model)
    any_case.model(asked.ids, features, **asked.ours(), tap=seen)
    assert len(seen.pairs) == any_case.model.config.decoder.depth
    for out, product in seen.pairs:
        assert_close(out, product, **CLOSE)
