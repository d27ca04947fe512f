"""Every way to explain, by name; and what tells how far to trust it."""

from __future__ import annotations

import pytest
import torch
from engines import Pair, picture
from PIL import Image

import vlm
from vlm.probes import METHODS, Asked, pointing, rank_correlation, shuffled
from vlm.tiny.attributions import COLUMNS, evaluate, table

PENGUINS = "assets/examples/penguins.webp"
FISH = (0.44, 0.70, 0.72, 0.94)  # where it lies in that picture


@pytest.fixture(scope="module")
def fish() -> Asked:
    engine, image = vlm.load("assets/tiny", device="cpu"), Image.open(PENGUINS)
    steps = engine.stream(image, "detect fish")
    return Asked(engine, image, "detect fish", tuple(step.token for step in steps))


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_way_gives_one_map_of_all_tokens(fish: Asked, name: str):
    heat = METHODS[name].heat(fish, [0, 1, 2, 3])
    assert heat.shape == (8, 8) and heat.dtype == torch.float32
    assert float(heat.min()) >= 0 and float(heat.max()) > 0
    assert not heat.requires_grad
    one, other = (METHODS[name].heat(fish, [token]) for token in (0, 3))
    if name != "occlusion":  # there what is averaged may be below zero
        both = METHODS[name].heat(fish, [0, 3])
        torch.testing.assert_close(both, (one + other) / 2)
    assert float((one - other).abs().max()) > 0


@pytest.mark.parametrize(
    "name", ["attention", "rollout", "relevancy", "gradient", "occlusion"]
)
def test_the_fish_is_found_where_it_is(fish: Asked, name: str):
    assert bool(pointing(METHODS[name].heat(fish, [0, 1, 2, 3]), FISH))


def test_every_way_works_on_both_generations(both: Pair, name: str):
    answer = tuple(both.engine.tokenizer.answer_ids("<loc0100><loc0200> cat"))
    asked = Asked(both.engine, picture(), "detect cat", answer)
    heat = METHODS[name].heat(asked, [1])
    assert heat.shape == (4, 4) and bool(heat.isfinite().all())


def test_every_way_says_what_it_shows_and_what_it_does_not():
    for method in METHODS.values():
        for words in (method.shows, method.hides):
            assert words.endswith(".") and 40 < len(words) < 220
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


# --- sanity --------------------------------------------------------------------------


def test_shuffled_weights_are_the_same_numbers_in_another_order(fish: Asked):
    engine, other = fish.engine, shuffled(fish.engine)
    before, after = engine.model.state_dict(), other.model.state_dict()
    for key, weight in before.items():
        blocks = key.startswith("decoder.blocks.") and weight.dim() > 1
        assert torch.equal(weight, after[key]) is not blocks, key
        assert torch.equal(weight.flatten().sort()[0], after[key].flatten().sort()[0])
    answer = engine.generate(fish.image, "detect fish").text
    assert "fish" in answer and other.generate(fish.image, "detect fish").text != answer


def test_rank_correlation_is_spearmans():
    def brute(a: list[float], b: list[float]) -> float:
        ranks = [[sum(y < x for y in v) + v.count(x) / 2 for x in v] for v in (a, b)]
        return float(torch.corrcoef(torch.tensor(ranks))[0, 1])

    dice = torch.Generator().manual_seed(3)
    for _ in range(20):
        a, b = (torch.randint(0, 6, (3, 4), generator=dice).float() for _ in range(2))
        expected = brute(a.flatten().tolist(), b.flatten().tolist())
        assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-6)
    heat = torch.rand(4, 4, generator=dice)
    assert rank_correlation(heat, heat.exp()) == pytest.approx(1)
    assert rank_correlation(heat, -heat) == pytest.approx(-1)
    assert rank_correlation(heat, torch.ones(4, 4)) == 0


# --- the evaluation ------------------------------------------------------------------


def test_the_evaluation_tells_good_maps_from_random_ones():
    found = evaluate("assets/tiny", prompts=2, processes=1)
    assert set(found) == {"random", "centre", *METHODS}
    assert found["attention"]["pointing"] > found["random"]["pointing"]
    assert found["attention"]["mass"] > 2 * found["random"]["mass"]
    assert found["occlusion"]["deletion"] < found["random"]["deletion"]
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert all(line.count("|") == 2 + len(COLUMNS) for line in lines)
