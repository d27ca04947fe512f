"""What becomes of inputs: counted, timed, and what memory they take at the peak."""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
HANG = 5  # seconds
DEAD = 120  # seconds after which all ends


@dataclass
class Tally:
    """What became of the inputs of one kind; memory in bytes."""

    name: str
    answers: int = 0
    refusals: int = 0
    hangs: int = 0
    slowest: float = 0.0
    peak: int = 0
    crashes: Counter = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.name,
            self.answers + other.answers,
            self.refusals + other.refusals,
            self.hangs + other.hangs,
            max(self.slowest, other.slowest),
            max(self.peak, other.peak),
            self.crashes + other.crashes,
        )

    @property
    def sent(self) -> int:
        return self.answers + self.refusals + self.crashes.total()

    def note(
        self, act: Callable[[Any], bool], value: Any, refusal: type[Exception]
    ) -> None:
        """`act` tells whether it gave an answer; a refusal may also be raised."""
        faulthandler.dump_traceback_later(DEAD, exit=True, file=sys.stdout)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = memory("VmRSS"), time.perf_counter()
        try:
            answered = act(value)
            self.answers += answered
            self.refusals += not answered
        except Exception as error:
            # One of a kind below it is no sentence of ours.
            told = type(error) is refusal and str(error)
            self.refusals += bool(told)
            if not told:
                self.crashes[place(error)] += 1
        seconds = time.perf_counter() - began
        self.slowest = max(self.slowest, seconds)
        self.hangs += seconds > HANG
        self.peak = max(self.peak, memory("VmHWM") - before)
        faulthandler.cancel_dump_traceback_later()


def hammer(
    name: str,
    count: int,
    strategy: st.SearchStrategy,
    act: Callable[[Any], bool],
    *,
    refusal: type[Exception] = ValueError,
) -> Tally:
    """What becomes of so many; see `Tally.note`."""
    tally = Tally(name)

    @seed(8)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(value: Any) -> None:
        tally.note(act, value, refusal)

    each()
    return tally


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(each for each in lines if each.startswith(name))
    return int(line.split()[1]) * 1024


def place(error: BaseException) -> str:
    """What it says, and the last line of ours that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if each.filename.startswith(str(ROOT / "vlm"))]
    last = (ours or frames)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__} at {where}: {str(error)[:120]!r}"
