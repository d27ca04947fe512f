"""Batch runs of one command, in one process or several, and the tables they write."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("first_token", "seconds")
PROMPTS = ("detect penguin ; cat", "caption en", "answer en how many cats are there?")
# How sums are rounded depends on how many threads share them.
ALIKE = {**os.environ, "OMP_NUM_THREADS": "1"}


def draw(folder: Path, number: int) -> None:
    """Parts of the example pictures, and one file that is none."""
    folder.mkdir()
    dice = np.random.default_rng(1)
    sources = sorted((ROOT / "assets" / "examples").glob("*.webp"))
    for i in range(number - 1):
        with Image.open(sources[i % len(sources)]) as image:
            x, y = dice.integers(0, image.width // 3, 2).tolist()
            side = image.width * 2 // 3
            part = image.convert("RGB").crop((x, y, x + side, y + side))
        part.save(folder / f"{i:03}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def command(folder: Path, out: Path, processes: int, at_once: int) -> list[str]:
    """One process is not launched; several are, as `accelerate launch` does."""
    asked = [str(folder), "--out", str(out), "--batch", str(at_once), "--device", "cpu"]
    for prompt in PROMPTS:
        asked += ["--prompt", prompt]
    if processes == 1:
        return [sys.executable, "-m", "vlm.batch", *asked]
    launch = "from accelerate.commands.accelerate_cli import main; main()"
    how = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    how += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    how += ["--main_process_port", str(free_port())]
    return [sys.executable, "-c", launch, "launch", *how, "-m", "vlm.batch", *asked]


def finish(
    folder: Path,
    out: Path,
    processes: int,
    at_once: int,
    env: dict[str, str] | None = ALIKE,
) -> None:
    """Run it to its end, which tells of the picture that cannot be read."""
    asked = command(folder, out, processes, at_once)
    done = subprocess.run(asked, cwd=ROOT, env=env, capture_output=True, text=True)
    # A launcher has its own words beside.
    assert done.returncode == 1 and "torn.png" in done.stderr, done.stderr


def table(out: Path) -> list[dict[str, Any]]:
    """The rows of the table, without the times that they took."""
    lines = (out / "answers.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
