"""Samplers are values: `greedy`, `TopP(0.9, seed=7)`. Each request starts its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

Pick = Callable[[Tensor], int]

BLOCK = 64  # tokens


class Sampler(Protocol):
    def start(self) -> Pick:
        """For one answer: a function from logits [V] to a token."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The most probable token, every time."""

    def start(self) -> Pick:
        return lambda logits: int(logits.argmax())


@dataclass(frozen=True)
class Temperature:
    """Draw from softmax(logits / t).

    Raises:
        ValueError: t is not above zero.
    """

    t: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_temperature(self.t)

    def start(self) -> Pick:
        return _drawing(self.seed, lambda logits: logits / self.t)


@dataclass(frozen=True)
class TopP:
    """Draw from the fewest tokens that together hold p (Holtzman, arXiv:1904.09751).

    Raises:
        ValueError: p is not in (0, 1], or t is not above zero.
    """

    p: float
    t: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_temperature(self.t)
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p}; it must be above 0 and at most 1")

    def start(self) -> Pick:
        return _drawing(self.seed, self._keep)

    def _keep(self, logits: Tensor) -> Tensor:
        ordered, order = (logits / self.t).sort(descending=True)
        chances = ordered.softmax(-1)
        # A token stays if those before it do not hold p yet; so the first stays.
        out = chances.cumsum(-1) - chances >= self.p
        return torch.empty_like(logits).scatter(
            0, order, ordered.masked_fill(out, -torch.inf)
        )


@dataclass(frozen=True)
class TopK:
    """Draw from the k most probable tokens.

    Raises:
        ValueError: k is below 1, or t is not above zero.
    """

    k: int
    t: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_temperature(self.t)
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1")

    def start(self) -> Pick:
        return _drawing(self.seed, self._keep)

    def _keep(self, logits: Tensor) -> Tensor:
        values, indices = likeliest(logits, self.k)
        kept = torch.full_like(logits, -torch.inf)
        return kept.scatter(0, indices, values / self.t)


greedy = Greedy()


def likeliest(row: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest numbers of a row [V] and where they are, largest first.

    There are fewer than `count` only where V is less. A CPU's `topk` goes through all
    of a row slowly: here it is told of the largest in each block, and then goes through
    the blocks that have the largest of those, outside of which none can be.
    """
    count = min(count, len(row))
    if len(row) % BLOCK:  # of no published vocabulary
        return tuple(row.topk(count))
    blocks = row.view(-1, BLOCK)
    chosen = blocks.amax(-1).topk(min(count, len(blocks))).indices
    values, places = blocks[chosen].flatten().topk(count)
    return values, chosen[places // BLOCK] * BLOCK + places % BLOCK


def finite(rows: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same rows of logits [V], of which the largest is a number in each.

    Where one is NaN, argmax would take it for the largest, and it may be what ends an
    answer: an empty one would be told, and no fault.

    Raises:
        ValueError: it is NaN or infinite.
    """
    if not all(isfinite(row.amax()) for row in rows):
        raise ValueError(
            "The model computed no numbers (NaN or infinity) where its next token was "
            "to be chosen: its weights are damaged, or too large for their dtype. "
            "Load it anew, in float32 if it was in half precision."
        )
    return rows


def _drawing(seed: int, shape: Callable[[Tensor], Tensor]) -> Pick:
    """On the CPU, so that a seed means the same on every device."""
    random = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> int:
        chances = shape(logits.float().cpu()).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=random))

    return pick


def _check_temperature(t: float) -> None:
    if not t > 0:
        raise ValueError(f"the temperature is {t}; it must be above 0 (or use greedy)")
