"""What a second process brings to a batch on a machine's CPU: a Markdown table.

    python tests/bench/processes.py

The same questions are answered by one process with one thread, by one with all threads,
and by two with one thread each under `accelerate launch`, in turns. Times are medians
over the rounds, from the command to the whole table, starting and loading included.
Ends with 1 if the tables of what has one thread a process differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from batches import ALIKE, PROMPTS, draw, finish, table

BATCH = 8
WAYS = {
    "one process, one thread": (1, ALIKE),
    f"one process, {os.cpu_count()} threads": (1, None),
    "two processes, one thread each": (2, ALIKE),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        draw(folder, told.pictures)
        tables = []
        for round in range(told.rounds):
            for way, (processes, env) in WAYS.items():
                out = Path(scratch) / f"{round} {way}"
                begun = time.perf_counter()
                finish(folder, out, processes, BATCH, env)
                seconds[way].append(time.perf_counter() - begun)
                if env is ALIKE:
                    tables.append(table(out))
    equal = all(each == tables[0] for each in tables)
    rows = told.pictures * len(PROMPTS)
    print(f"| {rows} rows, batches of {BATCH} | seconds | speed-up |\n|---|---:|---:|")
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    first = next(iter(medians.values()))
    for way, median in medians.items():
        print(f"| {way} | {median:.1f} | {first / median:.2f} × |")
    print(f"\nThe tables are {'equal' if equal else 'DIFFERENT'}.")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
