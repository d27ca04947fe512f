"""How good a map is, where the box of what it should find is known.

Boxes are x1, y1, x2, y2 in shares of the picture, 0 to 1; maps are [..., rows, columns]
over the whole of it and hold nothing negative. Scores keep the leading axes, so those
of [layers, heads] tell which head found the thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


def pointing(maps: Tensor, box: Box) -> Tensor:
    """Whether the hottest patch's centre lies in the box, edges included.

    The pointing game of Zhang et al., arXiv:1608.00507, without its margin. Of equally
    hot patches the first counts.

    Returns:
        bool [...].
    Raises:
        ValueError: the box is empty or leaves the picture.
    """
    x1, y1, x2, y2 = _checked(box)
    rows, columns = maps.shape[-2:]
    peak = maps.flatten(-2).argmax(-1)
    x = (peak % columns + 0.5) / columns
    y = (peak // columns + 0.5) / rows
    return (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)


def mass_in_box(maps: Tensor, box: Box) -> Tensor:
    """The share of a map's mass in the box; a patch that is cut counts in part.

    The energy-based pointing game of Wang et al., arXiv:1910.01279. A map of nothing
    has nothing in the box.

    Returns:
        float32 [...], 0 to 1.
    Raises:
        ValueError: the box is empty or leaves the picture, or a map is negative.
    """
    if (least := float(maps.min())) < 0:
        raise ValueError(f"a map holds {least:.3g}, and mass is at least 0")
    inside = (maps * _covered(box, *maps.shape[-2:]).to(maps)).sum((-2, -1))
    return inside / maps.sum((-2, -1)).clamp(min=torch.finfo(maps.dtype).tiny)


def lift_in_box(maps: Tensor, box: Box) -> Tensor:
    """`mass_in_box` over the box's share of the picture: 1 is an even map's.

    Returns:
        float32 [...].
    """
    x1, y1, x2, y2 = _checked(box)
    return mass_in_box(maps, box) / ((x2 - x1) * (y2 - y1))


def best_head(maps: Tensor, box: Box) -> tuple[int, int, float]:
    """Layer, head and lift of the map [layers, heads, rows, columns] that lies best.

    Shapes alone are compared: the best head may look little at the image at all.
    """
    lift = lift_in_box(maps, box)
    layer, head = divmod(int(lift.argmax()), lift.shape[1])
    return layer, head, float(lift[layer, head])


def patches_in(box: Box, grid: int) -> Tensor:
    """The patches of which at least half lies in the box, bool [grid, grid].

    Of a box that has half of none, the one that it covers most.

    Raises:
        ValueError: the box is empty or leaves the picture.
    """
    covered = _covered(box, grid, grid)
    return covered >= covered.max().clamp(max=0.5)


def _covered(box: Box, rows: int, columns: int) -> Tensor:
    """The part of each patch that the box covers, float64 [rows, columns]."""
    x1, y1, x2, y2 = _checked(box)
    return torch.outer(_overlap(rows, y1, y2), _overlap(columns, x1, x2))


def _overlap(count: int, low: float, high: float) -> Tensor:
    """The part of each of `count` equal pieces of 0..1 between low and high."""
    edges = torch.arange(count + 1, dtype=torch.float64)
    cut = edges.clamp(low * count, high * count)
    return cut[1:] - cut[:-1]


def _checked(box: Box) -> Box:
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ValueError(f"the box {tuple(box)} is empty or leaves the picture, 0 to 1")
    return x1, y1, x2, y2
