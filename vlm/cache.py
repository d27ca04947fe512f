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

    def note(self, prefix: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Remember what the coming positions are: bool [B, T] each.

        Returns both for all positions so far, bool [B, S], and which of those the
        coming ones are, long [T].

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
        rows = torch.arange(start, end, device=prefix.device)
        return self.prefix[:, :end], self.valid[:, :end], rows

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

    def keep(self, rows: list[int]) -> None:
        """Go on with only those rows of the batch."""
        self.prefix, self.valid = self.prefix[rows], self.valid[rows]
        for parts in (self.keys, self.values):
            parts[:] = [part[rows] for part in parts]

    def advance(self, count: int) -> None:
        """Called once all layers have appended their `count` positions."""
        self.length += count

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values) if t is not None)


class StaticKV(KVCache):
    """A cache whose tensors keep their place and shape, for a step that is replayed.

    It takes one position at a time. Where that goes is a tensor too, and all that there
    is room for comes out, what has not been filled being invalid: nobody may look at
    it, and its weight in attention is exactly zero. It holds zeros, as zero times
    whatever lay in memory may be no number.

    Args:
        like: its layers, batch, heads, dtype and device are to be like this one's.

    Attributes:
        place: long [1], where the next position goes.
    """

    def __init__(self, like: KVCache, capacity: int) -> None:
        super().__init__(len(like.keys), capacity)
        self.keys = [_zeros(k, capacity, dim=2) for k in like.keys]
        self.values = [_zeros(v, capacity, dim=2) for v in like.values]
        self.prefix = _zeros(like.prefix, capacity, dim=1)
        self.valid = _zeros(like.valid, capacity, dim=1)
        self.place = torch.zeros(1, dtype=torch.long, device=like.valid.device)

    def fill(self, cache: KVCache) -> None:
        """Hold what another cache holds, and nothing else."""
        pairs = (
            *zip(self.keys, cache.keys, [2] * len(self.keys)),
            *zip(self.values, cache.values, [2] * len(self.values)),
            (self.prefix, cache.prefix, 1),
            (self.valid, cache.valid, 1),
        )
        for mine, theirs, dim in pairs:
            count = cache.length
            mine.narrow(dim, 0, count).copy_(theirs.narrow(dim, 0, count))
            mine.narrow(dim, count, self.capacity - count).zero_()
        self.place.fill_(cache.length)

    def note(self, prefix: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.prefix.index_copy_(1, self.place, prefix)
        self.valid.index_copy_(1, self.place, valid)
        return self.prefix, self.valid, self.place

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.place, k)
        self.values[layer].index_copy_(2, self.place, v)
        return self.keys[layer], self.values[layer]

    def advance(self, count: int) -> None:
        self.place.add_(count)


def _zeros(like: Tensor, count: int, dim: int) -> Tensor:
    """As many zeros as there are numbers, but `count` along one dimension."""
    return like.new_zeros(*like.shape[:dim], count, *like.shape[dim + 1 :])
