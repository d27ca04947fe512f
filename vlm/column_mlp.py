"""MLPs some columns of their hidden states at a time, for layers that can do that.

Hidden states are eight times as wide as what comes in and goes out (Gemma's). Made
whole, their sums, scales, biases, GELU and product would each pass through memory, most
of it new to the process; a part of the columns goes through all of them in the
processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm.exact import HalfLinear
from vlm.joined import are_several, is_for, join
from vlm.layers import MLP, GatedMLP, gelu
from vlm.packed import pieces
from vlm.quantize import Int8Linear

# Numbers between rows of hidden states: those that begin a power of two apart would
# push each other out of the cache.
APART = 16


class ColumnMLP(MLP):
    """An MLP whose linears have been swapped."""

    def __init__(self, mlp: MLP) -> None:
        nn.Module.__init__(self)
        self.up, self.down, self.activation = mlp.up, mlp.down, mlp.activation

    def forward(self, x: Tensor) -> Tensor:
        return _by_columns(self, x) if are_several(x) else super().forward(x)

    def fill(self, hidden: Tensor, received: Any, part: slice) -> None:
        hidden.copy_(self.activation(self.up.columns(received, part)))


class ColumnGatedMLP(GatedMLP):
    """A GatedMLP whose linears have been swapped."""

    def __init__(self, mlp: GatedMLP) -> None:
        nn.Module.__init__(self)
        self.gate, self.up, self.down = mlp.gate, mlp.up, mlp.down
        self.joined = join(mlp.gate, mlp.up)

    def forward(self, x: Tensor) -> Tensor:
        return _by_columns(self, x) if are_several(x) else super().forward(x)

    def read(self, x: Tensor) -> tuple[Tensor, ...]:
        if not is_for(self.joined, x):
            return super().read(x)
        return self.joined(x).view(2, *x.shape[:-1], -1).unbind()

    def fill(self, hidden: Tensor, received: Any, part: slice) -> None:
        gate = gelu(self.gate.columns(received, part))
        torch.mul(gate, self.up.columns(received, part), out=hidden)


def swap(model: nn.Module) -> None:
    """Put these in the place of all MLPs whose linears have been swapped."""
    kinds = {MLP: ColumnMLP, GatedMLP: ColumnGatedMLP}
    for name, part in list(model.named_modules()):
        if type(part) in kinds and isinstance(part.up, (Int8Linear, HalfLinear)):
            model.set_submodule(name, kinds[type(part)](part))


def _by_columns(mlp: ColumnMLP | ColumnGatedMLP, x: Tensor) -> Tensor:
    rows = x.flatten(0, -2)
    received = mlp.up.received(rows)
    width = len(mlp.up.weight)
    hidden = rows.new_empty(len(rows), width + APART)[:, :width]
    for part in pieces(width):  # with 300 rows they take 1 MB
        mlp.fill(hidden[:, part], received, part)
    return mlp.down(hidden).view(x.shape)
