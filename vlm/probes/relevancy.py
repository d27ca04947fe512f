"""What the gradient says of attention: which of it moved the chosen token.

A layer's weights A enter as A v, so the gradient by a weight is the gradient by the
head's output times the value: no weights need to lie in the graph, and a few rows of
one layer at a time are computed. Every token has a graph of its own, so that gradients
of one never mix with those of another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vlm.probes.asked import Asked
from vlm.probes.positions import on_image
from vlm.tap import Layout, Tap, Weights

CHUNK_BYTES = 64 << 20  # of one layer's weights


def relevancy(asked: Asked, index: int, *, start: int = 0) -> Tensor:
    """Relevance of every earlier position to answer token `index`.

    Chefer et al., arXiv:2103.15679: R begins as the identity, and every layer adds
    mean over heads of max(0, A * dy/dA), times R, where y is the token's logit. Here
    for one token alone, in one pass; what is read is the row that led to the token.

    Args:
        start: the first layer that counts; later ones spread less.
    Returns:
        float32 [S] over images, prompt and the answer before the token, without the
        row's relevance to itself.
    """
    graph = _Graph.of(asked, index)
    # From the last layer down only one row of the product is needed: r <- r + r C.
    row = torch.zeros(graph.length)
    row[-1] = 1
    for layer in reversed(range(start, graph.depth)):
        moved = [
            row[rows] @ (weights * gradient).clamp(min=0).mean(0).cpu()
            for rows, weights, gradient in graph.chunks(layer)
        ]
        row = row + sum(moved)
    row[-1] -= 1
    return row


def gradient_attention(asked: Asked, index: int) -> Tensor:
    """A * max(0, d log p / dA) of the row that led to answer token `index`.

    Zhang et al., arXiv:2502.17422 (there of one layer, the mean over heads).

    Returns:
        float32 [layers, heads, rows, columns] on the image in focus.
    """
    graph = _Graph.of(asked, index, log=True)
    rows = []
    for layer in range(graph.depth):
        weights, gradient = graph.layer(layer, slice(-1, None))
        moved = (weights * gradient.clamp(min=0))[:, 0]
        rows.append(on_image(moved, graph.where, asked.focus).cpu())
    return torch.stack(rows)


class _Graph(Tap):
    """One pass for one token, and the gradient of its score by what heads gave."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.values: list[Tensor] = []
        self.outs: list[Tensor] = []

    @classmethod
    def of(cls, asked: Asked, index: int, *, log: bool = False) -> _Graph:
        graph, token = cls(), asked.token(index)
        features = asked.engine.look(asked.image).detach().clone().requires_grad_()
        logits = asked.logits(index, features=features, tap=graph)
        score = (logits.log_softmax(-1) if log else logits)[token]
        graph.gradients = torch.autograd.grad(score, graph.outs)
        return graph

    def layout(self, layout: Layout) -> None:
        self.where = layout

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        self.weights.append(weights)

    def heads(self, tower: str, layer: int, values: Tensor, out: Tensor) -> None:
        self.values.append(values)
        self.outs.append(out)

    @property
    def depth(self) -> int:
        return len(self.outs)

    @property
    def length(self) -> int:
        return self.outs[0].shape[2]

    def chunks(self, layer: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """All rows with their weights and gradients, some at a time."""
        heads = self.outs[layer].shape[1]
        count = max(1, CHUNK_BYTES // (4 * heads * self.length))
        for start in range(0, self.length, count):
            rows = slice(start, min(start + count, self.length))
            yield rows, *self.layer(layer, rows)

    @torch.no_grad()
    def layer(self, layer: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Weights of those rows and the gradient by them, float32 [N, rows, S]."""
        gradient = self.gradients[layer][0, :, rows].float()  # [N, rows, H]
        values = self.values[layer][0].float()  # [K, S, H]
        grouped = gradient.unflatten(0, (len(values), -1))  # [K, G, rows, H]
        by_weight = grouped @ values[:, None].transpose(-1, -2)  # [K, G, rows, S]
        return self.weights[layer](rows)[0], by_weight.flatten(0, 1)
