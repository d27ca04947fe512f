"""MLPs of int8 linears, some columns of their hidden states at a time.

Hidden states are eight times as wide as what comes in and goes out (Gemma's). Made
whole, their integer sums, scales, biases, GELU and product would each pass through
memory; a part of the columns goes through all of them in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.layers import MLP, GatedMLP
from vlm.quantize import Int8Linear, quantize_rows, sums

COLUMNS = 2048  # of hidden states at a time; with 300 rows they take 2 MB


class Int8MLP(MLP):
    """An MLP whose linears have been swapped."""

    def __init__(self, mlp: MLP) -> None:
        nn.Module.__init__(self)
        self.up, self.down, self.activation = mlp.up, mlp.down, mlp.activation

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        rows, sizes = quantize_rows(x.flatten(0, -2))
        hidden = sizes.new_empty(len(rows), len(self.up.weight))
        for part in _parts(hidden):
            hidden[:, part] = self.activation(_some(self.up, rows, sizes, part))
        return self.down(hidden).view(x.shape)


class Int8GatedMLP(GatedMLP):
    """A GatedMLP whose linears have been swapped."""

    def __init__(self, mlp: GatedMLP) -> None:
        nn.Module.__init__(self)
        self.gate, self.up, self.down = mlp.gate, mlp.up, mlp.down

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        rows, sizes = quantize_rows(x.flatten(0, -2))
        hidden = sizes.new_empty(len(rows), len(self.up.weight))
        for part in _parts(hidden):
            gate = F.gelu(_some(self.gate, rows, sizes, part), approximate="tanh")
            up = _some(self.up, rows, sizes, part)
            torch.mul(gate, up, out=hidden[:, part])
        return self.down(hidden).view(x.shape)


def swap(model: nn.Module) -> None:
    """Put these in the place of all MLPs whose linears have been swapped."""
    kinds = {MLP: Int8MLP, GatedMLP: Int8GatedMLP}
    for name, part in list(model.named_modules()):
        if type(part) in kinds and isinstance(part.up, Int8Linear):
            model.set_submodule(name, kinds[type(part)](part))


def _parts(hidden: Tensor) -> Iterator[slice]:
    """Columns of [M, N]; all at once for one row, a generated token: it is little."""
    width = hidden.shape[1]
    count = width if len(hidden) == 1 else COLUMNS
    return (slice(start, start + count) for start in range(0, width, count))


def _some(linear: Int8Linear, rows: Tensor, sizes: Tensor, part: slice) -> Tensor:
    """The columns of `part` of what the layer makes of `rows * sizes`."""
    x = sums(rows, linear.weight[part]).mul_(linear.scale[part].T).mul_(sizes)
    return x if linear.bias is None else x.add_(linear.bias[part])
