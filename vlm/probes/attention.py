"""Views of attention as it was: no renormalising, nothing hidden.

A row of attention sums to one over the whole sequence. Text of a PaliGemma puts a
small part of it on the image and much on bos, so say the share beside every map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.tap import Layout
from vlm.trace import Trace

SOURCES = ("image", "bos", "prompt", "answer")


def image_attention(
    trace: Trace, index: int, *, layer: int | None = None, image: int = 0
) -> Tensor:
    """How much the row that led to answer token `index` looked at each patch.

    Returns:
        float32 [layers, heads, rows, columns], or [heads, rows, columns] of one
        layer of those that the trace keeps; -1 is the last.
    """
    return _on_image(trace.answer_row(index), trace.where, layer, image)


def prompt_attention(
    trace: Trace, position: int, *, layer: int | None = None, image: int = 0
) -> Tensor:
    """The same for prompt token `position` (0 is bos): where that token looked."""
    return _on_image(trace.prompt_row(position), trace.where, layer, image)


def attention_shares(trace: Trace, index: int) -> Tensor:
    """Where the attention that led to answer token `index` lay.

    Returns:
        float32 [layers, heads, 4] over image, bos, prompt, answer; sums to one.
    """
    return _shares(trace.answer_row(index), trace.where)


def prompt_shares(trace: Trace, position: int) -> Tensor:
    """The same for prompt token `position`."""
    return _shares(trace.prompt_row(position), trace.where)


def _on_image(rows: Tensor, layout: Layout, layer: int | None, image: int) -> Tensor:
    if not 0 <= image < layout.images:
        raise ValueError(f"image {image} of {layout.images} was asked for")
    patches = layout.grid**2
    rows = rows[..., image * patches : (image + 1) * patches]
    maps = rows.unflatten(-1, (layout.grid, layout.grid))
    return maps if layer is None else maps[layer]


def _shares(rows: Tensor, layout: Layout) -> Tensor:
    ends = (0, layout.image, layout.image + 1, layout.prefix, rows.shape[-1])
    parts = [rows[..., a:b].sum(-1) for a, b in zip(ends, ends[1:])]
    return torch.stack(parts, dim=-1)
