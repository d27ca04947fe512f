"""Memory: how much this machine has, and whether a model fits into it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

FITS, TIGHT, OFFLOAD, TOO_LARGE = "fits", "tight", "needs offload", "too large"
ROOMY = 0.75  # of a memory: the rest is for pictures, the KV cache and other programs
USABLE = 0.9
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Memory:
    """Bytes of the main memory, and of each GPU's own; `ram` is 0 if nobody tells."""

    ram: int
    gpus: tuple[int, ...] = ()

    @classmethod
    def here(cls) -> Memory:
        count = torch.cuda.device_count()
        gpus = (torch.cuda.get_device_properties(i).total_memory for i in range(count))
        return cls(main_memory(), tuple(gpus))

    def fit(self, size: int) -> str:
        """How a model of `size` bytes goes in; "" where the memory is not known.

        "fits" and "tight" are for the memory that computes: the largest GPU's, or the
        main one where there is none. What "needs offload" is spread over several GPUs
        and the main memory; without a GPU it is read from the disk again and again.
        """
        room = max(self.gpus, default=self.ram)
        if not room:
            return ""
        if size <= ROOMY * room:
            return FITS
        if size <= USABLE * room:
            return TIGHT
        spread = not self.gpus or size <= USABLE * (sum(self.gpus) + self.ram)
        return OFFLOAD if spread else TOO_LARGE


def main_memory() -> int:
    """Bytes that the system has, or lets this container have."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows does not tell this way
        whole = 0
    limits = (limit for file in map(Path, LIMITS) if (limit := limit_in(file)))
    return min([size for size in (whole, *limits) if size], default=0)


def limit_in(file: Path) -> int:
    """Of a control group; 0 where it has none ("max"), or there are no groups."""
    try:
        said = file.read_text().strip()
    except OSError:
        return 0
    return int(said) if said.isdigit() else 0
