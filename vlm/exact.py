"""Half-precision weights, float32 arithmetic: for a CPU that cannot do otherwise well.

Weights stay where they are, mapped from the checkpoint's files. For several rows (an
image, a prompt) a few rows of weights at a time are widened to float32 and multiplied
there, at the speed of float32 and in half its memory; without instructions for it, a
product in half precision takes three times as long. For a single row, a generated
token, reading the weights is what takes time, and `torch.mv` reads them as they are:
it sums in float32, but rounds what comes in and goes out to half precision.

A CPU that has the instructions keeps half precision throughout; its single rows are
multiplied by `torch.mv` too, which reads weights sooner than a product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDENED = 1 << 23  # weights at a time: 32 MiB of float32

HALVES = (torch.bfloat16, torch.float16)


class HalfLinear(nn.Module):
    """A linear layer, float32 [..., K] to float32 [..., N], of half-precision weights.

    Gradients are for what comes in; the weights have none.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, room: Room
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.room = room

    def forward(self, x: Tensor) -> Tensor:
        act = _Product.apply if x.requires_grad else product  # the former takes longer
        out = act(x.flatten(0, -2), self.weight.detach(), self.room)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)

    def received(self, x: Tensor) -> Tensor:
        """What `columns` needs of x [M, K]."""
        return x

    def columns(self, received: Tensor, part: slice) -> Tensor:
        """Some columns of what the layer makes of the rows that came in."""
        out = product(received, self.weight[part].detach(), self.room)
        return out if self.bias is None else out.add_(self.bias[part])


class RowLinear(nn.Linear):
    """A linear layer that multiplies a single row by `torch.mv`."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() != self.in_features:
            return super().forward(x)
        out = torch.mv(self.weight, x.flatten()).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class HalfEmbedding(nn.Module):
    """Rows of a half-precision table, float32; those not asked for stay on disk."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


def swap(model: nn.Module) -> None:
    """Make a model that has half-precision weights compute in float32.

    Linear layers and embeddings keep their weights as they are, tied ones too; all
    else is small, and becomes float32.
    """
    room = Room()
    for name, part in list(model.named_modules()):
        for key, parameter in list(part.named_parameters(recurse=False)):
            matrix = isinstance(part, (nn.Linear, nn.Embedding)) and key == "weight"
            if parameter.dtype in HALVES and not matrix:
                wide = nn.Parameter(parameter.float(), parameter.requires_grad)
                setattr(part, key, wide)
        if isinstance(part, nn.Linear) and part.weight.dtype in HALVES:
            model.set_submodule(name, HalfLinear(part.weight, part.bias, room))
        if isinstance(part, nn.Embedding) and part.weight.dtype in HALVES:
            model.set_submodule(name, HalfEmbedding(part.weight))


def swap_rows(model: nn.Module) -> None:
    """Make a model that keeps its precision multiply single rows by `torch.mv`."""
    for name, part in list(model.named_modules()):
        if type(part) is nn.Linear:
            model.set_submodule(name, RowLinear(part))


class Room:
    """Where weights are widened.

    It is kept, since memory that is new to a process is slow to write for the first
    time. A request that finds it taken makes another for itself.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @contextmanager
    def widened(self, weight: Tensor) -> Iterator[Iterator[Tensor]]:
        """Some rows of weights after the other in float32, all in the same place."""
        try:
            place = self._free.pop()
        except IndexError:
            with torch.inference_mode(False):  # for passes with gradients too
                place = torch.empty(WIDENED, device=weight.device)
        count = max(1, len(place) // weight.shape[1])
        yield (
            place[: some.numel()].view(some.shape).copy_(some)
            for some in weight.split(count)
        )
        if not self._free:
            self._free.append(place)


def product(x: Tensor, weight: Tensor, room: Room) -> Tensor:
    """float32 [M, N]: x [M, K] times half-precision weights [N, K]."""
    if len(x) == 1:
        return torch.mv(weight, x[0].to(weight.dtype)).float()[None]
    out = x.new_empty(len(x), len(weight))
    start = 0
    with room.widened(weight) as rows:
        for wide in rows:
            torch.mm(x, wide.T, out=out[:, start : start + len(wide)])
            start += len(wide)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, room: Room) -> Tensor:
        return product(x, weight, room)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Room], output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.room = inputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        back = gradient.new_zeros(len(gradient), weight.shape[1])
        start = 0
        with ctx.room.widened(weight.detach()) as rows:
            for wide in rows:
                back.addmm_(gradient[:, start : start + len(wide)], wide)
                start += len(wide)
        return back, None, None
