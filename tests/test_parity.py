"""The model against transformers, on random checkpoints of every kind."""

from __future__ import annotations

import pytest
import torch
from oracle import Batch, Case, batch
from torch import Tensor
from torch.testing import assert_close

from vlm.cache import KVCache
from vlm.paligemma import PaliGemma
from vlm.tap import Tap

LOGITS = {"atol": 5e-5, "rtol": 0}
FEATURES = {"atol": 2e-5, "rtol": 1e-5}
# Here rounding shows most: before the softmax, scores are as large as 8. The oracle's
# own attention in float32 is up to 4e-5 from that of its weights in float64.
ATTENTION = {"atol": 1e-4, "rtol": 0}
PROBABILITIES = {"atol": 1e-5, "rtol": 0}

QUESTIONS = {
    "question": {},
    "answer": {"answer": 9},
    "batch": {"prompts": (5, 2, 7), "answer": 8},
    "several images": {"prompts": (6, 3), "answer": 8, "images": 3},
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=QUESTIONS)
def asked(request: pytest.FixtureRequest, any_case: Case) -> Batch:
    return batch(any_case.model, **QUESTIONS[request.param])


def test_logits_are_transformers_logits(any_case: Case, asked: Batch):
    theirs = any_case.oracle(**asked.theirs()).logits
    ours = logits(any_case.model, asked)
    real = asked.seen.bool()
    assert_close(ours[real], theirs[real], **LOGITS)
    assert_close(ours[real].softmax(-1), theirs[real].softmax(-1), **PROBABILITIES)


def test_the_loss_of_an_answer_is_transformers_loss(any_case: Case):
    asked = batch(any_case.model, answer=9)
    labels = asked.ids.masked_fill(asked.types == 0, -100)
    theirs = any_case.oracle(**asked.theirs(), labels=labels).loss
    ours = logits(any_case.model, asked)[:, :-1].flatten(0, 1)
    ours = torch.nn.functional.cross_entropy(ours, labels[:, 1:].flatten())
    assert_close(ours, theirs, **PROBABILITIES)


def test_image_features_are_transformers_features(any_case: Case):
    asked = batch(any_case.model, images=3)
    theirs = any_case.oracle.get_image_features(asked.pixels)
    seen = any_case.model.vision(asked.pixels)
    assert_close(seen, theirs.last_hidden_state, **FEATURES)
    features = any_case.model.look(asked.pixels)
    assert_close(features, theirs.pooler_output, **FEATURES)


def test_attention_of_every_decoder_layer_is_transformers_attention(
    any_case: Case, asked: Batch
):
    theirs = any_case.oracle(**asked.theirs(), output_attentions=True).attentions
    tap = Recorder()
    logits(any_case.model, asked, tap=tap)
    real = asked.seen.bool()
    assert len(tap.attentions["decoder"]) == len(theirs)
    for ours, expected in zip(tap.attentions["decoder"], theirs, strict=True):
        ours, expected = ours.transpose(1, 2)[real], expected.transpose(1, 2)[real]
        assert_close(ours, expected, **ATTENTION)


def test_states_of_patches_lie_one_behind_the_other(any_case: Case):
    # As the convolution gives them, all that comes of them would be slow to read.
    tap = Recorder()
    any_case.model.vision(batch(any_case.model).pixels, tap)
    states = tap.residuals["vision"]
    assert states and all(each.is_contiguous() for each in states)


def test_attention_of_every_vision_layer_is_transformers_attention(any_case: Case):
    asked = batch(any_case.model, images=2)
    tower = any_case.oracle.model.vision_tower
    theirs = tower(asked.pixels, output_attentions=True).attentions
    tap = Recorder()
    any_case.model.look(asked.pixels, tap)
    for ours, expected in zip(tap.attentions["vision"], theirs, strict=True):
        assert_close(ours, expected, **ATTENTION)


def test_the_residual_stream_is_shown_after_every_layer(any_case: Case, asked: Batch):
    theirs = any_case.oracle(**asked.theirs(), output_hidden_states=True).hidden_states
    tap = Recorder()
    logits(any_case.model, asked, tap=tap)
    real = asked.seen.bool()
    # The oracle's first is the embedding, and its last comes behind the final norm.
    assert len(tap.residuals["decoder"]) == len(theirs) - 1
    for ours, expected in zip(tap.residuals["decoder"][:-1], theirs[1:-1], strict=True):
        size = expected[real].std()
        assert_close(ours[real] / size, expected[real] / size, **LOGITS)


@pytest.mark.parametrize("question", [{}, {"prompts": (5, 2, 7), "images": 2}])
def test_greedy_answers_are_the_same_tokens(any_case: Case, question: dict):
    asked = batch(any_case.model, **question)
    any_case.oracle.generation_config.eos_token_id = None
    theirs = any_case.oracle.generate(
        **asked.theirs(), max_new_tokens=24, do_sample=False
    )[:, asked.ids.shape[1] :]
    ours, cached = greedy(any_case.model, asked, 24)
    assert ours.tolist() == theirs.tolist()
    assert len(set(theirs.flatten().tolist())) > 8  # it has something to get wrong

    # The same tokens, and every token's logits, when all is computed at once.
    whole = Batch(
        torch.cat((asked.ids, ours), 1),
        asked.pixels,
        torch.cat((asked.types, torch.ones_like(ours)), 1),
        torch.cat((asked.seen, torch.ones_like(ours)), 1),
    )
    at_once = any_case.oracle(**whole.theirs()).logits
    assert_close(cached, at_once[:, -25:-1], **LOGITS)


def test_decoding_step_by_step_equals_one_forward(any_case: Case, asked: Batch):
    at_once, in_steps = Recorder(), Recorder()
    expected = logits(any_case.model, asked, tap=at_once)
    prefix = int((asked.types[0] == 0).sum())
    cache = KVCache(any_case.model.config.decoder.depth, asked.ids.shape[1])
    features = asked.features(any_case.model)
    rows, start = [], 0
    for end in range(prefix, asked.ids.shape[1] + 1):
        now = slice(start, end)
        mine = {name: part[:, now] for name, part in asked.ours().items()}
        mine |= {"features": features if start == 0 else None, "cache": cache}
        rows.append(any_case.model(asked.ids[:, now], **mine, tap=in_steps))
        start = end
    real = asked.seen.bool()
    assert_close(torch.cat(rows, 1)[real], expected[real], **LOGITS)

    depth = any_case.model.config.decoder.depth
    for layer, weights in enumerate(at_once.attentions["decoder"]):
        last = in_steps.attentions["decoder"][layer - depth]
        assert_close(last[:, :, -1], weights[:, :, -1], **ATTENTION)


def test_only_the_last_positions_can_be_read(any_case: Case, asked: Batch):
    whole = logits(any_case.model, asked)
    assert_close(logits(any_case.model, asked, last=3), whole[:, -3:], **LOGITS)
    features = asked.features(any_case.model)
    theirs = any_case.oracle(**asked.theirs(), logits_to_keep=1).logits
    one = any_case.model(asked.ids, features, **asked.ours(), last=1)
    assert_close(one, theirs, **LOGITS)


def test_an_answer_token_does_not_change_what_came_before(any_case: Case):
    asked = batch(any_case.model, answer=9)
    before = logits(any_case.model, asked)
    asked.ids[:, -4] = (asked.ids[:, -4] + 1) % 80
    after = logits(any_case.model, asked)
    assert torch.equal(after[:, :-4], before[:, :-4])
    assert not torch.allclose(after[:, -4:], before[:, -4:], atol=1e-2)


def test_every_image_token_sees_the_whole_prompt(any_case: Case):
    asked = batch(any_case.model)
    before = Recorder()
    logits(any_case.model, asked, tap=before)
    asked.ids[:, -1] = (asked.ids[:, -1] + 1) % 80
    after = Recorder()
    logits(any_case.model, asked, tap=after)
    patches = any_case.model.config.vision.patches
    changed = before.residuals["decoder"][0] - after.residuals["decoder"][0]
    assert (changed[:, :patches].abs().amax(-1) > 1e-6).all()


def test_features_for_other_places_than_there_are_is_an_error(any_case: Case):
    asked = batch(any_case.model)
    patches = any_case.model.config.vision.patches
    with pytest.raises(ValueError, match=f"{patches} image tokens for {2 * patches}"):
        any_case.model(asked.ids, asked.features(any_case.model).repeat(1, 2, 1))


class Recorder(Tap):
    """Keeps everything, layer after layer, pass after pass."""

    def __init__(self) -> None:
        self.attentions: dict[str, list[Tensor]] = {"decoder": [], "vision": []}
        self.residuals: dict[str, list[Tensor]] = {"decoder": [], "vision": []}

    def attention(self, tower, layer, weights) -> None:
        self.attentions[tower].append(weights(slice(None)))

    def residual(self, tower, layer, x) -> None:
        self.residuals[tower].append(x)


def logits(model: PaliGemma, asked: Batch, **how) -> Tensor:
    return model(asked.ids, asked.features(model), **asked.ours(), **how)


def greedy(model: PaliGemma, asked: Batch, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest `count` tokens one after the other, and the logits behind them."""
    cache = KVCache(model.config.decoder.depth, asked.ids.shape[1] + count)
    rows = [logits(model, asked, cache=cache, last=1)]
    tokens = [rows[-1].argmax(-1)]
    while len(tokens) < count:
        rows.append(model(tokens[-1], cache=cache))
        tokens.append(rows[-1].argmax(-1))
    return torch.cat(tokens, 1), torch.cat(rows, 1)
