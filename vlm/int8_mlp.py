"""MLPs of int8 linears, some columns of their hidden states at a time.

Hidden states are eight times as wide as what comes in and goes out (Gemma's). Made
whole, their integer sums, scales, biases, GELU and product would each pass through
memory; a part of the columns goes through all of them in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.layers import MLP, GatedMLP
from vlm.quantize import Int8Linear, quantize_rows, sums

Some = Callable[[Int8Linear], Tensor]
"""Some columns of what a layer makes of the rows that came in."""

COLUMNS = 2048  # of hidden states at a time; with 300 rows they take 2 MB


class Int8MLP(MLP):
    """An MLP whose linears have been swapped."""

    def __init__(self, mlp: MLP) -> None:
        nn.Module.__init__(self)
        self.up, self.down, self.activation = mlp.up, mlp.down, mlp.activation

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.requires_grad else _by_columns(self, x)

    def fill(self, hidden: Tensor, some: Some) -> None:
        hidden.copy_(self.activation(some(self.up)))


class Int8GatedMLP(GatedMLP):
    """A GatedMLP whose linears have been swapped."""

    def __init__(self, mlp: GatedMLP) -> None:
        nn.Module.__init__(self)
        self.gate, self.up, self.down = mlp.gate, mlp.up, mlp.down

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.requires_grad else _by_columns(self, x)

    def fill(self, hidden: Tensor, some: Some) -> None:
        gate = F.gelu(some(self.gate), approximate="tanh")
        torch.mul(gate, some(self.up), out=hidden)


def swap(model: nn.Module) -> None:
    """Put these in the place of all MLPs whose linears have been swapped."""
    kinds = {MLP: Int8MLP, GatedMLP: Int8GatedMLP}
    for name, part in list(model.named_modules()):
        if type(part) in kinds and isinstance(part.up, Int8Linear):
            model.set_submodule(name, kinds[type(part)](part))


def _by_columns(mlp: Int8MLP | Int8GatedMLP, x: Tensor) -> Tensor:
    """What the MLP makes of x. A single row is little: it takes all columns at once."""
    rows, sizes = quantize_rows(x.flatten(0, -2))
    hidden = sizes.new_empty(len(rows), len(mlp.up.weight))
    count = hidden.shape[1] if len(rows) == 1 else COLUMNS
    for start in range(0, hidden.shape[1], count):
        part = slice(start, start + count)
        mlp.fill(hidden[:, part], partial(_some, rows, sizes, part))
    return mlp.down(hidden).view(x.shape)


def _some(rows: Tensor, sizes: Tensor, part: slice, linear: Int8Linear) -> Tensor:
    """The columns of `part` of what the layer makes of `rows * sizes`."""
    x = sums(rows, linear.weight[part]).mul_(linear.scale[part].T).mul_(sizes)
    return x if linear.bias is None else x.add_(linear.bias[part])
