"""KVCache: keys and values of one request, preallocated, filled from the left."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Room for `capacity` positions in each of `depth` layers.

    A layer's room is made when its first keys arrive, in their dtype and on their
    device, so a decoder that is spread over several devices needs nothing special.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: list[Tensor | None] = [None] * depth
        self.values: list[Tensor | None] = [None] * depth
        self.prefix: Tensor | None = None
        self.valid: Tensor | None = None

    def note(self, prefix: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Remember what the coming positions are: bool [B, T] each.

        Returns both for all positions so far, bool [B, S].

        Raises:
            ValueError: they do not fit.
        """
        start, end = self.length, self.length + prefix.shape[1]
        if end > self.capacity:
            raise ValueError(
                f"position {end} is past the cache's capacity of {self.capacity}"
            )
        if self.prefix is None:
            self.prefix = prefix.new_zeros(prefix.shape[0], self.capacity)
            self.valid = torch.zeros_like(self.prefix)
        self.prefix[:, start:end] = prefix
        self.valid[:, start:end] = valid
        return self.prefix[:, :end], self.valid[:, :end]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v [B, K, T, H]; all keys and values [B, K, S, H], as views."""
        start, end = self.length, self.length + k.shape[2]
        if self.keys[layer] is None:
            batch, kv_heads, _, size = k.shape
            self.keys[layer] = k.new_empty(batch, kv_heads, self.capacity, size)
            self.values[layer] = torch.empty_like(self.keys[layer])
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def copy(self, capacity: int) -> KVCache:
        """The same positions in a cache of another capacity.

        Raises:
            ValueError: they do not fit.
        """
        other = KVCache(len(self.keys), capacity)
        other.note(self.prefix[:, : self.length], self.valid[:, : self.length])
        for layer, (k, v) in enumerate(zip(self.keys, self.values)):
            other.extend(layer, k[:, :, : self.length], v[:, :, : self.length])
        other.advance(self.length)
        return other

    def advance(self, count: int) -> None:
        """Called once all layers have appended their `count` positions."""
        self.length += count

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values) if t is not None)
