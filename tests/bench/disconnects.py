"""Users who go away before their answer, at random moments: a Markdown table.

    python tests/bench/disconnects.py               # 3,000 of them

Each asks the running app a question, listens for a random time, up to the length of an
answer and a half, and breaks the connection; several do so at once, so that some still
wait in the queue. After every hundredth: are only the caches left that are kept on
purpose, how large is the app, and is the next answer right? The slope of the memory is
that after the first 1,000. Till then what is bounded fills: 100 runs here, not 1,000,
and the allocator's pools, by some 20 MB between one hundred and the next. Ends with 1
if a cache is left over, an answer is wrong, or it grows by 1 MB per 100 or more.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from running import App, Question, options, questions, running, slope, table

FILLING = 1000  # more visitors than the app remembers, and all questions
EVERY = 100
PATIENCE = 10.0  # seconds until caches must be gone


def main() -> None:
    parser = options(__doc__, 3000, "disconnects")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    with running("--kept", "3600") as app:  # what was sent stays as it does
        figures, well = measure(app, told.count, told.at_once, told.seed)
    print(table(f"{told.count} disconnects, the embedded checkpoint", figures))
    sys.exit(not well)


def measure(app: App, count: int, at_once: int, seed: int) -> tuple[dict, bool]:
    asked = questions(6)
    began = time.monotonic()
    due = {question: app.ask(question).answer() for question in asked}
    length = (time.monotonic() - began) / len(asked)
    kept, dice = app.caches(), random.Random(seed)
    points, slowest, left, wrong = [], 0.0, 0, 0
    with ThreadPoolExecutor(at_once) as users:
        for start in range(0, count, EVERY):
            going = [
                (dice.choice(asked), dice.uniform(0, 1.5 * length * at_once))
                for _ in range(min(EVERY, count - start))
            ]
            list(users.map(lambda each: go_away(app, *each), going))
            seconds = until_free(app, kept)
            slowest, left = max(slowest, seconds), left + (seconds >= PATIENCE)
            question = dice.choice(asked)
            wrong += app.ask(question).answer() != due[question]
            points.append((start + len(going), app.resident()))
    settled = [point for point in points if point[0] > FILLING]
    growth = 100 * slope(settled)
    figures = {
        "times that caches were left over": left,
        "until the last cache was free, at most": f"{slowest:.2f} s",
        "wrong answers after them": f"{wrong} of {len(points)}",
        "resident, first and last": f"{points[0][1]:.0f}, {points[-1][1]:.0f} MB",
        f"memory per 100, after the first {FILLING}": f"{growth:+.2f} MB"
        if len(settled) > 1
        else "too few to tell",
    }
    return figures, not left and not wrong and not growth >= 1


def go_away(app: App, question: Question, seconds: float) -> None:
    app.ask(question).leave_after(seconds)


def until_free(app: App, kept: int) -> float:
    """Seconds until no more caches are there than were kept; PATIENCE at most."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < PATIENCE:
        if app.caches() <= kept:
            return passed
        time.sleep(0.02)
    return PATIENCE


if __name__ == "__main__":
    main()
