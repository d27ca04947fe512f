"""Prefix: image and prompt, read once, ready to be answered any number of times.

The prefix sees itself whole, so nothing in it depends on the answer: another try at the
same question, another temperature or a branch of the answer goes on from here. Another
prompt does not: each position of the prefix has read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm.cache import KVCache
from vlm.config import GemmaConfig
from vlm.tap import Tap, Weights


@dataclass(frozen=True, eq=False)
class Prefix:
    """What one pass over image and prompt left behind.

    Attributes:
        cache: its keys and values; to be copied, not appended to.
        logits: of the first answer token, float32 [V].
        attention: of the decoder's layers, for the taps of later requests.
    """

    cache: KVCache
    logits: Tensor
    attention: tuple[Weights, ...]

    @property
    def nbytes(self) -> int:
        queries = sum(weights.q.nbytes for weights in self.attention)
        return self.cache.nbytes + self.logits.nbytes + queries

    def show(self, tap: Tap) -> None:
        """Its attention, as if the pass had been made for this tap."""
        for layer, weights in enumerate(self.attention):
            tap.attention("decoder", layer, weights)


class PrefixAttention(Tap):
    """Collects what a `Prefix` shows later."""

    attention_only = True

    def __init__(self) -> None:
        self.layers: list[Weights] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "decoder":
            self.layers.append(weights)


def prefix_bytes(config: GemmaConfig, positions: int, itemsize: int) -> int:
    """What queries, keys and values of so many positions take, in bytes."""
    rows = config.heads + 2 * config.kv_heads
    return positions * config.depth * rows * config.head_size * itemsize
