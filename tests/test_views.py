"""Views of attention are transformers' attention, cut, multiplied and followed."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from engines import Pair, picture
from torch import Tensor
from torch.testing import assert_close

import vlm
from vlm.probes import vision as vision_file
from vlm.probes.attention import (
    head_of_largest_variance,
    region_balance,
    relative_attention,
    via_bos,
)
from vlm.probes.rollout import rollout
from vlm.probes.sinks import position_sinks, static_sinks, without_sinks
from vlm.probes.vision import looked_at, patch_attention, vision_attention

PROMPT, GENERAL = "detect cat ; dog", "caption en"
START = "<loc0100><loc0200> cat"
GRID, PATCHES = 4, 16
CLOSE = {"atol": 2e-6, "rtol": 1e-4}


def traced(pair: Pair, images, prompt: str = PROMPT, start: str = "", count: int = 8):
    """A trace of an answer, and transformers' attentions for it: float64 [L, N, T, T].

    The last row is that of the answer's last token.
    """
    trace, how = vlm.Trace(), {"answer": start, "max_tokens": count, "stop": ()}
    steps = list(pair.engine.stream(images, prompt, tap=trace, **how))
    answer = pair.engine.tokenizer.answer_ids(start) + [s.token for s in steps]
    inputs = pair.inputs(images, prompt)
    more = torch.tensor([answer], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for name in ("token_type_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name], torch.ones_like(more)], dim=1)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        oracle = copy.deepcopy(pair.oracle).double()
        seen = oracle(**inputs, output_attentions=True)
    return trace, torch.stack(seen.attentions)[:, 0].double()


def on_grid(rows: Tensor, image: int = 0) -> Tensor:
    part = rows[..., image * PATCHES : (image + 1) * PATCHES]
    return part.reshape(*part.shape[:-1], GRID, GRID).float()


def test_via_bos_is_attention_to_bos_times_that_of_bos(both: Pair) -> None:
    images = [picture(1), picture(2)]
    trace, theirs = traced(both, images, start=START)
    bos = 2 * PATCHES
    for index in (0, 5):
        row = theirs[:, :, trace.where.prefix + index - 1]
        for image in range(2):
            expected = row[..., bos, None] * theirs[:, :, bos]
            found = via_bos(trace, index, image=image)
            assert_close(found, on_grid(expected, image), **CLOSE)


def test_relative_attention_is_the_quotient_of_the_means_over_heads(both: Pair):
    images = [picture(3), picture(4)]
    trace, asked = traced(both, images)
    general, usual = traced(both, images, GENERAL)
    for index, at in ((0, 0), (4, 0), (2, 3)):
        ours = asked[:, :, trace.where.prefix + index - 1].mean(1)
        theirs = usual[:, :, general.where.prefix + at - 1].mean(1)
        ours, theirs = on_grid(ours, 1), on_grid(theirs, 1)
        found = relative_attention(trace, general, index, at=at, image=1)
        # Elsewhere it is not divided by; Gemma 2's window hides the image from token 3.
        seen = theirs > 0.01 * theirs.mean((1, 2), keepdim=True)
        assert at or seen.float().mean() > 0.5
        assert_close(found[seen], (ours / theirs)[seen], atol=1e-5, rtol=1e-2)
        assert torch.isfinite(found).all()
    same = relative_attention(trace, trace, 0)
    assert float(same.median()) == float(same.max()) == 1


def test_relative_attention_stays_finite_where_nobody_looked(both: Pair) -> None:
    trace, _ = traced(both, [picture()])
    general, _ = traced(both, [picture()], GENERAL)
    for layer in range(4):
        usual, asked = general.rows[0][layer], trace.rows[0][layer]
        usual[:, :PATCHES] = torch.linspace(0.02, 0.05, PATCHES)
        usual[:, :3] = torch.tensor([0, 0, 1e-30])
        asked[:, :3] = torch.tensor([0, 0.2, 0.3])
    general.rows[0][2][:, :PATCHES] = 0
    found = relative_attention(trace, general, 0)
    mean = float(general.rows[0][1][0, :PATCHES].mean())
    expected = torch.tensor([0, 0.2, 0.3]) / (0.01 * mean)
    assert_close(found[[0, 1, 3], 0, :3], expected.expand(3, 3))
    assert torch.all(found[:, 0, 0] == 0) and torch.isfinite(found).all()


def test_relative_attention_refuses_traces_that_do_not_fit(both: Pair) -> None:
    everything, some = vlm.Trace(), vlm.Trace(layers=[1])
    for trace in (everything, some):
        list(both.engine.stream(picture(), PROMPT, tap=trace, max_tokens=1, stop=()))
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\], the other \[1\]"):
        relative_attention(everything, some, 0)


def test_region_balance_is_the_mean_over_heads(both: Pair) -> None:
    trace, theirs = traced(both, [picture()])
    row = theirs[:, :, trace.where.prefix + 3].mean(1)
    ends = (0, PATCHES, PATCHES + 1, trace.where.prefix, trace.where.prefix + 4)
    parts = [row[:, a:b].sum(-1) for a, b in zip(ends, ends[1:])]
    assert_close(region_balance(trace, 4), torch.stack(parts, -1).float(), **CLOSE)


def test_the_head_of_largest_variance_is_not_the_one_of_the_largest_mean() -> None:
    flat, peaked = torch.full((2, 3), 0.5), torch.zeros(2, 3)
    peaked[1, 2] = 0.9
    tilted = torch.linspace(0, 0.6, 6).reshape(2, 3)
    maps = torch.stack(
        [torch.stack([flat, tilted, peaked]), torch.stack([tilted, flat, tilted])]
    )
    found = head_of_largest_variance(maps)
    assert found.tolist() == [2, 0] and found.dtype == torch.int64


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("start", ["", START])
@pytest.mark.parametrize("rows", [256, 5])
def test_rollout_is_the_product_of_all_layers(
    both: Pair, monkeypatch: pytest.MonkeyPatch, images: int, start: str, rows: int
) -> None:
    monkeypatch.setattr(import_module("vlm.probes.rollout"), "ROWS", rows)
    trace, theirs = traced(both, [picture(5), picture(6)][:images], start=start)
    whole = torch.eye(theirs.shape[-1], dtype=torch.float64)
    for layer in theirs.mean(1):
        mixed = layer + torch.eye(len(layer))
        whole = mixed / mixed.sum(-1, keepdim=True) @ whole
    for index in (0, 1, trace.answers - 1):
        length = trace.where.prefix + index
        found = rollout(trace, index)
        assert_close(found, whole[length - 1, :length].float(), **CLOSE)
        assert_close(float(found.sum()), 1.0)


def test_rollout_computes_few_rows_of_a_layer_at_a_time(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("vlm.probes.rollout"), "ROWS", 5)
    trace, _ = traced(both, [picture()])
    computed: dict[int, list[int]] = {}
    for (tower, layer), weights in list(trace.passes.items()):

        def counted(rows, weights=weights, layer=layer):
            computed.setdefault(layer, []).extend(range(rows.start, rows.stop))
            assert rows.stop - rows.start <= 5
            return weights(rows)

        trace.passes[tower, layer] = counted
    rollout(trace, 3)
    everything = list(range(trace.where.prefix))
    assert computed == {layer: everything for layer in range(4)}


def test_rollout_needs_all_layers_and_a_token_that_there_is(both: Pair) -> None:
    some = vlm.Trace(layers=[0, 2])
    list(both.engine.stream(picture(), PROMPT, tap=some, max_tokens=2, stop=()))
    with pytest.raises(ValueError, match=r"all 4 layers, not \[0, 2\]"):
        rollout(some, 0)
    with pytest.raises(ValueError, match="token 2 is not in this trace"):
        rollout(some, 2)


@pytest.mark.parametrize("rows", [256, 5])
def test_vision_attention_is_a_row_and_looked_at_a_column_of_the_oracles(
    both: Pair, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(vision_file, "ROWS", rows)
    trace, images = vlm.Trace(towers=("decoder", "vision")), [picture(7), picture(8)]
    list(both.engine.stream(images, PROMPT, tap=trace, max_tokens=1, stop=()))
    tower = copy.deepcopy(both.oracle.model.vision_tower).double()
    pixels = both.inputs(images[:1], PROMPT)["pixel_values"].double()
    with torch.no_grad():
        theirs = tower(pixels, output_attentions=True).attentions
    for layer, weights in enumerate(theirs):
        for patch in range(PATCHES):
            row, column = weights[0, :, patch], weights[0, :, :, patch]
            found = vision_attention(trace, patch, layer=layer)
            assert_close(found, on_grid(row), **CLOSE)
            found = patch_attention(both.engine, images[0], patch)[layer]
            assert_close(found, on_grid(row), **CLOSE)
            found = looked_at(trace, patch, layer=layer)
            assert_close(found, on_grid(column), **CLOSE)
    last = vision_attention(trace, 3, layer=-1)
    assert_close(last, on_grid(theirs[-1][0, :, 3]), **CLOSE)


def test_vision_attention_says_what_is_missing(both: Pair) -> None:
    blind, trace = vlm.Trace(), vlm.Trace(towers=("decoder", "vision"))
    for one in (blind, trace):
        list(both.engine.stream(picture(), PROMPT, tap=one, max_tokens=1, stop=()))
    for view in (vision_attention, looked_at):
        with pytest.raises(ValueError, match=r'towers=\("decoder", "vision"\)'):
            view(blind, 0, layer=0)
        with pytest.raises(ValueError, match="layer 2 of 2"):
            view(trace, 0, layer=2)
        for patch in (-1, 16):
            with pytest.raises(ValueError, match=f"patch {patch} of 16"):
                patch_attention(both.engine, picture(), patch)
            with pytest.raises(ValueError, match=f"patch {patch} of 16"):
                view(trace, patch, layer=0)


def test_only_one_row_of_the_vision_tower_is_computed(both: Pair) -> None:
    trace, asked = vlm.Trace(towers=("vision",)), []
    list(both.engine.stream(picture(), PROMPT, tap=trace, max_tokens=1, stop=()))
    weights = trace.passes["vision", 1]

    def counted(rows):
        asked.append(rows.stop - rows.start)
        return weights(rows)

    trace.passes["vision", 1] = counted
    vision_attention(trace, 9, layer=1)
    assert set(asked) == {1}


def test_position_sinks_are_the_long_embeddings_of_this_checkpoint(both: Pair) -> None:
    engine = copy.copy(both.engine)
    engine.model = copy.deepcopy(both.engine.model)
    assert not position_sinks(engine).any()
    table = engine.model.vision.positions.weight.data
    typical = float(table.norm(dim=-1).median())
    # One dimension holds it, as in published checkpoints.
    table[6, 3], table[13, 3] = 8 * typical, -4 * typical
    for factor, expected in ((3.0, {(1, 2), (3, 1)}), (6.0, {(1, 2)})):
        found = position_sinks(engine, factor=factor)
        assert found.shape == (GRID, GRID) and found.dtype == torch.bool
        assert {tuple(place) for place in found.nonzero().tolist()} == expected


def test_a_static_sink_is_hot_for_most_tokens_not_for_one() -> None:
    dice = torch.Generator().manual_seed(0)
    maps = 1 + torch.rand(7, 3, 2, 4, 5, generator=dice)
    maps[:, :, :, 2, 4] += 20  # whoever looks
    maps[3, :, :, 0, 1] += 500  # for one token only
    maps[:, :, :, 3, 0] += 8  # not that much
    maps *= torch.logspace(-4, 0, 7)[:, None, None, None, None]  # how much of it
    assert static_sinks(maps).nonzero().tolist() == [[2, 4]]
    assert static_sinks(maps[:, 0, 0]).nonzero().tolist() == [[2, 4]]
    assert static_sinks(maps, factor=2).nonzero().tolist() == [[2, 4], [3, 0]]
    assert not static_sinks(maps, factor=15).any()


def test_tokens_that_look_sharply_at_different_places_make_no_sink() -> None:
    maps = torch.full((5, 4, 5), 1e-9)
    for token in range(5):
        maps[token, token % 4, token] = 0.2
        maps[token, 1, 2] = 1e-4  # far above the median patch, and yet nothing
    assert not static_sinks(maps).any()
    assert not static_sinks(torch.zeros(3, 4, 5)).any()


def test_without_sinks_the_rest_sums_to_one_and_what_went_is_told() -> None:
    dice = torch.Generator().manual_seed(1)
    maps = 0.1 * torch.rand(2, 3, 4, 5, generator=dice)
    sinks = torch.zeros(4, 5, dtype=torch.bool)
    sinks[2, 4] = sinks[0, 1] = True
    maps[0, 0] = 0
    maps[0, 1] = 0
    maps[0, 1, 2, 4] = 0.3
    found, removed = without_sinks(maps, sinks)
    assert torch.all(found[..., sinks] == 0)
    for layer in range(2):
        for head in range(3):
            one = maps[layer, head].double()
            gone = float(one[2, 4] + one[0, 1])
            whole = float(one.sum())
            share = gone / whole if whole else 0
            assert float(removed[layer, head]) == pytest.approx(share, abs=1e-6)
            if gone == whole:
                assert not found[layer, head].any()
                continue
            rest = one / (whole - gone)
            rest[2, 4] = rest[0, 1] = 0
            assert_close(found[layer, head], rest.float())
    assert removed[0, :2].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"\(4, 5\) for maps of \(5, 4\)"):
        without_sinks(maps.transpose(-1, -2), sinks)
