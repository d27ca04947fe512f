"""Explanations by gradient equal those from the full graph of transformers, in float64.

The graph there is the unfused one: attention weights are nodes of it, and gradients by
them come from autograd itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from engines import Pair, picture
from torch import Tensor

from vlm.layers import attention_weights
from vlm.probes import Asked, gradient_attention, on_image, relevancy

PROMPT = "detect cat ; dog"
ANSWER = "<loc0100><loc0200> cat"


@dataclass(frozen=True)
class Explained:
    """One token: its logits, the attention of each layer and gradients by it."""

    asked: Asked
    index: int
    attentions: list[Tensor]  # of each layer [N, S, S]
    by_logit: list[Tensor]
    by_log_probability: list[Tensor]


@pytest.fixture(params=[0, 2])
def explained(both: Pair, request: pytest.FixtureRequest) -> Explained:
    index, image = request.param, picture(5)
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    oracle = copy.deepcopy(both.oracle).double()
    inputs = both.inputs([image], PROMPT)
    more = torch.tensor([answer[:index]], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for name in ("token_type_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name], torch.ones_like(more)], dim=1)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    seen = oracle(**inputs, output_attentions=True)
    logits, token = seen.logits[0, -1], answer[index]
    scores = logits[token], logits.log_softmax(-1)[token]
    grads = [torch.autograd.grad(s, seen.attentions, retain_graph=True) for s in scores]
    return Explained(
        Asked(both.engine, image, PROMPT, answer),
        index,
        *([part[0].detach() for part in parts] for parts in (seen.attentions, *grads)),
    )


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to a thousandth of the largest, which is no rounding error itself."""
    most = float(theirs.abs().max())
    assert most > 1e-4
    torch.testing.assert_close(ours.double(), theirs, atol=1e-3 * most, rtol=0)


@pytest.mark.parametrize("start", [0, 2])
def test_relevancy_is_chefers_product_over_the_layers(explained, start):
    size = explained.attentions[0].shape[-1]
    whole = torch.eye(size, dtype=torch.float64)
    layers = list(zip(explained.attentions, explained.by_logit))
    for attention, gradient in layers[start:]:
        whole = whole + (attention * gradient).clamp(min=0).mean(0) @ whole
    expected = whole[-1]
    expected[-1] -= 1
    ours = relevancy(explained.asked, explained.index, start=start)
    close(ours, expected)
    where = explained.asked.layout(explained.index)
    patches = on_image(ours, where)
    assert patches.shape == (where.grid, where.grid)
    assert torch.equal(patches.flatten(), ours[: where.image])


def test_gradient_attention_is_attention_where_more_of_it_would_have_helped(explained):
    where = explained.asked.layout(explained.index)
    expected = torch.stack(
        [
            (attention * gradient.clamp(min=0))[:, -1, : where.image]
            for attention, gradient in zip(
                explained.attentions, explained.by_log_probability
            )
        ]
    )
    ours = gradient_attention(explained.asked, explained.index)
    close(ours.flatten(2), expected)


def test_relevancy_is_the_same_from_few_rows_at_a_time(both: Pair, monkeypatch):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(7), PROMPT, answer)
    at_once = relevancy(asked, 2)
    rows = []

    def watched(q, k, part, **rule):
        rows.append(part)
        return attention_weights(q, k, part, **rule)

    monkeypatch.setattr("vlm.gemma.attention_weights", watched)
    heads = both.engine.config.decoder.heads
    monkeypatch.setitem(relevancy.__globals__, "CHUNK_BYTES", 4 * heads * 25 * 3)
    torch.testing.assert_close(relevancy(asked, 2), at_once)
    assert max(part.stop - part.start for part in rows) <= 3


def test_tokens_are_explained_one_by_one_whatever_was_explained_before(both: Pair):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(6), PROMPT, answer)
    alone = relevancy(asked, 1)
    for index in range(len(answer)):
        relevancy(asked, index)
    assert torch.equal(relevancy(asked, 1), alone)
    assert all(p.grad is None for p in both.engine.model.parameters())


def test_one_pass_gives_the_mean_of_several_tokens(both: Pair):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(8), PROMPT, answer)
    inputs = both.inputs([asked.image], PROMPT, ANSWER)
    with torch.no_grad():
        rows = both.oracle(**inputs).logits[0, -4:-1].log_softmax(-1)
    each = rows[range(3), list(answer)]
    for index in (0, 2):
        torch.testing.assert_close(
            asked.log_probability(index), each[index], atol=1e-4, rtol=0
        )
    mean = asked.log_probability((2, 0))
    torch.testing.assert_close(mean, (each[0] + each[2]) / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_token_that_was_not_said_is_an_error(both: Pair, index: int):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(), PROMPT, answer)
    with pytest.raises(ValueError, match=f"token {index} of 3"):
        relevancy(asked, index)
