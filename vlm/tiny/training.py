"""The loop around a stage: ranks, schedule, log, and a state to go on from.

Two ranks of one thread each learn about twice as fast on two cores as one rank of two
threads, whose many small operations wait for each other. Ranks see different scenes
and average their gradients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAVE_EVERY = 180  # seconds
LOG_EVERY = 20


class Stage:
    """Minutes of training with one loss, resumed from `folder` where it stopped.

    Args:
        student: what is trained.
        batch: makes the loss and its figures; told how far the stage is, 0 to 1.
        optimizers: with the peak learning rate of each group as "peak".
    """

    def __init__(
        self,
        name: str,
        minutes: float,
        student: nn.Module,
        batch: Callable[[float], tuple[Tensor, dict[str, Tensor]]],
        optimizers: list[torch.optim.Optimizer],
        folder: Path,
        pictures: int,
    ) -> None:
        self.name = name
        self.seconds = minutes * 60
        self.student = student
        self.batch = batch
        self.optimizers = optimizers
        self.folder = folder
        self.pictures = pictures
        self.spent = 0.0
        self.steps = 0
        self.means: dict[str, float] = {}
        self._resume()

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def run(self) -> None:
        self.student.train()
        saved = self.spent
        while self.spent < self.seconds:
            start = time.monotonic()
            self._step(self.spent / self.seconds)
            self.spent += self._shared(time.monotonic() - start)
            if self.steps % LOG_EVERY == 0:
                self._log()
            if self.spent - saved > SAVE_EVERY or self.spent >= self.seconds:
                self._save()
                saved = self.spent

    def _step(self, progress: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(progress, self.steps)
            optimizer.zero_grad(set_to_none=True)
        loss, figures = self.batch(progress)
        loss.backward()
        self._average_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        for name, value in figures.items():
            value = float(value.detach())
            before = self.means.get(name, value)
            self.means[name] = before + 0.05 * (value - before)

    def _average_gradients(self) -> None:
        grads = [p.grad for p in self.student.parameters() if p.grad is not None]
        if dist.is_initialized():
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
                grad.copy_(part.view_as(grad))
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)

    def _shared(self, seconds: float) -> float:
        """The first rank's clock, so that all ranks stop at the same step."""
        if not dist.is_initialized():
            return seconds
        clock = torch.tensor(seconds, dtype=torch.float64)
        dist.broadcast(clock, 0)
        return float(clock)

    def _log(self) -> None:
        if not _first_rank():
            return
        rate = self.steps * self.pictures / self.spent
        left = (self.seconds - self.spent) / 60
        line = {"stage": self.name, "step": self.steps, "minute": self.spent / 60}
        line |= {"pictures_per_second": rate} | self.means
        line = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in self.means.items())
        done = round(20 * min(1, self.spent / self.seconds))
        bar = "#" * done + "-" * (20 - done)
        print(
            f"{self.name} [{bar}] {rate:.0f} pictures/s  {left:.1f} min left  {shown}",
            flush=True,
        )

    def _save(self) -> None:
        if not _first_rank():
            return
        state = {
            "student": self.student.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent,
            "steps": self.steps,
            "means": self.means,
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.state_file)

    def _resume(self) -> None:
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, weights_only=True)
        self.student.load_state_dict(state["student"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(kept)
        self.spent, self.steps = state["spent"], state["steps"]
        self.means = state["means"]


def schedule(progress: float, steps: int) -> float:
    """Warm up for 50 steps, hold, and fall to zero over the last 60 % of the time."""
    return min(1.0, (steps + 1) / 50, max(0.02, (1 - progress) / 0.6))


def _first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
