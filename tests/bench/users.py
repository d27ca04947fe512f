"""Many users at once, each with a question of their own: a Markdown table.

    python tests/bench/users.py               # 50 users

They join the queue of the running app at random moments of `--within` seconds, faster
than it answers, over HTTP and with the embedded checkpoint. Then each question is asked
alone, with nobody else there, and the answers have to be equal. The queue's rule is:
first come, first served. Who was sent after another one had joined overtakes if it is
answered before. Ends with 1 if an answer differs or somebody overtakes.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

from running import App, Call, Question, options, questions, running, table


def main() -> None:
    parser = options(__doc__, 50, "users")
    parser.add_argument("--within", type=float, default=2.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    with running() as app:
        figures, well = measure(app, told.count, told.within, told.seed)
    print(table(f"{told.count} users at once, the embedded checkpoint", figures))
    sys.exit(not well)


def measure(app: App, count: int, within: float, seed: int) -> tuple[dict, bool]:
    asked = questions(count)
    dice = random.Random(seed)
    moments = [dice.uniform(0, within) for _ in asked]
    app.sent |= {each: app.upload(each) for each in {q.picture for q in asked}}
    with ThreadPoolExecutor(count) as users:
        together = list(users.map(lambda *each: one(app, *each), asked, moments))
    answers, calls = zip(*together)
    alone = {question: app.ask(question).answer() for question in set(asked)}
    own = [alone[question] for question in asked]
    right = sum(said == due for said, due in zip(answers, own))
    mixed = sum(
        said != due and said in alone.values() for said, due in zip(answers, own)
    )
    overtaken = sum(
        first.joined < second.sent and second.started < first.started
        for first, second in permutations(calls, 2)
    )
    ordered = sum(a.joined < b.sent for a, b in permutations(calls, 2))
    waits = sorted(call.started - call.joined for call in calls)
    seconds = max(call.ended for call in calls) - min(call.sent for call in calls)
    tokens = sum(len(said.get("tokens", ())) for said in answers)
    figures = {
        "answers equal to those given alone": f"{right} of {count}",
        "different questions": len(alone),
        "answers to another one's question": mixed,
        "overtaken, of pairs one after the other": f"{overtaken} of {ordered}",
        "answers per second": f"{count / seconds:.2f}",
        "tokens per second": f"{tokens / seconds:.1f}",
        "wait in the queue, median": f"{statistics.median(waits):.1f} s",
        "wait in the queue, p95": f"{waits[int(0.95 * (count - 1))]:.1f} s",
        "all answered within": f"{seconds:.1f} s",
    }
    return figures, right == count and not overtaken


def one(app: App, question: Question, moment: float) -> tuple[dict, Call]:
    """A user: comes at a moment, asks, and waits for the answer."""
    time.sleep(moment)
    call = app.ask(question)
    return call.answer(), call


if __name__ == "__main__":
    main()
