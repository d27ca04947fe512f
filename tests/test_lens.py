"""What the lens reads is what transformers' norm and head make of its streams."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from engines import PIECES, Pair, picture
from PIL import Image
from torch import Tensor

import vlm
from vlm.probes import Asked, lens
from vlm.probes.lens import logit_lens, patch_lens
from vlm.probes.tam import rank_gaussian, token_activation

PROMPT = "detect cat ; dog"
SIZE = PIECES + 7  # of the vocabulary
# The third token is a word of the prompt, the fourth is the first again.
ANSWER = "<loc0593><loc0918> cat<loc0593>"
BEFORE = {0: "", 2: "<loc0593><loc0918>", 3: "<loc0593><loc0918> cat"}


@dataclass(frozen=True)
class Read:
    """One pass of transformers in float64, and what its head reads in every layer."""

    asked: Asked
    index: int
    logits: Tensor  # [layers, S, V]


@pytest.fixture(params=BEFORE)
def seen(both: Pair, request: pytest.FixtureRequest) -> Read:
    index, image = request.param, picture(3)
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, image, PROMPT, answer)
    return Read(asked, index, oracle_logits(both, image, BEFORE[index]))


def oracle_logits(pair: Pair, image: Image.Image, before: str) -> Tensor:
    oracle = copy.deepcopy(pair.oracle).double()
    inputs = pair.inputs([image], PROMPT, before)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        states = oracle(**inputs, output_hidden_states=True).hidden_states[1:]
        norm = oracle.model.language_model.norm
        # transformers gives the last of them normed already.
        states = torch.stack([*(norm(x[0]) for x in states[:-1]), states[-1][0]])
        logits = oracle.lm_head(states)
    cap = getattr(oracle.config.text_config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs, atol=1e-7, rtol=2e-3)


def check(read: lens.Lens, logits: Tensor, token: int, top: int) -> None:
    """Against logits of the same leading dimensions."""
    chances = logits.softmax(-1)
    assert float(chances.max() / chances.min()) > 3
    close(read.probability, chances[..., token])
    close(read.probabilities, chances.topk(top).values)
    # By what they are worth: two tokens may be as good as each other.
    close(read.probabilities, chances.gather(-1, read.ids))
    assert all(len(set(ids)) == top for ids in read.ids.flatten(0, -2).tolist())


def test_every_layer_says_what_the_oracles_head_reads_there(seen: Read):
    read = logit_lens(seen.asked, seen.index, top=4)
    token = seen.asked.token(seen.index)
    assert (read.layers, read.token) == ((0, 1, 2, 3), token)
    check(read, seen.logits[:, -1], token, 4)


@pytest.mark.parametrize("position", [0, 7, 17])
def test_any_position_can_be_read(seen: Read, position: int):
    read = logit_lens(seen.asked, seen.index, position=position)
    check(read, seen.logits[:, position], seen.asked.token(seen.index), 5)


def test_the_embedding_is_read_as_the_layer_before_all(both: Pair):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(3), PROMPT, answer)
    oracle = copy.deepcopy(both.oracle).double()
    inputs = both.inputs([asked.image], PROMPT, BEFORE[2])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        state = oracle(**inputs, output_hidden_states=True).hidden_states[0][0, -1]
        logits = oracle.lm_head(oracle.model.language_model.norm(state))
    cap = getattr(oracle.config.text_config, "final_logit_softcapping", None)
    chances = (logits if cap is None else cap * (logits / cap).tanh()).softmax(-1)
    read, without = logit_lens(asked, 2, embedding=True), logit_lens(asked, 2)
    assert read.layers == (-1, *without.layers)
    close(read.probability[0], chances[asked.token(2)])
    close(read.probabilities[0], chances.topk(5).values)
    close(read.probability[1:], without.probability.double())


def test_the_last_layer_says_what_the_model_says(seen: Read):
    read = logit_lens(seen.asked, seen.index)
    chances = seen.asked.logits(seen.index).softmax(-1)
    close(read.probability[-1], chances[seen.asked.token(seen.index)].double())
    close(read.probabilities[-1], chances.topk(5).values.double())


@pytest.mark.parametrize(("token", "layers"), [(None, None), (77, [-1, 1])])
def test_every_patch_is_read_where_it_lies(seen: Read, token, layers):
    read = patch_lens(seen.asked, seen.index, token=token, layers=layers, top=2)
    wanted = (0, 1, 2, 3) if layers is None else (1, 3)
    assert read.layers == wanted
    where = seen.asked.layout(seen.index)
    logits = seen.logits[list(wanted), : where.image].unflatten(1, (4, 4))
    token = seen.asked.token(seen.index) if token is None else token
    check(read, logits, token, 2)


def test_logits_are_read_in_chunks_of_the_layers_asked_for(both: Pair, monkeypatch):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, picture(2), PROMPT, answer)
    whole, rows = patch_lens(asked, 0, layers=[0, 2]), []
    head = both.engine.model.decoder.head
    hook = head.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    vocabulary = both.engine.config.decoder.vocabulary
    monkeypatch.setattr(lens, "CHUNK", 3 * 4 * vocabulary + 1)
    try:
        parts = patch_lens(asked, 0, layers=[0, 2])
    finally:
        hook.remove()
    # 16 patches twice; the last is the pass's own.
    assert rows[:-1] == [3, 3, 3, 3, 3, 1] * 2
    close(parts.probability, whole.probability.double())
    close(parts.probabilities, whole.probabilities.double())


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda asked: logit_lens(asked, 4), "token 4 of 4"),
        (lambda asked: logit_lens(asked, 0, position=99), "position 99 of"),
        (lambda asked: logit_lens(asked, 0, top=0), f"top 0 of {SIZE}"),
        (lambda asked: patch_lens(asked, -1), "token -1 of 4"),
        (lambda asked: patch_lens(asked, 0, layers=[4]), r"layers \[4\] of 4"),
        (lambda asked: patch_lens(asked, 0, token=SIZE), f"{SIZE} is none of"),
        (lambda asked: token_activation(asked, 4), "token 4 of 4"),
    ],
)
def test_what_is_not_there_is_an_error(both: Pair, ask, words: str):
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    with pytest.raises(ValueError, match=words):
        ask(Asked(both.engine, picture(), PROMPT, answer))


def test_token_activation_is_the_papers_step_by_step(seen: Read):
    asked, index = seen.asked, seen.index
    where, token = asked.layout(index), asked.token(index)
    scores = seen.logits[-1].clamp(min=0).numpy()  # [S, V]
    ids = asked.engine.ids(PROMPT)
    maps, weights = [], []
    for place in range(1, len(ids) - 1):
        if ids[place] != token:
            maps.append(scores[: where.image, ids[place]])
            weights.append(scores[where.image + place, token])
    for place, said in enumerate(asked.answer[:index]):
        if said != token:
            maps.append(scores[: where.image, said])
            weights.append(scores[where.prefix - 1 + place, token])
    assert len(maps) == {0: 4, 2: 5, 3: 6}[index]
    own = scores[: where.image, token]
    assert sum(weights) > 0
    mean = np.average(maps, axis=0, weights=weights)
    (factor,) = np.linalg.lstsq(mean[:, None], own, rcond=None)[0]
    left = np.maximum(own - factor * mean, 0).reshape(4, 4)
    expected = torch.from_numpy(filtered(left))
    ours = token_activation(asked, index)
    most = float(expected.max())
    assert most > 0.1
    torch.testing.assert_close(ours.double(), expected, atol=1e-3 * most, rtol=0)


def filtered(heat: np.ndarray) -> np.ndarray:
    """The rank Gaussian filter, patch by patch."""
    padded, out = np.pad(heat, 1, mode="reflect"), np.zeros_like(heat)
    for row, column in np.ndindex(heat.shape):
        values = np.sort(padded[row : row + 3, column : column + 3], axis=None)
        spread = values.std() / values.mean() if values.mean() > 0 else 0
        weights = [np.exp(-(r**2) / (2 * spread**2 + 1e-30)) for r in range(-4, 5)]
        out[row, column] = np.average(values, weights=weights)
    return out


def test_the_filter_is_a_median_where_neighbours_agree_and_a_mean_where_they_vary():
    dice = np.random.default_rng(0)
    heat = dice.gamma(0.5, 3, (6, 9))
    heat[:4, :5] = 0
    heat[-3:, -3:] = 2
    heat[-1, -1] = 2.001
    ours = rank_gaussian(torch.from_numpy(heat))
    np.testing.assert_allclose(ours, filtered(heat), atol=1e-9)
    assert float(ours[0, 0]) == 0
    assert float(ours[-1, -1]) == 2


@pytest.fixture(scope="module")
def fish() -> Asked:
    """The embedded model, and the last word of its caption."""
    engine = vlm.load("assets/tiny", device="cpu")
    image = Image.open("assets/examples/penguins.webp")
    answer = engine.generate(image, "caption en")
    assert answer.text == "two penguins and a fish"
    tokens = tuple(step.token for step in answer.steps)
    return Asked(engine, image, "caption en", tokens)


FISH = torch.zeros(8, 8, dtype=torch.bool)
FISH[6:8, 3:6] = True


def test_the_patches_of_the_fish_say_fish_before_the_answer_does(fish: Asked):
    heat = patch_lens(fish, 4, layers=[1]).probability[0]
    assert torch.equal(heat >= heat.flatten().topk(6).values[-1], FISH)
    rising = logit_lens(fish, 4).probability
    assert torch.equal(rising, rising.sort().values)
    assert rising[0] < 0.2 < 0.6 < rising[-1]


def test_the_word_fish_is_activated_on_the_fish(fish: Asked):
    heat = token_activation(fish, 4)
    assert float(heat[FISH].mean()) > 3 * float(heat[~FISH].mean())
