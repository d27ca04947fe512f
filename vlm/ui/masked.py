"""A mask that somebody drew, as the start of an answer, and what is left of it there.

Sixteen codes cannot tell all of a shape, nor can places that are told in bands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

import vlm
from vlm.grounding import BINS
from vlm.metrics import mask_overlap, paste


@dataclass(frozen=True)
class Masked:
    """The tokens of a mask.

    Attributes:
        text: 4 locs and 16 segs.
        box: x1, y1, x2, y2 as they tell it, in shares of the sides.
        iou: intersection over union of the mask and of what the tokens say.
    """

    text: str
    box: tuple[float, float, float, float]
    iou: float


def masked(engine: Any, mask: np.ndarray, *, band: int = 1) -> Masked:
    """The tokens of a mask, bool [H, W] over the whole picture.

    `band` is that of `vlm.mask_tokens`.

    Raises:
        ValueError: the engine has no masks, or nothing is in this one.
    """
    if engine.masks is None:
        raise ValueError(
            f"{engine.name} came without an encoder of masks. Put Google's vae-oid.npz "
            "beside its weights, and load it again."
        )
    if not mask.any():
        raise ValueError("This mask is empty. Paint something inside the picture.")
    text = vlm.mask_tokens(mask, engine.masks.encode, band=band)
    y1, x1, y2, x2, *codes = map(int, re.findall(r"\d+", text))
    box = (x1 / BINS, y1 / BINS, x2 / BINS, y2 / BINS)
    size = mask.shape[::-1]
    edges = [share * size[i % 2] for i, share in enumerate(box)]
    kept = paste(engine.masks(codes), edges, size)
    return Masked(text, box, round(float(mask_overlap(mask, kept)), 3))
