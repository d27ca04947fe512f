"""What the trace keeps is what the model did: the oracle's attentions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engines import Pair, picture
from torch import Tensor

import vlm
from vlm.layers import attention_weights
from vlm.probes import (
    attention_shares,
    image_attention,
    prompt_attention,
    prompt_shares,
)
from vlm.tap import Tap, Weights

PROMPT = "detect cat ; dog"
START = "<loc0100><loc0200> cat"


def oracle_attentions(pair: Pair, images, answer_ids: list[int]) -> Tensor:
    """All of transformers' rows over image, prompt and answer, [L, N, T, T]."""
    inputs = pair.inputs(images, PROMPT)
    more = torch.tensor([answer_ids], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for name in ("token_type_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name], torch.ones_like(more)], dim=1)
    with torch.no_grad():
        seen = pair.oracle(**inputs, output_attentions=True)
    return torch.stack(seen.attentions)[:, 0]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_rows_of_the_answer_are_the_oracles(both: Pair) -> None:
    trace, image = vlm.Trace(), picture()
    steps = list(both.engine.stream(image, PROMPT, tap=trace, max_tokens=12, stop=()))
    theirs = oracle_attentions(both, [image], [s.token for s in steps])
    for step in steps:
        before = trace.where.prefix + step.index - 1
        close(trace.answer_row(step.index), theirs[:, :, before, : before + 1])
    assert trace.answers == len(steps)


def test_rows_of_a_forced_start_are_the_oracles(both: Pair) -> None:
    trace, image = vlm.Trace(), picture(1)
    how = {"answer": START, "max_tokens": 4, "stop": ()}
    steps = list(both.engine.stream(image, PROMPT, tap=trace, **how))
    forced = both.engine.tokenizer.answer_ids(START)
    theirs = oracle_attentions(both, [image], forced + [s.token for s in steps])
    assert trace.answers == len(forced) + 4
    for index in range(trace.answers):
        before = trace.where.prefix + index - 1
        close(trace.answer_row(index), theirs[:, :, before, : before + 1])


def test_rows_of_the_prompt_are_the_oracles_and_come_on_demand(both: Pair) -> None:
    trace, image = vlm.Trace(), picture(2)
    list(both.engine.stream(image, PROMPT, tap=trace, answer=START, max_tokens=2))
    forced = both.engine.tokenizer.answer_ids(START)
    theirs = oracle_attentions(both, [image], forced)
    prefix = trace.where.prefix
    for position in range(trace.where.prompt):
        row = theirs[:, :, trace.where.image + position, :prefix]
        close(trace.prompt_row(position), row)
    some = theirs[:, :, trace.where.image + 1 : prefix, :prefix]
    close(trace.prompt_rows(range(1, trace.where.prompt)), some.movedim(2, 0))
    for none in (range(2, 2), range(1, trace.where.prompt + 1), range(-1, 1)):
        with pytest.raises(ValueError, match="was asked for"):
            trace.prompt_rows(none)


def test_maps_are_the_image_part_patch_by_patch(both: Pair) -> None:
    trace, images = vlm.Trace(), [picture(3), picture(4)]
    (step,) = both.engine.stream(images, PROMPT, tap=trace, max_tokens=1, stop=())
    theirs = oracle_attentions(both, images, [])[:, :, -1]
    grid, patches = 4, 16
    for number in range(2):
        part = theirs[..., number * patches : (number + 1) * patches]
        part = part.reshape(*part.shape[:2], grid, grid)
        close(image_attention(trace, step.index, image=number), part)
        close(image_attention(trace, step.index, layer=-1, image=number), part[-1])
    at = trace.where.image + 2
    full = oracle_attentions(both, images, [])[:, :, at, :patches]
    close(prompt_attention(trace, 2).flatten(-2), full)


def test_shares_say_where_the_attention_lay(both: Pair) -> None:
    trace, image = vlm.Trace(), picture()
    steps = list(both.engine.stream(image, PROMPT, tap=trace, max_tokens=5, stop=()))
    row = oracle_attentions(both, [image], [s.token for s in steps])[:, :, -2, :-1]
    bos = trace.where.image
    sums = [row[..., :bos], row[..., bos : bos + 1]]
    sums += [row[..., bos + 1 : trace.where.prefix], row[..., trace.where.prefix :]]
    close(attention_shares(trace, 4), torch.stack([s.sum(-1) for s in sums], -1))
    assert torch.all(prompt_shares(trace, 1)[..., 3] == 0)


def test_only_the_layers_asked_for_are_kept(both: Pair) -> None:
    everything, some, image = vlm.Trace(), vlm.Trace(layers=[-1, 1]), picture()
    for trace in (everything, some):
        list(both.engine.stream(image, PROMPT, tap=trace, max_tokens=3, stop=()))
    assert some.layers == [1, 3]
    close(some.answer_row(2), everything.answer_row(2)[[1, 3]])
    close(some.prompt_row(0), everything.prompt_row(0)[[1, 3]])


def test_looking_changes_nothing(both: Pair) -> None:
    image = picture(5)
    how = {"max_tokens": 8, "stop": ()}
    bare = list(both.engine.stream(image, PROMPT, **how))
    seen = list(both.engine.stream(image, PROMPT, tap=vlm.Trace(), **how))
    assert bare == seen


@pytest.mark.parametrize("threads", [False, True])
def test_two_traces_at_the_same_time_are_as_each_alone(both: Pair, threads: bool):
    images, prompts = (picture(6), picture(7)), (PROMPT, "caption en")
    how = {"max_tokens": 12, "stop": ()}

    def record(image, prompt, trace) -> Iterator:
        yield from both.engine.stream(image, prompt, tap=trace, **how)

    alone, together = ([vlm.Trace(), vlm.Trace()] for _ in range(2))
    for asked in zip(images, prompts, alone):
        list(record(*asked))
    streams = [record(*asked) for asked in zip(images, prompts, together)]
    if threads:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(list, streams))
    else:
        list(zip(*streams, strict=True))
    for one, other in zip(alone, together):
        assert one.answers == other.answers == 12
        for index in range(12):
            assert torch.equal(one.answer_row(index), other.answer_row(index))
        assert torch.equal(one.prompt_row(1), other.prompt_row(1))


def test_weights_from_the_tap_times_values_are_the_attention(both: Pair) -> None:
    """Honesty: what is shown is what was used, in both towers."""
    model, shown = both.engine.model, {}

    class Keep(Tap):
        towers = ("decoder", "vision")

        def attention(self, tower: str, layer: int, weights: Weights) -> None:
            shown[tower, layer] = weights(slice(None))

    used, hooks = {}, []
    for tower, blocks in (
        ("decoder", model.decoder.blocks),
        ("vision", model.vision.encoder.blocks),
    ):
        for layer, block in enumerate(blocks):
            key, attention = (tower, layer), block.attention

            def values(_, __, out, key=key):
                used.setdefault(key, []).append(out)

            def result(_, given, key=key):
                used[key].append(given[0])

            hooks.append(attention.v.register_forward_hook(values))
            hooks.append(attention.out.register_forward_pre_hook(result))
    try:
        list(both.engine.stream(picture(), PROMPT, tap=Keep(), max_tokens=1, stop=()))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(shown) == len(used) == 6
    for (tower, _), weights in shown.items():
        v, out = used[tower, _]
        heads = weights.shape[1]
        size = out.shape[-1] // heads
        v = v.unflatten(-1, (-1, size)).transpose(1, 2)
        v = v.repeat_interleave(heads // v.shape[1], dim=1)
        close((weights @ v).transpose(1, 2).flatten(2), out)


def test_the_vision_tower_is_traced_where_asked(both: Pair) -> None:
    image, trace = picture(), vlm.Trace(towers=("vision",))
    both.engine.look(image)  # kept features must not keep the tower from running
    list(both.engine.stream(image, PROMPT, tap=trace, max_tokens=1, stop=()))
    with torch.no_grad():
        tower = both.oracle.model.vision_tower
        pixels = both.inputs([image], PROMPT)["pixel_values"]
        theirs = tower(pixels, output_attentions=True).attentions
    assert set(trace.passes) == {("vision", layer) for layer in range(len(theirs))}
    for layer, weights in enumerate(theirs):
        close(trace.passes["vision", layer](slice(None)), weights)


def test_a_trace_holds_one_request_and_knows_its_ends(both: Pair) -> None:
    trace = vlm.Trace()
    with pytest.raises(ValueError, match="prompt token 0 of 0"):
        trace.prompt_row(0)
    list(both.engine.stream(picture(), PROMPT, tap=trace, max_tokens=2, stop=()))
    with pytest.raises(ValueError, match=r"token 2 is not .* \(0 to 1\)"):
        trace.answer_row(2)
    with pytest.raises(ValueError, match="image 1 of 1"):
        image_attention(trace, 0, image=1)
    with pytest.raises(ValueError, match="one request"):
        list(both.engine.stream(picture(), PROMPT, tap=trace, max_tokens=2))
    with pytest.raises(ValueError, match="layers .9. of 4"):
        far = vlm.Trace(layers=[9])
        list(both.engine.stream(picture(), PROMPT, tap=far, max_tokens=2))


def test_a_generated_tokens_attention_is_computed_once(both: Pair, monkeypatch) -> None:
    rows = []

    def counted(q, k, *rest, **rule):
        rows.append(q.shape[2])
        return attention_weights(q, k, *rest, **rule)

    monkeypatch.setattr("vlm.gemma.attention_weights", counted)
    trace = vlm.Trace()
    list(both.engine.stream(picture(), "detect cat", max_tokens=4, stop=(), tap=trace))
    depth = both.engine.config.decoder.depth
    assert rows.count(1) == 3 * depth  # the first token's row is one of the prefix's
