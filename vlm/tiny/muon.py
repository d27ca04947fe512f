"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): orthogonal updates.

The momentum of each weight matrix is replaced by the nearest orthogonal matrix, found
by a few Newton-Schulz steps; what is no matrix goes to AdamW. On two cores it learns
from half as many pictures as AdamW does. `torch.optim.Muon` computes in bfloat16,
which CPUs without that instruction do very slowly, and one matrix at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """For 2-d weights. Work is shared between ranks where there are several."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for i, params in enumerate(shapes.values()):
                self._step(params, group, turn=i)

    def _step(self, params: list[Tensor], group: dict, turn: int) -> None:
        """One shape at once: the matrices are orthogonalised as a batch."""
        momenta = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            momenta.append(p.grad.lerp(state["momentum"], group["momentum"]))
        stack = torch.stack(momenta)
        rank, ranks = _ranks()
        update = torch.zeros_like(stack)
        mine = slice((rank + turn) % ranks, None, ranks)
        if len(stack[mine]):
            update[mine] = orthogonal(stack[mine])
        if ranks > 1:
            dist.all_reduce(update)
        rows, columns = stack.shape[1:]
        size = max(1, rows / columns) ** 0.5
        for p, u in zip(params, update):
            p.add_(u, alpha=-group["lr"] * size)


def orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for each matrix U S V^T of stack [M, rows, columns].

    A quintic that drives every singular value towards 1 (to within about 30 %, which
    is enough here).
    """
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def optimizers(
    module: nn.Module, factor: Callable[[str], float] = lambda name: 1.0
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear layers, AdamW for all else.

    Args:
        factor: on the learning rate, by a parameter's name.
    """
    matrices, others = [], []
    for name, p in module.named_parameters():
        embeds = "embedding" in name or "positions" in name
        kind, lr = (others, 1.5e-3) if p.ndim != 2 or embeds else (matrices, 0.02)
        lr *= factor(name)
        kind.append({"params": [p], "lr": lr, "peak": lr})
    return [
        Muon(_merge(matrices)),
        torch.optim.AdamW(_merge(others), betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _merge(groups: list[dict]) -> list[dict]:
    """One group for each learning rate, so that same shapes meet in one batch."""
    merged: dict[float, dict] = {}
    for group in groups:
        kept = merged.setdefault(group["lr"], {**group, "params": []})
        kept["params"] += group["params"]
    return list(merged.values())


def _ranks() -> tuple[int, int]:
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
