"""An intervention is what transformers does where its own insides are changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from engines import Pair, picture
from PIL import Image
from torch import Tensor

import vlm
from vlm.edit import Edit
from vlm.probes import (
    Asked,
    Knockout,
    Noise,
    activation_patching,
    covered,
    knockout,
    occluding,
    occlusion,
)
from vlm.probes.occlusion import GREY

PROMPT = "detect cat ; dog"
BEFORE, LAST = "<loc0593><loc0918>", " dog"
INDEX = 2
ALL = torch.ones(4, 4, dtype=torch.bool)
SOME = torch.zeros(4, 4, dtype=torch.bool)
SOME[1, 2] = SOME[1, 3] = SOME[3, 0] = True


def asked_of(pair: Pair, seed: int = 5) -> Asked:
    # The size that the model sees, so that nothing here is scaled.
    image = picture(seed, (28, 28))
    answer = tuple(pair.engine.tokenizer.answer_ids(BEFORE + LAST))
    return Asked(pair.engine, image, PROMPT, answer)


class Oracle:
    """Transformers in float64, to put hooks into."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.model = copy.deepcopy(pair.oracle).double()
        self.layers = self.model.model.language_model.layers

    def logits(self, *images: Image.Image) -> Tensor:
        """[V], or [images, V] of several in one batch."""
        asked = [self.pair.inputs([image], PROMPT, BEFORE) for image in images]
        inputs = {name: torch.cat([one[name] for one in asked]) for name in asked[0]}
        inputs["pixel_values"] = inputs["pixel_values"].double()
        with torch.no_grad():
            return self.model(**inputs).logits[:, -1].squeeze(0)

    def log_probability(self, asked: Asked) -> float:
        return float(self.logits(asked.image).log_softmax(-1)[asked.token(INDEX)])

    def hide(self, layer: int, hidden: Tensor) -> None:
        """Take away what rows see, hidden bool [S, S]."""

        def change(_, args, given):
            mask = given["attention_mask"]
            assert mask.shape[-2:] == hidden.shape
            given["attention_mask"] = mask.masked_fill(hidden, -1e30)
            return args, given

        attention = self.layers[layer].self_attn
        attention.register_forward_pre_hook(change, with_kwargs=True)

    def silence(self, layer: int, head: int, size: int = 16) -> None:
        def change(_, given):
            out = given[0].clone()
            out[..., head * size : (head + 1) * size] = 0
            return (out,)

        self.layers[layer].self_attn.o_proj.register_forward_pre_hook(change)

    def streams(self, image: Image.Image) -> list[Tensor]:
        """After each layer, [S, D]."""
        kept, hooks = [], []
        for layer in self.layers:
            hooks.append(
                layer.register_forward_hook(lambda _, __, out: kept.append(first(out)))
            )
        self.logits(image)
        for hook in hooks:
            hook.remove()
        return [x[0] for x in kept]

    def restored(
        self, image: Image.Image, layer: int, places: list[int], x: Tensor
    ) -> Tensor:
        def change(_, __, out):
            mixed = first(out).clone()
            mixed[0, places] = x[places]
            return mixed if isinstance(out, Tensor) else (mixed, *out[1:])

        hook = self.layers[layer].register_forward_hook(change)
        logits = self.logits(image)
        hook.remove()
        return logits


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


# Occlusion


def painted(image: Image.Image, mask: Tensor, patch: int = 7) -> Image.Image:
    values = np.array(image)
    values[np.kron(mask.numpy(), np.ones((patch, patch))) > 0] = GREY
    return Image.fromarray(values)


def test_a_picture_that_is_covered_whole_is_a_blank_one(both: Pair):
    asked = asked_of(both).of(picture(1, (50, 34)))
    blank = Image.new("RGB", (50, 34), GREY)
    before, after = (a.log_probability(INDEX) for a in (asked, asked.of(blank)))
    assert abs(float(before - after)) > 1e-2
    assert covered(asked, INDEX, ALL) == float(before - after)
    assert covered(asked, INDEX, ~ALL) == 0


def test_patches_are_covered_where_they_lie(both: Pair):
    asked, oracle = asked_of(both), Oracle(both)
    grey = asked.of(painted(asked.image, SOME))
    expected = oracle.log_probability(asked) - oracle.log_probability(grey)
    assert abs(expected) > 1e-2
    assert covered(asked, INDEX, SOME) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "starts"),
    [(None, None, range(4)), (2, 1, range(3)), (3, 3, (0, 1))],
)
def test_a_patch_gets_the_mean_of_the_squares_that_cover_it(
    both: Pair, size, stride, starts
):
    asked, oracle = asked_of(both), Oracle(both)
    side, pictures = size or 1, {}
    for row, column in product(starts, starts):
        mask = torch.zeros(4, 4, dtype=torch.bool)
        mask[row : row + side, column : column + side] = True
        pictures[row, column] = painted(asked.image, mask)
    logits = oracle.logits(asked.image, *pictures.values())
    before, *after = logits.log_softmax(-1)[:, asked.token(INDEX)].tolist()
    falls = {corner: before - now for corner, now in zip(pictures, after)}
    expected = torch.zeros(4, 4)
    for row, column in product(range(4), range(4)):
        expected[row, column] = np.mean(
            [
                fall
                for (top, left), fall in falls.items()
                if 0 <= row - top < side and 0 <= column - left < side
            ]
        )
    ours = occlusion(asked, INDEX, size=size, stride=stride)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_occlusion_can_be_watched_and_stopped(both: Pair):
    asked = asked_of(both)
    steps = list(occluding(asked, INDEX, size=2, stride=2))
    assert [part for part, _ in steps] == [0.25, 0.5, 0.75, 1]
    known = ~steps[0][1].isnan()
    assert known.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    whole = occlusion(asked, INDEX, size=2, stride=2)
    assert torch.equal(steps[-1][1], whole)
    assert torch.equal(steps[0][1][known], whole[known])


# Knockout


@pytest.mark.parametrize("rows", ["answer", "text", "all"])
def test_an_empty_set_changes_nothing(both: Pair, rows: str):
    asked = asked_of(both)
    before = asked.logits(INDEX)
    nothing = [{}, {"patches": ~ALL}, {"patches": ALL, "layers": []}, {"heads": []}]
    for what in nothing:
        edit = Knockout(asked, INDEX, rows=rows, **what)
        assert torch.equal(asked.logits(INDEX, edit=edit), before)
        assert knockout(asked, INDEX, rows=rows, **what) == 0


@pytest.mark.parametrize(
    ("patches", "layers"), [(ALL, None), (SOME, [1, -1])], ids=["all", "some"]
)
@pytest.mark.parametrize("rows", ["answer", "text", "all"])
def test_patches_are_hidden_from_the_rows_in_the_layers(
    both: Pair, rows: str, patches: Tensor, layers: list[int] | None
):
    asked, oracle = asked_of(both), Oracle(both)
    before = oracle.log_probability(asked)
    ids = asked.engine.ids(PROMPT)
    length = 16 + len(ids) + INDEX
    hidden = torch.zeros(length, length, dtype=torch.bool)
    chosen = patches.flatten().nonzero().flatten().tolist()
    for row, key in product(range(length), chosen):
        newline = 16 + len(ids) - 1
        blind = {"answer": row >= newline, "text": row >= 16, "all": True}[rows]
        hidden[row, key] = blind and row not in chosen
    for layer in range(4) if layers is None else (1, 3):
        oracle.hide(layer, hidden)
    expected = oracle.log_probability(asked) - before
    ours = knockout(asked, INDEX, patches=patches, layers=layers, rows=rows)
    assert abs(expected) > 1e-3
    assert ours == pytest.approx(expected, abs=1e-4)


def test_what_nobody_sees_does_not_matter(both: Pair):
    asked, edit = (
        asked_of(both),
        Knockout(asked_of(both), INDEX, patches=SOME, rows="all"),
    )
    features = asked.engine.look(asked.image).clone()
    before = asked.logits(INDEX, features=features, edit=edit)
    features[:, SOME.flatten()] += 5
    after = asked.logits(INDEX, features=features, edit=edit)
    assert torch.equal(after, before)


def test_heads_that_give_nothing_change_what_they_change_in_the_oracle(both: Pair):
    asked, oracle = asked_of(both), Oracle(both)
    before = oracle.log_probability(asked)
    heads = [(1, 0), (1, 3), (2, 1)]
    for layer, head in heads:
        oracle.silence(layer, head)
    expected = oracle.log_probability(asked) - before
    assert abs(expected) > 1e-3
    assert knockout(asked, INDEX, heads=heads) == pytest.approx(expected, abs=1e-4)


# Patching


def row_of(asked: Asked) -> dict[object, list[int]]:
    """Every group of a row and its positions."""
    bos, prefix = 16, 16 + len(asked.engine.ids(PROMPT))
    return {
        "image": list(range(16)),
        "bos": [bos],
        **{("prompt", at - bos): [at] for at in range(bos + 1, prefix)},
        **{("answer", index): [prefix + index] for index in range(INDEX)},
    }


def expected_score(
    pair: Pair, clean: Asked, corrupt: Asked
) -> Callable[[int, list[int]], float]:
    oracle, token = Oracle(pair), clean.token(INDEX)
    best, worst = oracle.logits(clean.image), oracle.logits(corrupt.image)
    (other,) = [int(t) for t in worst.topk(2).indices if int(t) != token][:1]
    streams = oracle.streams(clean.image)

    def score(layer: int, places: list[int]) -> float:
        logits = oracle.restored(corrupt.image, layer, places, streams[layer])
        good, bad, now = (float(x[token] - x[other]) for x in (best, worst, logits))
        assert abs(good - bad) > 2e-3  # float32 is some 1e-5 off
        return (now - bad) / abs(good - bad)

    return score


def test_a_row_restores_every_group_at_one_layer(both: Pair):
    clean, corrupt = asked_of(both, 5), asked_of(both, 6)
    score, places = expected_score(both, clean, corrupt), row_of(clean)
    ours = dict(activation_patching(clean, corrupt, INDEX, axis="position", at=1))
    assert list(ours) == list(places)
    for group, value in ours.items():
        assert value == pytest.approx(score(1, places[group]), abs=1e-2)
    assert max(abs(value) for value in ours.values()) > 0.1


@pytest.mark.parametrize("group", ["image", ("prompt", 5), SOME])
def test_a_column_restores_one_group_at_every_layer(both: Pair, group):
    clean, corrupt = asked_of(both, 5), asked_of(both, 6)
    score = expected_score(both, clean, corrupt)
    ours = dict(activation_patching(clean, corrupt, INDEX, axis="layer", at=group))
    assert list(ours) == [-1, 0, 1, 2, 3]
    if isinstance(group, Tensor):
        places = group.flatten().nonzero().flatten().tolist()
    else:
        places = row_of(clean)[group]
    for layer in range(4):
        assert ours[layer] == pytest.approx(score(layer, places), abs=1e-2)


def test_a_token_is_measured_against_another_even_where_both_pictures_prefer_it(
    both: Pair,
):
    clean, corrupt = asked_of(both, 5), asked_of(both, 6)
    said = (*clean.answer[:INDEX], int(corrupt.logits(INDEX).argmax()))
    clean, corrupt = (Asked(a.engine, a.image, PROMPT, said) for a in (clean, corrupt))
    expected = expected_score(both, clean, corrupt)(1, list(range(16)))
    ours = dict(activation_patching(clean, corrupt, INDEX, axis="layer", at="image"))
    assert ours[1] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("noise", [False, True])
def test_all_that_differs_restored_is_the_clean_pass_and_nothing_restored_is_none(
    both: Pair, noise: bool
):
    clean, corrupt = asked_of(both, 5), asked_of(both, 6)
    if noise:
        corrupt = Noise()
    groups = ["image", ALL, ~ALL, "bos", ("prompt", 1), ("answer", 1)]
    how = {"axis": "position", "at": -1, "groups": groups}
    scores = [score for _, score in activation_patching(clean, corrupt, INDEX, **how)]
    sign = scores[0]
    assert abs(sign) == 1
    # Words are embedded alike, whatever was seen.
    assert scores == [sign, sign, 0, 0, 0, 0]


def test_behind_the_last_layer_only_the_row_that_leads_to_the_token_counts(both: Pair):
    clean, corrupt = asked_of(both, 5), asked_of(both, 6)
    scores = dict(activation_patching(clean, corrupt, INDEX, axis="position", at=3))
    lead = scores.pop(("answer", INDEX - 1))
    assert abs(lead) == pytest.approx(1, abs=1e-4)
    assert all(abs(score) < 1e-4 for score in scores.values())


def test_noise_is_of_the_features_own_size_and_always_the_same():
    features = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(1)) * 7
    moved = Noise(scale=2)
    noise = moved.on(features) - features
    assert float(noise.std()) == pytest.approx(14, rel=0.05)
    assert abs(float((noise * features).mean())) < 2
    assert torch.equal(moved.on(features), moved.on(features))
    assert not torch.equal(moved.on(features), Noise(scale=2, seed=1).on(features))


def test_with_noise_the_score_is_of_the_clean_tokens_logit_alone(both: Pair):
    clean, noise = asked_of(both), Noise(scale=1.5)
    token = clean.token(INDEX)
    features = noise.on(clean.engine.look(clean.image))

    class Put(Edit):
        """The clean embedding of some patches, put in by hand."""

        def residual(self, layer, x):
            if layer != -1:
                return x
            x = x.clone()
            chosen = SOME.flatten().nonzero().flatten()
            x[0, chosen] = clean.engine.look(clean.image)[0, chosen]
            return x

    best, worst, now = (
        float(logits[token])
        for logits in (
            clean.logits(INDEX),
            clean.logits(INDEX, features=features),
            clean.logits(INDEX, features=features, edit=Put()),
        )
    )
    ours = dict(activation_patching(clean, noise, INDEX, axis="layer", at=SOME))
    assert ours[-1] == pytest.approx((now - worst) / abs(best - worst), abs=1e-5)


# What cannot be


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda a: occlusion(a, 3), "token 3 of 3"),
        (lambda a: occlusion(a, 0, size=5), "5 patches on a grid of 4"),
        (lambda a: occlusion(a, 0, size=2, stride=3), "2 patches, 3 apart"),
        (lambda a: covered(a, 0, ALL[:3]), "bool of 3 x 4 patches; bool 4 x 4"),
        (lambda a: covered(a, 0, ALL.float()), "float32 of 4 x 4 patches"),
        (lambda a: knockout(a, 3, patches=ALL), "token 3 of 3"),
        (lambda a: knockout(a, 0, patches=ALL[0]), "bool of 4 patches"),
        (lambda a: knockout(a, 0, patches=ALL, layers=[4]), r"layers \[4\] of 4"),
        (
            lambda a: knockout(a, 0, heads=[(4, 0)]),
            "head 0 in layer 4 of 4 layers of 4",
        ),
        (
            lambda a: knockout(a, 0, heads=[(0, 4)]),
            "head 4 in layer 0 of 4 layers of 4",
        ),
        (lambda a: knockout(a, 0, patches=ALL, rows="image"), "rows are 'image'"),
    ],
)
def test_what_is_not_there_is_an_error(both: Pair, ask, words: str):
    with pytest.raises(ValueError, match=words):
        ask(asked_of(both))


@pytest.mark.parametrize(
    ("axis", "at", "words"),
    [
        ("position", 4, "layer 4 of 4"),
        ("position", -2, "layer -2 of 4"),
        ("head", 1, "axis is 'head'"),
        ("layer", "picture", "'picture' is no group"),
        ("layer", ("head", 1), r"\('head', 1\) is no group"),
        ("layer", ("answer", INDEX), "answer token 2 of 2"),
        ("layer", ("prompt", 6), "prompt token 6 of 6"),
        ("layer", ALL[:2], "2 x 4 patches"),
    ],
)
def test_what_cannot_be_restored_is_an_error(both: Pair, axis, at, words: str):
    with pytest.raises(ValueError, match=words):
        activation_patching(asked_of(both), asked_of(both, 6), INDEX, axis=axis, at=at)


def test_two_questions_cannot_be_patched_into_each_other(both: Pair, pairs):
    clean, corrupt = asked_of(both), asked_of(both, 6)
    elsewhere = next(pair for pair in pairs.values() if pair is not both)
    for other, words in (
        (
            Asked(both.engine, corrupt.image, "detect dog", clean.answer),
            "the prompt is",
        ),
        (Asked(both.engine, corrupt.image, PROMPT, clean.answer[:2]), "the answer is"),
        (asked_of(elsewhere), "engines"),
        (clean, "both score"),
    ):
        with pytest.raises(ValueError, match=words):
            activation_patching(clean, other, 1, axis="position", at=0)


# The embedded model


@pytest.fixture(scope="module")
def fish() -> Asked:
    engine = vlm.load("assets/tiny", device="cpu")
    image = Image.open("assets/examples/penguins.webp").convert("RGB")
    image = image.resize((128, 128), Image.Resampling.BICUBIC)
    answer = engine.generate(image, "detect fish")
    assert answer.text.endswith(" fish")
    tokens = tuple(step.token for step in answer.steps)
    return Asked(engine, image, "detect fish", tokens)


FISH = torch.zeros(8, 8, dtype=torch.bool)
FISH[5:8, 3:6] = True


def test_a_covered_fish_is_no_longer_found(fish: Asked):
    fall = covered(fish, 0, FISH)
    assert fall > 2
    assert fall > 20 * abs(covered(fish, 0, FISH.flip(0, 1)))
    heat = occlusion(fish, 0)
    assert FISH.flatten()[heat.argmax()]
    assert float(heat[FISH].mean()) > 10 * float(heat[~FISH].abs().mean())


def test_who_does_not_see_the_fish_does_not_find_it(fish: Asked):
    for rows in ("answer", "text", "all"):
        assert knockout(fish, 0, patches=FISH, rows=rows) < -5
        assert abs(knockout(fish, 0, patches=FISH.flip(0, 1), rows=rows)) < 0.1


def test_the_fish_wanders_from_its_patches_to_the_newline(fish: Asked):
    hidden = fish.of(painted(fish.image, FISH, patch=16))
    how = {"axis": "position", "at": 0, "groups": [FISH, ~FISH]}
    here, elsewhere = (s for _, s in activation_patching(fish, hidden, 0, **how))
    assert here > 0.9 > 0.1 > elsewhere
    how = {"axis": "position", "at": -1, "groups": [FISH, ALL.new_ones(8, 8)]}
    assert [s for _, s in activation_patching(fish, hidden, 0, **how)][1] == 1
    newline = ("prompt", fish.layout(0).prompt - 1)
    image, said = (
        [
            score
            for _, score in activation_patching(fish, hidden, 0, axis="layer", at=at)
        ]
        for at in ("image", newline)
    )
    assert image[1] > 0.9 > 0.1 > said[1]
    assert said[3] > 0.9 > 0.1 > image[3]
