"""Attention rollout: where attention leads when it is followed through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.trace import Trace

# Rows of a layer that are computed at a time.
ROWS = 256


@torch.no_grad()
def rollout(trace: Trace, index: int) -> Tensor:
    """From how much of every earlier position attention led to answer token `index`.

    Abnar and Zuidema, arXiv:2005.00928: every layer is (mean over heads of A + I) / 2,
    and their product from the last to the first is read at the row that led to the
    token. Attention alone is followed: not values, not the MLP.

    Returns:
        float32 [S] over images, prompt and the answer before the token; sums to one.
    Raises:
        ValueError: the trace does not keep all layers, or has no such token.
    """
    last = trace.answer_row(index)
    depth = trace.where.layers
    if len(trace.layers) < depth:
        raise ValueError(f"rollout needs all {depth} layers, not {trace.layers}")
    # From the last layer down only one row of the product is needed.
    row = torch.zeros(last.shape[-1])
    row[-1] = 1
    for layer in reversed(range(depth)):
        row = (row + _followed(row, trace, layer)) / 2
    return row


def _followed(row: Tensor, trace: Trace, layer: int) -> Tensor:
    """row A, with A [S, S] of one layer, the mean over its heads."""
    prefix, weights = trace.where.prefix, trace.passes["decoder", layer]
    total = torch.zeros_like(row)
    for start in range(0, prefix, ROWS):
        rows = slice(start, min(start + ROWS, prefix))
        mean = weights(rows)[0].mean(0)[:, :prefix]  # [rows, prefix]
        total[:prefix] += (row[rows].to(mean) @ mean).cpu()
    for position in range(prefix, len(row)):
        # The row of one answer token leads to the next.
        mean = trace.rows[position - prefix + 1][layer].mean(0).cpu()
        total[: position + 1] += row[position] * mean
    return total
