"""Trace: a Tap that keeps the attention of one request.

Rows of answer tokens are kept as they are computed. Rows of the prompt cost nothing
until they are asked for: the pass's queries and keys are kept, not its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.tap import Layout, Tap, Weights


class Trace(Tap):
    """What one request's attention was.

    Pass it to one `Engine.stream`. An answer token is led to by the row *before* it:
    the row of the newline leads to the first token, that token's to the second.

    Args:
        layers: of the decoder; None for all. Negative ones count from the end.
        towers: add "vision" to keep the vision tower's too.

    Attributes:
        layers: numbers of the decoder's layers that are kept, in order.
        where: the layout of the request's sequence.
    """

    attention_only = True

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        towers: Sequence[str] = ("decoder",),
    ) -> None:
        self.wanted = layers
        self.layers: list[int] = []
        self.towers = tuple(towers)
        self.where: Layout | None = None
        self.rows: dict[int, dict[int, Tensor]] = {}
        self.passes: dict[tuple[str, int], Weights] = {}

    @property
    def answers(self) -> int:
        """Answer tokens that can be asked about, a forced start included."""
        return len(self.rows)

    def layout(self, layout: Layout) -> None:
        if self.where is not None:
            raise ValueError("a trace holds one request; make a new Trace for another")
        self.where = layout
        wanted = range(layout.layers) if self.wanted is None else self.wanted
        if any(not -layout.layers <= layer < layout.layers for layer in wanted):
            raise ValueError(f"layers {list(wanted)} of {layout.layers} were asked for")
        self.layers = sorted({layer % layout.layers for layer in wanted})

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower not in self.towers:
            return
        if tower == "decoder" and layer not in self.layers:
            return
        self.passes.setdefault((tower, layer), weights)
        if tower == "decoder":
            count = weights.behind(self.where.prefix)
            kept = weights(slice(-count, None))[0]  # [N, count, S]
            end = kept.shape[-1] - self.where.prefix
            for i in range(count):
                index = end - count + 1 + i
                # In a pass over several of them, a row sees nothing behind itself.
                row = kept[:, i, : self.where.prefix + index]
                self.rows.setdefault(index, {})[layer] = row

    def answer_row(self, index: int) -> Tensor:
        """Attention that led to answer token `index`, float32 [L, N, S].

        S is the length of the sequence before that token.

        Raises:
            ValueError: there is no such token in this trace.
        """
        if index not in self.rows:
            known = f"0 to {self.answers - 1}" if self.rows else "none"
            raise ValueError(f"answer token {index} is not in this trace ({known})")
        row = self.rows[index]
        return torch.stack([row[layer] for layer in self.layers]).cpu()

    def prompt_row(self, position: int) -> Tensor:
        """Attention of prompt token `position` (0 is bos), float32 [L, N, prefix].

        Raises:
            ValueError: the prompt has no such token, or nothing has run.
        """
        return self.prompt_rows(range(position, position + 1))[0]

    def prompt_rows(self, positions: range) -> Tensor:
        """The same for some that follow each other, float32 [tokens, L, N, prefix]."""
        count = self.where.prompt if self.where else 0
        if not 0 <= positions.start < positions.stop <= count:
            asked = ", ".join(map(str, positions)) or "none"
            raise ValueError(f"prompt token {asked} of {count} was asked for")
        image = self.where.image
        block = slice(image + positions.start, image + positions.stop)
        rows = [self.passes["decoder", layer](block)[0] for layer in self.layers]
        return torch.stack(rows)[..., : self.where.prefix].movedim(2, 0).cpu()


class ImageShare(Tap):
    """Of the attention of each row that leads to a token, the part on the image."""

    attention_only = True

    def layout(self, layout: Layout) -> None:
        self.where = layout
        self.shares: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "decoder":
            count = weights.behind(self.where.prefix)
            rows = weights(slice(-count, None))[0]  # [N, count, S]
            self.shares.append(rows[..., : self.where.image].sum((0, -1)) / len(rows))

    def take(self) -> list[float]:
        """Of the last pass, the mean over layers and heads for each of its rows."""
        # Only here, as to ask a GPU for a number is to wait for it.
        shares = [share.to(self.shares[0].device) for share in self.shares]
        shares = torch.stack(shares).mean(0).tolist()
        self.shares.clear()
        return shares
