"""The arithmetic of the evaluation: boxes, masks, rankings, confidences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm.grounding import overlap

RIGHT = 0.5  # intersection over union from which a box counts as right

Box = Sequence[float]  # x1, y1, x2, y2


def match(
    boxes: Sequence[Box | None], truths: Sequence[Box], *, least: float = RIGHT
) -> list[int | None]:
    """For each box the number of its truth, None for a false one.

    Greedy and one to one: the pair that overlaps most goes first, so that of two
    boxes on one thing the better is right and the other false. None as a box stands
    for one without coordinates, which is always false.
    """
    pairs = [
        (overlap(box, truth), i, j)
        for i, box in enumerate(boxes)
        for j, truth in enumerate(truths)
        if box is not None
    ]
    found: list[int | None] = [None] * len(boxes)
    taken: set[int] = set()
    for share, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if share >= least and found[i] is None and j not in taken:
            found[i] = j
            taken.add(j)
    return found


def mask_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool arrays."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def paste(mask: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """A mask [64, 64] of what a box holds, in a picture of `size` (W, H); bool [H, W].

    Each pixel's centre is looked up between the four nearest entries; 0.5 is in.
    """
    x1, y1, x2, y2 = box
    high, wide = mask.shape
    across, down = wide / (x2 - x1), high / (y2 - y1)
    lookup = (across, 0, -x1 * across, 0, down, -y1 * down)
    picture = Image.fromarray(np.ascontiguousarray(mask, np.float32))
    bilinear = Image.Resampling.BILINEAR
    pasted = picture.transform(size, Image.Transform.AFFINE, lookup, bilinear)
    return np.asarray(pasted) >= 0.5


def f1(right: int, said: int, there: int) -> float:
    """2 / (1 / precision + 1 / recall), which is 2 right / (said + there)."""
    return 2 * right / (said + there) if said + there else 0.0


def average_precision(
    confidences: Sequence[float], right: Sequence[bool], there: int
) -> float:
    """The area under precision over recall, best confidence first.

    All-point interpolation: at each recall the best precision at that recall or more
    (Everingham et al., "The PASCAL VOC challenge: a retrospective", 2015). Equal
    confidences keep their order. `there` is the number of things to be found.

    Raises:
        ValueError: there is nothing to be found, or more was found than there is.
    """
    ranked = np.asarray(right, bool)[
        np.argsort(-np.asarray(confidences), kind="stable")
    ]
    if not 0 < there >= np.count_nonzero(ranked):
        raise ValueError(f"{np.count_nonzero(ranked)} of {there} things were found")
    found = np.cumsum(ranked)
    precision = found / np.arange(1, len(found) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[ranked].sum() / there)


def calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], *, bins: int = 10
) -> float:
    """Expected calibration error: |accuracy - mean confidence|, bin by bin.

    Bins of equal width, weighted by how many lie in them (Guo et al., "On calibration
    of modern neural networks", arXiv:1706.04599).
    """
    stated, true = np.asarray(probabilities, float), np.asarray(right, float)
    place = np.clip(np.ceil(stated * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, true - stated, minlength=bins)
    return float(np.abs(gaps).sum() / len(stated))
