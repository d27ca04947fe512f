"""A batch run that is killed again and again, beside one that is left alone.

    python tests/bench/killed.py                     # 20 kills
    python tests/bench/killed.py --processes 2       # under `accelerate launch`

Each run is ended by SIGKILL at a random moment, with all its processes; the next goes
on where it was. In the end both tables have to be the same, times apart. Prints what
became of it; ends with 1 if they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from batches import ALIKE, PROMPTS, ROOT, command, draw, finish, table  # noqa: E402

BATCH = 3  # less than the questions about two pictures, and no divisor of them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(Path(scratch), **vars(options))
    print(found.pop("words"))
    sys.exit(not found["equal"])


def compare(
    scratch: Path, *, kills: int, pictures: int, processes: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Run undisturbed and killed; whether the tables are equal, and what happened."""
    folder = scratch / "pictures"
    draw(folder, pictures)
    finish(folder, scratch / "alone", processes, BATCH)
    dice = random.Random(seed)
    before = []  # rows that each kill left
    for kill in range(kills):
        left = pictures * len(PROMPTS) - (before[-1] if before else 0)
        # Fewer at a time than would be left for none of the coming kills.
        more = dice.randint(0, max(0, 2 * left // (kills - kill + 1)))
        begin_and_kill(folder, scratch / "killed", processes, more, dice.random())
        before.append(count(scratch / "killed"))
    finish(folder, scratch / "killed", processes, BATCH)
    alone, killed = (table(scratch / name) for name in ("alone", "killed"))
    written = count(scratch / "killed")
    equal = alone == killed and len(killed) == written == pictures * len(PROMPTS)
    words = (
        f"{len(alone)} rows undisturbed, {len(killed)} after {kills} times SIGKILL "
        f"(rows that each left: {', '.join(map(str, before))}); {written} were "
        f"written; the tables are {'equal' if equal else 'DIFFERENT'}"
    )
    return {"equal": equal, "before": before, "words": words}


def begin_and_kill(
    folder: Path, out: Path, processes: int, more: int, wait: float
) -> None:
    """Kill a run some seconds after it has written so many more rows."""
    before = count(out)
    run = psutil.Popen(
        command(folder, out, processes, BATCH),
        cwd=ROOT,
        env=ALIKE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and count(out) < before + more:
        time.sleep(0.005)
    time.sleep(wait if more else 10 * wait)  # without more, it may still be loading
    if run.poll() is None:
        every = [run, *run.children(recursive=True)]
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(every)


def count(out: Path) -> int:
    """Whole lines that lie in the parts, whatever they say."""
    parts = (out / "parts").glob("*.jsonl")
    return sum(part.read_bytes().count(b"\n") for part in parts)


if __name__ == "__main__":
    main()
