"""News: how far a probe of many passes has come, and what it has found."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple


class News(NamedTuple):
    """`done` of so many passes, and what is found so far."""

    done: int
    of: int
    found: dict[str, Any]


class Telling:
    """Counts passes, and tells what was found up to each of them."""

    def __init__(self, of: int, found: dict[str, Any]) -> None:
        self.done, self.of, self.found = 0, of, found

    def one_more(self) -> News:
        self.done += 1
        return News(self.done, self.of, deepcopy(self.found))
