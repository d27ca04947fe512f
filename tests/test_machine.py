"""What fits into the memory of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vlm import machine
from vlm.machine import Memory

GB = 10**9


@pytest.mark.parametrize(
    "memory, size, how",
    [
        (Memory(16 * GB), 6 * GB, "fits"),
        (Memory(16 * GB), 13 * GB, "tight"),
        (Memory(16 * GB), 40 * GB, "needs offload"),  # from the disk
        (Memory(64 * GB, (8 * GB,)), 5 * GB, "fits"),
        (Memory(64 * GB, (8 * GB,)), 7 * GB, "tight"),
        (Memory(64 * GB, (8 * GB,)), 20 * GB, "needs offload"),
        (Memory(64 * GB, (24 * GB, 8 * GB)), 20 * GB, "tight"),
        (Memory(16 * GB, (24 * GB, 8 * GB)), 55 * GB, "too large"),
        (Memory(0), GB, ""),
    ],
)
def test_a_model_is_said_to_fit_as_memory_allows(memory, size, how):
    assert memory.fit(size) == how


def test_the_memory_here_is_what_the_system_says(monkeypatch):
    monkeypatch.setattr(machine, "LIMITS", ())
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert Memory.here().ram == pytest.approx(1024 * kilobytes, rel=0.02)
    assert len(Memory.here().gpus) == torch.cuda.device_count()


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("none", "max", "limit")]
    files[1].write_text("max\n")
    files[2].write_text("1000000\n")
    monkeypatch.setattr(machine, "LIMITS", tuple(map(str, files)))
    assert machine.main_memory() == 1_000_000
    monkeypatch.delattr(os, "sysconf")
    assert machine.main_memory() == 1_000_000
