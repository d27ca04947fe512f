"""Tap: everything that a forward pass will show, to whoever asks.

A tap belongs to one request and is passed down like the KV cache. The model tells it
what happens; the base class looks away, so a request that asks for nothing pays for
nothing. Observations go out through a tap; interventions come in as inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


class Tap:
    """Looks away. Subclass it and override what you want to see.

    Attributes:
        towers: whose passes this tap is to be shown. Image features are kept between
            requests; with "vision" among the towers the image is looked at again.
        attention_only: whether attention is all that it looks at. The attention of a
            prefix is kept between requests; for the rest the pass is made again.
    """

    towers: tuple[str, ...] = ("decoder",)
    attention_only: bool = False

    def layout(self, layout: Layout) -> None:
        """How the coming sequence is laid out. Told once, before the first pass."""

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        """Attention of one layer of `tower` ("vision" or "decoder")."""

    def heads(self, tower: str, layer: int, values: Tensor, out: Tensor) -> None:
        """What the heads of a layer read and give, before they are mixed.

        values: [B, K, S, H], each shared by N / K neighbouring heads; out: weights
        times values, [B, N, T, H].
        """

    def residual(self, tower: str, layer: int, x: Tensor) -> None:
        """The residual stream [B, T, D] after `layer`."""


class Taps(Tap):
    """Several taps on one pass."""

    def __init__(self, *taps: Tap) -> None:
        self.taps = taps
        self.towers = tuple({tower for tap in taps for tower in tap.towers})
        self.attention_only = all(tap.attention_only for tap in taps)

    def layout(self, layout: Layout) -> None:
        for tap in self.taps:
            tap.layout(layout)

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        for tap in self.taps:
            tap.attention(tower, layer, weights)

    def heads(self, tower: str, layer: int, values: Tensor, out: Tensor) -> None:
        for tap in self.taps:
            tap.heads(tower, layer, values, out)

    def residual(self, tower: str, layer: int, x: Tensor) -> None:
        for tap in self.taps:
            tap.residual(tower, layer, x)


@dataclass(frozen=True, eq=False)
class Weights:
    """Attention probabilities of one layer in one pass, computed when asked for.

    `weights(rows)` gives those of some query rows, float32 [B, N, rows, S]: the very
    numbers that are multiplied with the values.

    Attributes:
        rule: q, k and rows to probabilities.
        q: [B, N, T, H], the queries of the pass.
        k: [B, K, S, H], all keys so far. Of a replayed step both are mere shapes,
            tensors on `meta`: its own are overwritten by the next.
    """

    rule: Callable[[Tensor, Tensor, slice], Tensor]
    q: Tensor
    k: Tensor

    def __call__(self, rows: slice) -> Tensor:
        return self.rule(self.q, self.k, rows)

    def computed(self) -> Weights:
        """The same, computed now, for rows that several will read."""
        whole = self(slice(None))
        return Weights(lambda q, k, rows: whole[:, :, rows], self.q, self.k)

    def behind(self, prefix: int) -> int:
        """How many of the last rows lead to answer tokens, behind such a prefix."""
        return min(self.q.shape[2], self.k.shape[2] - prefix + 1)


@dataclass(frozen=True)
class Layout:
    """Where things stand in a sequence: image tokens, prompt (from bos), answer.

    `layers` are the decoder's, `grid` is patches along a side, `prompt` and `forced`
    are numbers of tokens.

    Of several images one stands behind the other, and nothing between them. With 4
    image tokens, a prompt of 3 ids and a forced start of 1 id:

        index     0  1  2  3 | 4    5       6  | 7       8 ...
        token     i  i  i  i | bos  detect  \\n | forced  generated ...
    """

    layers: int
    images: int
    grid: int
    prompt: int
    forced: int = 0

    @property
    def image(self) -> int:
        """Image tokens of all images together."""
        return self.images * self.grid**2

    @property
    def prefix(self) -> int:
        return self.image + self.prompt

    def patches(self, image: int) -> slice:
        """The positions of one image's patches, row by row.

        Raises:
            ValueError: there is no such image.
        """
        if not 0 <= image < self.images:
            raise ValueError(f"image {image} of {self.images} was asked for")
        return slice(image * self.grid**2, (image + 1) * self.grid**2)


LOOK_AWAY = Tap()
