"""SigLIP's own attention, before the decoder saw anything: patches look at patches."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from vlm.engine import Engine
from vlm.tap import Tap, Weights
from vlm.trace import Trace

# Rows of a layer that are computed at a time.
ROWS = 256


def vision_attention(trace: Trace, patch: int, *, layer: int) -> Tensor:
    """Where a patch of the first image looked in one layer of the vision tower.

    Only this row of the layer's attention is computed.

    Args:
        trace: made with `Trace(towers=("decoder", "vision"))`.
        patch: counted row by row.
        layer: -1 is the last.
    Returns:
        float32 [heads, rows, columns]; each head's sums to one.
    Raises:
        ValueError: a trace without the vision tower, no such layer, or no such patch.
    """
    weights = _weights(trace, patch, layer)
    return _on_grid(weights(slice(patch, patch + 1))[0, :, 0])


def patch_attention(engine: Engine, image: Image.Image, patch: int) -> Tensor:
    """Where one patch looked, in every layer and head, in one pass of the tower.

    No more than this patch's row of each layer is computed or kept.

    Returns:
        float32 [layers, heads, rows, columns].
    Raises:
        ValueError: the image has no such patch.
    """
    count = engine.config.vision.patches
    if not 0 <= patch < count:
        raise ValueError(f"patch {patch} of {count} was asked for")
    watched = _Row(patch)
    engine.look(image, watched)
    return _on_grid(torch.stack(watched.rows))


def looked_at(trace: Trace, patch: int, *, layer: int) -> Tensor:
    """The reverse: how much every patch looked at this one, as `vision_attention`.

    A column of the layer's attention: all of it is computed, some rows at a time.
    """
    weights = _weights(trace, patch, layer)
    count = _patches(weights)
    columns = [
        weights(slice(start, start + ROWS))[0, :, :, patch]
        for start in range(0, count, ROWS)
    ]
    return _on_grid(torch.cat(columns, dim=-1))


class _Row(Tap):
    towers = ("vision",)

    def __init__(self, patch: int) -> None:
        self.patch = patch
        self.rows: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        self.rows.append(weights(slice(self.patch, self.patch + 1))[0, :, 0].cpu())


def _weights(trace: Trace, patch: int, layer: int) -> Weights:
    depth = sum(tower == "vision" for tower, _ in trace.passes)
    if not depth:
        raise ValueError(
            "this trace holds no vision tower: make it with "
            'Trace(towers=("decoder", "vision")) and run it'
        )
    if not -depth <= layer < depth:
        raise ValueError(f"layer {layer} of {depth} was asked for")
    weights = trace.passes["vision", layer % depth]
    count = _patches(weights)
    if not 0 <= patch < count:
        raise ValueError(f"patch {patch} of {count} was asked for")
    return weights


def _patches(weights: Weights) -> int:
    return weights(slice(0, 1)).shape[-1]


def _on_grid(rows: Tensor) -> Tensor:
    side = math.isqrt(rows.shape[-1])
    return rows.unflatten(-1, (side, side)).cpu()
