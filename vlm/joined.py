"""Int8 layers that read the same: of a single row they make one product.

That is a generated token's. Between two products the processor has to find again what
weights have driven out of its cache, the interpreter's own code before all: a token has
fewer of them this way. Nothing is copied, as such layers follow each other in the file
of int8 weights. Several rows are rounded once for all of these layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlm.gemma import Attention
from vlm.layers import rotate
from vlm.quantize import Int8Linear, product
from vlm.siglip import EncoderAttention


class Joined:
    """Several Int8Linear whose weights and scales lie one behind the other.

    Args:
        layers: without biases.
    """

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self.weight = _whole([layer.weight for layer in layers])
        self.scale = _whole([layer.scale for layer in layers])
        self.sizes = [len(layer.weight) for layer in layers]

    def __deepcopy__(self, memo: object) -> None:
        """A copied layer goes without: its own weights may then be changed."""

    def __call__(self, x: Tensor) -> Tensor:
        """What each makes of a single row [..., K], side by side: [1, all N]."""
        return product(x.view(1, -1), self.weight, self.scale)


class _RoundingOnce:
    """Attention whose q, k and v round several rows once for the three of them."""

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        if not are_several(x):
            return super().project(x)
        received = self.q.received(x.flatten(0, -2))
        return tuple(
            layer.columns(received, slice(None)).view(*x.shape[:-1], -1)
            for layer in (self.q, self.k, self.v)
        )


class JoinedEncoderAttention(_RoundingOnce, EncoderAttention):
    def __init__(self, attention: EncoderAttention) -> None:
        nn.Module.__init__(self)
        self.heads, self.scale = attention.heads, attention.scale
        self.q, self.k, self.v = attention.q, attention.k, attention.v
        self.out = attention.out


class JoinedAttention(_RoundingOnce, Attention):
    """And which make one product of a single row, where q, k and v are joined."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.head_size, self.scale = attention.head_size, attention.scale
        self.softcap = attention.softcap
        self.q, self.k, self.v = attention.q, attention.k, attention.v
        self.out = attention.out
        self.joined = join(self.q, self.k, self.v)

    def read(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        if not is_for(self.joined, x):
            return super().read(x, turn)
        heads = self.joined(x).view(1, -1, 1, self.head_size)
        q, k, v = (size // self.head_size for size in self.joined.sizes)
        return *rotate(heads[:, :-v], turn).split((q, k), 1), heads[:, -v:]


def swap(model: nn.Module) -> None:
    """Put these in the place of all attention whose linears have been swapped."""
    kinds = {Attention: JoinedAttention, EncoderAttention: JoinedEncoderAttention}
    for name, part in list(model.named_modules()):
        if type(part) in kinds and _alike(part.q, part.k, part.v):
            model.set_submodule(name, kinds[type(part)](part))


def join(*layers: nn.Module) -> Joined | None:
    """Those layers in one, or None where they are of another kind or do not lie so."""
    if not all(type(layer) is Int8Linear and layer.bias is None for layer in layers):
        return None
    lies_so = _adjacent([layer.weight for layer in layers])
    return Joined(layers) if lies_so and _adjacent([e.scale for e in layers]) else None


def is_for(joined: Joined | None, x: Tensor) -> bool:
    return joined is not None and x.numel() == x.shape[-1] and not x.requires_grad


def are_several(x: Tensor) -> bool:
    """Whether x is of several rows, for which no gradient is asked."""
    return x.numel() > x.shape[-1] and not x.requires_grad


def _alike(*layers: nn.Module) -> bool:
    """Whether what one of some layers receives, rounded, is for the others too."""
    kinds = {(type(each), getattr(each, "packed", None) is None) for each in layers}
    return len(kinds) == 1 and type(layers[0]) is Int8Linear


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    """Whether [N, K] each, of one K, they are parts of one tensor, in this order."""
    return all(
        one.untyped_storage().data_ptr() == next.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == next.data_ptr()
        for one, next in zip(tensors, tensors[1:])
    )


def _whole(tensors: Sequence[Tensor]) -> Tensor:
    """What adjacent tensors are parts of, [all N, K]."""
    first, rows = tensors[0], sum(map(len, tensors))
    return first.as_strided((rows, first.shape[1]), first.stride())
