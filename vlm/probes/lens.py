"""The logit lens: what the vocabulary head would read before the last layer.

A layer's residual stream goes through the model's own last norm, head and soft-cap, as
if no layer followed. The reading is done while the pass runs, one layer and one chunk
of positions at a time, so that neither streams nor logits pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vlm.edit import Edit
from vlm.gemma import Gemma
from vlm.probes.asked import Asked

CHUNK = 64 << 20  # bytes of float32 logits at a time

Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Lens:
    """What was read, at one position ([layers]) or on the image ([layers, rows, ...]).

    Attributes:
        layers: which of the decoder's layers, in order.
        token: the id that was asked about.
        probability: float32 [layers] or [layers, rows, columns], of that token.
        ids: int64, as above and [..., top]: the most probable tokens, best first.
        probabilities: float32, of the same shape: theirs.
    """

    layers: tuple[int, ...]
    token: int
    probability: Tensor
    ids: Tensor
    probabilities: Tensor


def logit_lens(
    asked: Asked,
    index: int,
    *,
    top: int = 5,
    position: int | None = None,
    embedding: bool = False,
) -> Lens:
    """What every layer would say where answer token `index` was chosen.

    nostalgebraist, "interpreting GPT: the logit lens" (2020). The last layer says
    what the model said.

    Args:
        top: so many of the most probable tokens.
        position: of the sequence of image, prompt and answer before the token; None
            for the last, whose row led to the token.
        embedding: read what goes into the first layer as well, as layer -1.
    Raises:
        ValueError: the answer has no such token, or the sequence no such position.
    """
    where = asked.layout(index)
    length = where.prefix + where.forced
    position = length - 1 if position is None else position
    if not 0 <= position < length:
        raise ValueError(f"position {position} of {length} was asked for")
    rows = slice(position, position + 1)
    layers = range(-1 if embedding else 0, where.layers)
    reader = _Reader(asked, rows, layers, top, asked.token(index))
    asked.logits(index, edit=reader)
    return Lens(reader.layers, reader.token, *(part[:, 0] for part in reader.parts()))


def patch_lens(
    asked: Asked,
    index: int,
    *,
    layers: Sequence[int] | None = None,
    top: int = 3,
    token: int | None = None,
) -> Lens:
    """What the head would read at each patch, in the pass for answer token `index`.

    Neo et al., arXiv:2410.07149, and Jiang et al., arXiv:2410.02762 (who leave the
    norm out). Compare patches with each other: no loss was ever taken at an image
    position, so what is read there need be no probability of anything. Nor is a stream
    of its patch alone: the prefix of a PaliGemma sees itself whole, so that it has read
    the other patches and the prompt, and more of them with every layer.

    Args:
        layers: of the decoder; None for all. Negative ones count from the end.
        token: whose probability is mapped; None for the answer token itself.
    Raises:
        ValueError: the answer has no such token, the decoder no such layer, or the
            vocabulary no such id.
    """
    where = asked.layout(index)
    chosen = chosen_layers(layers, where.layers)
    token = asked.token(index) if token is None else token
    reader = _Reader(asked, where.patches(asked.focus), chosen, top, token)
    asked.logits(index, edit=reader)
    grid = (where.grid, where.grid)
    return Lens(chosen, token, *(part.unflatten(1, grid) for part in reader.parts()))


def read_vocabulary(
    decoder: Gemma, x: Tensor, keep: Callable[[Tensor], Kept]
) -> list[Kept]:
    """What `keep` makes of the logits that are read in residual streams x [T, D].

    It is given float32 [rows, V] of as many rows as CHUNK holds, one chunk at a time.
    """
    rows = max(1, CHUNK // (4 * decoder.config.vocabulary))
    return [keep(decoder.logits(decoder.norm(part))) for part in x.split(rows)]


def chosen_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Numbers of layers in order; None is all, negative ones count from the end.

    Raises:
        ValueError: there is no such layer.
    """
    layers = range(depth) if layers is None else layers
    if any(not -depth <= layer < depth for layer in layers):
        raise ValueError(f"layers {list(layers)} of {depth} were asked for")
    return tuple(sorted({layer % depth for layer in layers}))


class _Reader(Edit):
    """Reads some rows of some layers as they pass by, and leaves them as they are.

    An edit and no tap, for a tap is not shown the embedding.
    """

    def __init__(
        self, asked: Asked, rows: slice, layers: Sequence[int], top: int, token: int
    ) -> None:
        self.decoder = asked.engine.model.decoder
        size = self.decoder.config.vocabulary
        if not 0 <= token < size:
            raise ValueError(f"token {token} is none of the {size} that there are")
        if not 1 <= top <= size:
            raise ValueError(f"the top {top} of {size} tokens were asked for")
        self.rows = rows
        self.layers = tuple(layers)
        self.top = top
        self.token = token
        self.read: list[tuple[Tensor, ...]] = []

    def residual(self, layer: int, x: Tensor) -> Tensor:
        if layer in self.layers:
            chunks = read_vocabulary(self.decoder, x[0, self.rows], self.keep)
            self.read.append(tuple(torch.cat(parts) for parts in zip(*chunks)))
        return x

    def keep(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = logits.logsumexp(-1, keepdim=True)
        best = logits.topk(self.top)
        probability = (logits[:, self.token] - total[:, 0]).exp()
        parts = probability, best.indices, (best.values - total).exp()
        return tuple(part.cpu() for part in parts)

    def parts(self) -> list[Tensor]:
        """Probability, ids and theirs, each [layers, rows, ...]."""
        return [torch.stack(parts) for parts in zip(*self.read)]
