"""Views of attention as it was: no renormalising, nothing hidden.

A row of attention sums to one over the whole sequence. Text of a PaliGemma puts a
small part of it on the image and much on bos, so say the share beside every map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.probes.positions import on_image
from vlm.tap import Layout
from vlm.trace import Trace

SOURCES = ("image", "bos", "prompt", "answer")
# Of the mean patch: so little is not divided by, or nothing else would be seen.
LEAST = 0.01


def image_attention(
    trace: Trace, index: int, *, layer: int | None = None, image: int = 0
) -> Tensor:
    """How much the row that led to answer token `index` looked at each patch.

    Args:
        layer: one of those that the trace keeps, -1 for the last; None for all.
        image: which of them, where several were asked about.
    Returns:
        float32 [layers, heads, rows, columns], or [heads, rows, columns] of a layer.
    Raises:
        ValueError: there is no such token or image in this trace.
    """
    maps = on_image(trace.answer_row(index), trace.where, image)
    return maps if layer is None else maps[layer]


def prompt_attention(
    trace: Trace, position: int, *, layer: int | None = None, image: int = 0
) -> Tensor:
    """The same for prompt token `position` (0 is bos): where that token looked."""
    maps = on_image(trace.prompt_row(position), trace.where, image)
    return maps if layer is None else maps[layer]


def attention_shares(trace: Trace, index: int) -> Tensor:
    """Where the attention that led to answer token `index` lay.

    Returns:
        float32 [layers, heads, 4] over image, bos, prompt, answer; sums to one.
    """
    return shares(trace.answer_row(index), trace.where)


def prompt_shares(trace: Trace, position: int) -> Tensor:
    """The same for prompt token `position`."""
    return shares(trace.prompt_row(position), trace.where)


def shares(rows: Tensor, layout: Layout) -> Tensor:
    """Rows [..., S] over image, bos, prompt and answer, [..., 4]."""
    ends = (0, layout.image, layout.image + 1, layout.prefix, rows.shape[-1])
    parts = [rows[..., a:b].sum(-1) for a, b in zip(ends, ends[1:])]
    return torch.stack(parts, dim=-1)


def region_balance(trace: Trace, index: int) -> Tensor:
    """`attention_shares`, the mean over heads: float32 [layers, 4]."""
    return attention_shares(trace, index).mean(1)


def via_bos(trace: Trace, index: int, *, image: int = 0) -> Tensor:
    """What bos may have passed on: attention to bos times bos's own to each patch.

    Both are of the same layer and head. It says where such a detour would lead, not
    that it was taken: what bos holds was gathered in the layers below.

    Returns:
        float32 [layers, heads, rows, columns].
    """
    to_bos = trace.answer_row(index)[..., trace.where.image]
    return to_bos[..., None, None] * prompt_attention(trace, 0, image=image)


def relative_attention(
    trace: Trace, general: Trace, index: int, *, at: int = 0, image: int = 0
) -> Tensor:
    """Attention under a question divided by that under a general one: sinks cancel.

    Zhang et al., arXiv:2502.17422 (there of one middle layer and the first answer
    token). As there, the mean over heads is taken before the division. What is divided
    by counts as a hundredth of the layer's mean patch where it is less (the paper
    divides by it all the same), and the quotient is finite: where the question did not
    look either it is zero.

    Args:
        general: of the same image, asked for instance "caption en".
        at: the general answer's token. The row of the prompt's last token leads to
            token 0, which is the paper's.
    Returns:
        float32 [layers, rows, columns]; 1 is as much as in general.
    Raises:
        ValueError: the traces keep different layers or grids, or have no such token.
    """
    for ours, theirs, what in (
        (trace.layers, general.layers, "layers"),
        (_grid(trace), _grid(general), "a grid of"),
    ):
        if ours != theirs:
            raise ValueError(f"one trace has {what} {ours}, the other {theirs}")
    asked = image_attention(trace, index, image=image).mean(1)
    usual = image_attention(general, at, image=image).mean(1)
    least = LEAST * usual.mean((1, 2), keepdim=True)
    return asked / usual.maximum(least).clamp(min=torch.finfo(usual.dtype).eps)


def head_of_largest_variance(maps: Tensor) -> Tensor:
    """Of each layer the head whose map varies most, the first of equal ones.

    Maps as they are favour heads that look much at the image; divide each by its sum
    to compare shapes alone.

    Args:
        maps: [layers, heads, rows, columns].
    Returns:
        int64 [layers].
    """
    return maps.flatten(-2).var(-1).argmax(-1)


def _grid(trace: Trace) -> int | None:
    return trace.where.grid if trace.where else None
