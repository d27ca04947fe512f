"""A long life, compressed: many short runs, each about a picture of its own.

    python tests/bench/life.py               # 5,000 runs

Each user of the running app uploads a picture that nobody has sent before and asks a
short question. What the app keeps for an hour (files that were sent, pictures that were
shown) it keeps for `--kept` seconds here, 100 runs in place of 1,000, and of what the
model has computed for such a picture 16 MiB in place of 256, so that all are seen to
go. Prints a Markdown table of what the app's memory and its temporary folder did. The
slope is that after the first fifth, in which what is bounded fills. Ends with 1 if an
answer is missing, the folder holds more than was sent in three such times, or the
memory grows by 1 MB per 100 runs or more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from running import EXAMPLES, App, Question, options, running, slope, table

PROMPT = "answer en is there a penguin?"
EVERY = 50
PER_RUN = 2  # files: what was sent, and what is shown of it


def main() -> None:
    parser = options(__doc__, 5000, "runs")
    parser.add_argument("--kept", type=int, default=60, help="seconds")
    told = parser.parse_args()
    with running("--kept", str(told.kept)) as app:
        with tempfile.TemporaryDirectory() as folder:
            figures, well = measure(app, Path(folder), told.count, told.kept)
    title = f"{told.count} short runs, an hour being {told.kept} s"
    print(table(f"{title}, the embedded checkpoint", figures))
    sys.exit(not well)


def measure(app: App, folder: Path, count: int, kept: int) -> tuple[dict, bool]:
    with Image.open(EXAMPLES / "penguins.webp") as image:
        pixels = np.asarray(image.convert("RGB").resize((256, 256)))
    dice, began = np.random.default_rng(0), time.monotonic()
    points, folders, times, failed = [], [], [], 0
    for number in range(1, count + 1):
        picture = drawn(pixels, dice, folder / f"{number}.png")
        failed += "error" in app.ask(Question(picture, PROMPT)).answer()
        app.sent.clear()
        picture.unlink()
        times.append(time.monotonic())
        if number % EVERY == 0 or number == count:
            points.append((number, app.resident()))
            folders.append((*app.files(), recent(times, 3 * kept)))
    settled = [point for point in points if point[0] > count / 5]
    growth = 100 * slope(settled)
    most, size, _ = max(folders)
    bounded = all(files <= PER_RUN * new + 10 for files, _, new in folders)
    figures = {
        "runs without an answer": failed,
        "seconds": f"{time.monotonic() - began:.0f}",
        "resident, first and last": f"{points[0][1]:.0f}, {points[-1][1]:.0f} MB",
        "memory per 100, after the first fifth": f"{growth:+.2f} MB",
        "files in the temporary folder, at most": f"{most} ({size / 1e6:.1f} MB)",
        "the same at the end": folders[-1][0],
        "files that were written": f"{PER_RUN * count} or fewer",
    }
    return figures, not failed and bounded and growth < 1


def drawn(pixels: np.ndarray, dice: np.random.Generator, path: Path) -> Path:
    """The picture with a little noise: it looks the same, and is another one."""
    noise = dice.integers(-3, 4, pixels.shape)
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def recent(times: list[float], seconds: float) -> int:
    """How many of the times are no longer ago than that."""
    return sum(time.monotonic() - each <= seconds for each in times)


if __name__ == "__main__":
    main()
