"""Int8 linears, swapped in for a loaded model's own: less to read and to multiply.

Every row of weights has one scale, and so has every row of what comes in, found as it
comes (Dettmers et al., arXiv:2208.07339, vector-wise, without their outliers; Xiao et
al., arXiv:2211.10438, W8A8). Products are summed in integers, exactly, mostly by
`torch._int_mm`: it reads plain rows, which can lie in a file that is mapped into
memory. Where many rows meet wide weights, these may be there once more, packed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlm.packed import MIDDLE, Packed

BLOCK = 1 << 18  # numbers that are rounded at a time, while they are in the cache
SUMS = 1 << 20  # integer sums that wait for their scale, likewise
LEAST = 1e-30  # a row of zeros has a scale too
PAGE = 4096  # bytes of memory within which a processor reads ahead
MUCH = 1 << 24  # weights that are worth two products
MANY = 16  # rows from which on packed weights are sooner multiplied than plain ones


class Int8Linear(nn.Module):
    """A linear layer, float32 [..., K] to float32 [..., N].

    Gradients pass as if nothing of what came in had been rounded (the straight-through
    estimator, Bengio et al., arXiv:1308.3432); the weights have none.

    Args:
        weight: int8 [N, K].
        scale: float32 [N, 1]; `weight * scale` is what the weights were, rounded.
        bias: [N], or None.
        packed: the same weights, for many rows at once.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        packed: Packed | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        # Nothing that was learnt, so no part of the state.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if self._packs(rows):
            out = self.columns(self.received(rows), slice(None))
            return out.view(*x.shape[:-1], -1)
        act = _Product.apply if x.requires_grad else product  # the former takes longer
        out = act(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)

    def received(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `columns` needs of x [M, K]."""
        rows, sizes = quantize_rows(x)
        if self._packs(x):
            rows = rows.view(torch.uint8).bitwise_xor_(MIDDLE)
        return rows, sizes

    def _packs(self, x: Tensor) -> bool:
        return self.packed is not None and len(x) >= MANY and not x.requires_grad

    def columns(self, received: tuple[Tensor, Tensor], part: slice) -> Tensor:
        """Some columns of what the layer makes of the rows that came in."""
        rows, sizes = received
        if rows.dtype == torch.uint8:
            out = self.packed.product(rows, part).mul_(sizes)
        else:
            out = sums(rows, self.weight[part]).mul_(self.scale[part].T).mul_(sizes)
        return out if self.bias is None else out.add_(self.bias[part])


class Rows(NamedTuple):
    """A matrix [N, K], rounded row by row."""

    weight: Tensor  # int8 [N, K]
    scale: Tensor  # float32 [N, 1]
    packed: Packed | None = None


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that `swap` swaps, by name."""
    found = model.named_modules()
    return {name: part for name, part in found if isinstance(part, nn.Linear)}


def swap(model: nn.Module, quantized: dict[str, Rows]) -> None:
    """Put an Int8Linear in the place of every linear layer, by the layer's name."""
    for name, linear in linears(model).items():
        rows = quantized[name]
        layer = Int8Linear(rows.weight, rows.scale, linear.bias, rows.packed)
        model.set_submodule(name, layer)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 [R, K] and float32 scales [R, 1] to x [R, K].

    A row's largest number becomes 127 or -127, so `rows * scales` is never further
    from x than half a scale.
    """
    rows = x.new_empty(x.shape, dtype=torch.int8)
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    blocks = max(1, -(-x.numel() // BLOCK))
    count = max(1, -(-len(x) // blocks))
    for start in range(0, len(x), count):
        part = slice(start, start + count)
        some = x[part].float()
        # Twice through a row is sooner than once through it and once through a copy.
        least, most = some.amin(-1, keepdim=True), some.amax(-1, keepdim=True)
        scale = torch.maximum(most, least.neg_()).clamp_(min=LEAST).div_(127)
        rows[part] = (some / scale).round_()
        scales[part] = scale
    return rows, scales


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """float32 [M, N]: x [M, K], rounded to int8 row by row, times weights [N, K].

    `scale` [N, 1] is the weights'. Both kinds of int8 are symmetric, which is the same
    as unsigned activations around 128: the kernel itself shifts them to those.
    """
    if len(x) == 1:
        return _row_product(x, weight, scale)
    rows, sizes = quantize_rows(x)
    count = max(1024, SUMS // len(x))
    if len(weight) <= count:
        return sums(rows, weight).mul_(scale.T).mul_(sizes)
    out = sizes.new_empty(len(x), len(weight))
    for start in range(0, len(weight), count):
        part = slice(start, start + count)
        some = sums(rows, weight[part]).mul_(scale[part].T)
        torch.mul(some, sizes, out=out[:, part])
    return out


def _row_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`product` of a single row, in the fewest calls: they take long between tokens."""
    size = max(float(x.abs().amax()), LEAST) / 127
    row = (x / size).round_().to(torch.int8)
    return _row_sums(row, weight).mul_(scale.T).mul_(size)


def _row_sums(row: Tensor, weight: Tensor) -> Tensor:
    """`sums` of a single row.

    As a column, which is the same to most kernels and sooner read by those that
    multiply tiles (AMX). Half as long as a page, rows of weights are read faster if
    every other is passed over: the kernel goes through some at a time, and a processor
    reads ahead in the page of each.
    """
    count, width = weight.shape
    if count % 2 or 2 * width > PAGE or weight.numel() < MUCH:
        return torch._int_mm(weight, row.T).view(1, -1).float()
    halves = weight.view(-1, 2, width).unbind(1)
    found = [torch._int_mm(half, row.T) for half in halves]
    return torch.cat(found, 1).view(1, -1).float()


def sums(rows: Tensor, weight: Tensor) -> Tensor:
    """float32 [M, N]: the products of int8 [M, K] and [N, K], summed in integers."""
    return torch._int_mm(rows, weight.T).float()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return product(x, weight, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        back = gradient.new_zeros(len(gradient), weight.shape[1])
        count = max(1, SUMS // weight.shape[1])
        for start in range(0, len(weight), count):
            part = slice(start, start + count)
            back.addmm_(gradient[:, part], weight[part] * scale[part])
        return back, None, None


@cache
def is_exact() -> bool:
    """Whether this processor's sums of int8 products are what they should be.

    One without VNNI instructions may add pairs of products in 16 bits, where the
    largest do not fit.
    """
    dice = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (65, 256), generator=dice) * 2 - 1
    x, weight = signs[:33] * 127, signs[33:] * 127
    x[0], weight[0] = 127, 127  # the largest sum that there can be
    narrow, expected = weight.to(torch.int8), x @ weight.T
    found = sums(x.to(torch.int8), narrow), _row_sums(x[:1].to(torch.int8), narrow)
    return torch.equal(found[0].long(), expected) and torch.equal(
        found[1].long(), expected[:1]
    )
