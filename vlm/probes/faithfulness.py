"""Does the answer depend on what a map calls important? Patches go, and it is asked.

Petsiuk et al., arXiv:1806.07421. A map is judged against others and against
`random_order`: what the model makes of a picture with holes is no clean measure, and
every map meets the same holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.image import patch_box, to_rgb
from vlm.probes.asked import Asked


@dataclass(frozen=True)
class Curve:
    """The probability of an answer token while patches go or come.

    Attributes:
        shares: of all patches, how many have gone (or come), from 0 to 1.
        probabilities: one for each.
    """

    shares: tuple[float, ...]
    probabilities: tuple[float, ...]

    @property
    def area(self) -> float:
        """Under the curve by the trapezoid rule, 0 to 1."""
        points = zip(self.shares, self.probabilities)
        return sum(
            (right - left) * (first + second) / 2
            for (left, first), (right, second) in pairwise(points)
        )


def deletion(
    asked: Asked, index: int | Sequence[int], heat: Tensor, *, steps: int = 16
) -> Curve:
    """The probability of answer token `index` while the hottest patches go first.

    A patch that has gone has the picture's mean colour. Less area is a better map.
    Costs steps + 1 passes.

    Args:
        index: one token, or several, of which the geometric mean is followed.
        heat: [rows, columns]; of equally hot patches the first goes first.
        steps: groups that the patches go in, as equal as can be.
    Raises:
        ValueError: a map off the model's grid, more steps than patches or none, or no
            such token.
    """
    *_, curve = deleting(asked, index, heat, steps=steps)
    return curve


def insertion(
    asked: Asked, index: int | Sequence[int], heat: Tensor, *, steps: int = 16
) -> Curve:
    """The same from a picture of its mean colour, while the hottest come first.

    More area is a better map. (The paper starts from a blurred picture.)
    """
    *_, curve = inserting(asked, index, heat, steps=steps)
    return curve


def deleting(
    asked: Asked, index: int | Sequence[int], heat: Tensor, *, steps: int = 16
) -> Iterator[Curve]:
    """`deletion` point by point: the curve so far."""
    order, counts = _order(asked, heat), _counts(heat, steps)
    return _growing(asked, index, counts, (order[:count] for count in counts))


def inserting(
    asked: Asked, index: int | Sequence[int], heat: Tensor, *, steps: int = 16
) -> Iterator[Curve]:
    """`insertion` point by point: the curve so far."""
    order, counts = _order(asked, heat), _counts(heat, steps)
    return _growing(asked, index, counts, (order[count:] for count in counts))


def random_order(grid: int, *, seed: int = 0) -> Tensor:
    """A map that knows nothing, float32 [grid, grid]: what others have to beat."""
    dice = torch.Generator().manual_seed(seed)
    return torch.randperm(grid**2, generator=dice).float().unflatten(0, (grid, grid))


def _order(asked: Asked, heat: Tensor) -> list[int]:
    """Patches, counted row by row, hottest first."""
    grid = asked.engine.config.vision.grid
    if heat.shape != (grid, grid):
        raise ValueError(f"the map is {tuple(heat.shape)}, the grid {(grid, grid)}")
    return heat.flatten().argsort(descending=True, stable=True).tolist()


def _counts(heat: Tensor, steps: int) -> list[int]:
    if not 1 <= steps <= heat.numel():
        raise ValueError(f"{steps} steps for {heat.numel()} patches")
    return [step * heat.numel() // steps for step in range(steps + 1)]


def _growing(
    asked: Asked,
    index: int | Sequence[int],
    counts: Sequence[int],
    gone: Iterable[Sequence[int]],
) -> Iterator[Curve]:
    rgb, curve = to_rgb(asked.images[asked.focus]), Curve((), ())
    colour = tuple(int(level) for level in np.asarray(rgb).mean((0, 1)).round())
    for count, patches in zip(counts, gone):
        picture = _without(rgb, patches, asked, colour)
        chance = asked.of(picture).log_probability(index, keep=False).exp()
        curve = Curve(
            shares=(*curve.shares, count / counts[-1]),
            probabilities=(*curve.probabilities, float(chance)),
        )
        yield curve


def _without(
    image: Image.Image, patches: Iterable[int], asked: Asked, colour: tuple[int, ...]
) -> Image.Image:
    """The picture with these patches in one colour."""
    vision = asked.engine.config.vision
    seen = vision.grid * vision.patch_size / vision.image_size
    painted = image.copy()
    for patch in patches:
        place = divmod(patch, vision.grid)
        box = patch_box(*place, grid=vision.grid, size=image.size, seen=seen)
        # Rounded alike for both neighbours, so that no pixel is left or taken twice.
        painted.paste(colour, tuple(int(edge + 0.5) for edge in box))
    return painted
