"""Scores of maps are what counting pixels gives, and curves what asking again does."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import Pair, picture
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from vlm.probes.asked import Asked
from vlm.probes.faithfulness import Curve, deletion, insertion, random_order
from vlm.probes.scores import best_head, lift_in_box, mass_in_box, pointing

# In twentieths, so that a picture of 20 pixels for each patch shows them exactly.
BOXES = [
    (0.0, 0.0, 1.0, 1.0),
    (0.1, 0.25, 0.6, 0.9),
    (0.35, 0.4, 0.45, 0.5),  # inside one patch
    (0.0, 0.55, 1.0, 0.6),
    (0.85, 0.0, 1.0, 0.3),
]
PROMPT = "detect cat ; dog"


def some_maps(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4)) ** 3


def in_pixels(one: Tensor, box) -> tuple[np.ndarray, np.ndarray]:
    """A map spread over pixels, and which of them lie in the box."""
    pixels = np.kron(one.double().numpy(), np.ones((20, 20)))
    height, width = pixels.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    x1, y1, x2, y2 = box
    return pixels, ((y1 < y) & (y < y2))[:, None] & ((x1 < x) & (x < x2))


@pytest.mark.parametrize("box", BOXES)
def test_mass_and_lift_are_what_pixels_add_up_to(box) -> None:
    maps = some_maps(3, 2, 4, 5)
    mass, lift = mass_in_box(maps, box), lift_in_box(maps, box)
    assert mass.shape == lift.shape == (3, 2) and mass.dtype == torch.float32
    for place in np.ndindex(3, 2):
        pixels, inside = in_pixels(maps[place], box)
        expected = pixels[inside].sum() / pixels.sum()
        assert float(mass[place]) == pytest.approx(expected, rel=1e-5)
        assert float(lift[place]) == pytest.approx(expected / inside.mean(), rel=1e-5)


def test_an_even_map_has_no_lift_and_an_empty_one_no_mass() -> None:
    even = torch.full((4, 5), 0.03)
    for box in BOXES:
        assert float(lift_in_box(even, box)) == pytest.approx(1)
        assert float(mass_in_box(torch.zeros(4, 5), box)) == 0


@pytest.mark.parametrize("box", BOXES)
def test_pointing_asks_where_the_hottest_patch_has_its_centre(box) -> None:
    x1, y1, x2, y2 = box
    maps = torch.zeros(4, 5, 4, 5)
    for row, column in np.ndindex(4, 5):
        maps[row, column] = 0.2 * some_maps(4, 5)
        maps[row, column, row, column] = 0.5
    found = pointing(maps, box)
    for row, column in np.ndindex(4, 5):
        # In the middle of the patch's 20 by 20 pixels.
        x, y = (20 * column + 10) / 100, (20 * row + 10) / 80
        assert bool(found[row, column]) == (x1 <= x <= x2 and y1 <= y <= y2)


def test_of_equal_peaks_the_first_counts() -> None:
    two = torch.zeros(4, 5)
    two[1, 3] = two[2, 0] = 0.7
    assert bool(pointing(two, (0.6, 0.25, 0.8, 0.5)))
    assert not bool(pointing(two, (0.0, 0.5, 0.2, 0.75)))


def test_the_best_head_is_found_in_its_layer() -> None:
    box = (0.2, 0.25, 0.6, 0.75)
    maps = 1 + some_maps(3, 4, 4, 5)
    maps[2, 1, 1:3, 1:3] += 40
    maps[0, 3] *= 1000  # much of everything is not better
    layer, head, score = best_head(maps, box)
    assert (layer, head) == (2, 1)
    pixels, inside = in_pixels(maps[2, 1], box)
    share = pixels[inside].sum() / pixels.sum()
    assert score == pytest.approx(share / 0.2, rel=1e-5)


def test_boxes_and_maps_that_make_no_sense_are_refused() -> None:
    for box in ((0.5, 0, 0.5, 1), (0, 0.6, 1, 0.4), (-0.1, 0, 1, 1), (0, 0, 1, 1.5)):
        for score in (pointing, mass_in_box, lift_in_box):
            with pytest.raises(ValueError, match="empty or leaves"):
                score(some_maps(4, 5), box)
    with pytest.raises(ValueError, match="-0.5"):
        mass_in_box(torch.tensor([[0.5, -0.5]]), (0, 0, 1, 1))


class Stub:
    """An engine that keeps what it is shown; `says` gives the logits for a picture."""

    def __init__(self, says, *, grid: int = 4, patch: int = 7, size: int = 28) -> None:
        vision = SimpleNamespace(grid=grid, patch_size=patch, image_size=size)
        self.config = SimpleNamespace(vision=vision)
        self.says, self.shown = says, []

    def logits(self, image, prompt, answer, **how) -> Tensor:
        self.shown.append(np.asarray(image).copy())
        return self.says(self.shown[-1])[None]


def with_holes(image: Image.Image, gone, grid: int, seen: float = 1) -> np.ndarray:
    """Pixel by pixel: each belongs to the patch that its centre lies in."""
    pixels = np.asarray(image).copy()
    colour = np.round(pixels.reshape(-1, 3).mean(0))
    height, width = pixels.shape[:2]
    for y in range(height):
        for x in range(width):
            # On the edge of two patches: to the first of them.
            row = math.ceil((y + 0.5) * grid / (height * seen)) - 1
            column = math.ceil((x + 0.5) * grid / (width * seen)) - 1
            if max(row, column) < grid and row * grid + column in gone:
                pixels[y, x] = colour
    return pixels


@pytest.mark.parametrize("size", [(50, 34), (31, 90), (3, 2)])
def test_patches_of_the_original_picture_go_hottest_first(size) -> None:
    image, heat = picture(3, size), some_maps(4, 4)
    heat[2, 1] = heat[0, 3]  # the first of equal ones goes first
    order = sorted(range(16), key=lambda patch: -float(heat.flatten()[patch]))
    engine = Stub(lambda _: torch.zeros(9))
    asked = Asked(engine, image, PROMPT, (4,))
    shares = tuple(count / 16 for count in (0, 3, 6, 9, 12, 16))
    for curve, gone in (
        (deletion, lambda count: order[:count]),
        (insertion, lambda count: order[count:]),
    ):
        engine.shown.clear()
        assert curve(asked, 0, heat, steps=5).shares == shares
        assert len(engine.shown) == 6
        for shown, count in zip(engine.shown, (0, 3, 6, 9, 12, 16)):
            np.testing.assert_array_equal(shown, with_holes(image, gone(count), 4))


def test_pixels_that_no_patch_looks_at_are_left() -> None:
    image = picture(3, (46, 92))
    engine = Stub(lambda _: torch.zeros(9), patch=5, size=23)
    deletion(Asked(engine, image, PROMPT, (4,)), 0, some_maps(4, 4), steps=1)
    expected = with_holes(image, range(16), 4, seen=20 / 23)
    np.testing.assert_array_equal(engine.shown[-1], expected)
    np.testing.assert_array_equal(expected[:, 40:], np.asarray(image)[:, 40:])


def test_transparency_and_grey_pictures_are_taken_as_the_model_takes_them() -> None:
    image = picture(3).convert("RGBA")
    image.putalpha(0)  # all white, then
    engine = Stub(lambda _: torch.zeros(9))
    deletion(Asked(engine, image, PROMPT, (4,)), 0, some_maps(4, 4), steps=2)
    assert all(shown.shape == (34, 50, 3) for shown in engine.shown)
    assert all((shown == 255).all() for shown in engine.shown)


def test_a_model_that_does_not_look_has_its_probability_as_area() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1])
    asked = Asked(Stub(lambda _: logits), picture(), PROMPT, (2, 3))
    for index, token in ((0, 2), (1, 3)):
        chance = float(logits.softmax(-1)[token])
        for curve in (deletion, insertion):
            found = curve(asked, index, some_maps(4, 4), steps=7)
            assert found.area == pytest.approx(chance)
            assert found.probabilities == pytest.approx([chance] * 8)


def test_the_area_is_exact_under_straight_pieces() -> None:
    curve = Curve((0.0, 0.25, 1.0), (0.8, 0.4, 0.1))
    assert curve.area == pytest.approx(0.25 * 0.6 + 0.75 * 0.25)


def test_curves_are_what_asking_with_holes_gives(both: Pair) -> None:
    image, heat = picture(9), some_maps(4, 4)
    steps = list(both.engine.stream(image, PROMPT, max_tokens=3, stop=()))
    asked = Asked(both.engine, image, PROMPT, tuple(s.token for s in steps))
    order = sorted(range(16), key=lambda patch: -float(heat.flatten()[patch]))
    before, token = asked.answer[:2], asked.answer[2]
    found = {
        deletion: deletion(asked, 2, heat, steps=4).probabilities,
        insertion: insertion(asked, 2, heat, steps=4).probabilities,
    }
    for curve, probabilities in found.items():
        for step, probability in enumerate(probabilities):
            first, last = order[: 4 * step], order[4 * step :]
            gone = first if curve is deletion else last
            holes = Image.fromarray(with_holes(image, gone, 4))
            inputs = both.inputs([holes], PROMPT)
            more = torch.tensor([before])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
            for name in ("token_type_ids", "attention_mask"):
                ones = torch.ones_like(more)
                inputs[name] = torch.cat([inputs[name], ones], dim=1)
            with torch.no_grad():
                chances = both.oracle(**inputs).logits[0, -1].softmax(-1)
            assert probability == pytest.approx(float(chances[token]), rel=1e-3)
    assert found[deletion][0] == pytest.approx(steps[2].probability, rel=1e-4)
    assert found[insertion][-1] == pytest.approx(steps[2].probability, rel=1e-4)
    assert len(set(found[deletion])) == 5


def test_a_map_that_knows_beats_one_that_does_not() -> None:
    """The answer depends on one patch alone."""
    image, place = picture(9, (40, 40)), (slice(10, 20), slice(30, 40))
    whole = np.asarray(image)[place]

    def says(shown: np.ndarray) -> Tensor:
        there = (shown[place] == whole).all()
        return torch.tensor([0.0, 5.0 if there else -5.0])

    asked = Asked(Stub(says), image, PROMPT, (1,))
    heat = torch.zeros(4, 4)
    heat[1, 3] = 1
    good, bad = float(torch.sigmoid(torch.tensor(5.0))), 1 / (1 + math.exp(5))
    knows = 1 / 16 * (good + bad) / 2 + 15 / 16 * bad
    assert deletion(asked, 0, heat).area == pytest.approx(knows, rel=1e-4)
    assert insertion(asked, 0, heat).area == pytest.approx(1 - knows, rel=1e-4)
    areas = [deletion(asked, 0, random_order(4, seed=s)).area for s in range(5)]
    assert min(areas) > knows


def test_a_random_order_is_every_patch_once_and_comes_again() -> None:
    first, second = random_order(5, seed=1), random_order(5, seed=2)
    assert first.shape == (5, 5) and first.dtype == torch.float32
    assert sorted(first.flatten().tolist()) == list(range(25))
    assert_close(first, random_order(5, seed=1))
    assert not torch.equal(first, second)


def test_curves_say_what_does_not_fit() -> None:
    asked = Asked(Stub(lambda _: torch.zeros(9)), picture(), PROMPT, (4,))
    with pytest.raises(ValueError, match=r"\(4, 5\), the grid \(4, 4\)"):
        deletion(asked, 0, some_maps(4, 5))
    for steps in (0, 17):
        with pytest.raises(ValueError, match=f"{steps} steps for 16"):
            insertion(asked, 0, some_maps(4, 4), steps=steps)
    with pytest.raises(ValueError, match="token 1 of 1"):
        deletion(asked, 1, some_maps(4, 4))
