"""Whose turn it is to fill the viewers of one visitor."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TypeVar

News = TypeVar("News")


class Turn:
    """A run that begins takes the turn, and a run that has lost it ends.

    Gradio's `cancels` would end what is running too late, or end what has just begun.
    So each way to ask first says, by a listener of its own, that the turn is over.
    """

    def __init__(self) -> None:
        self._holder: object | None = None

    def end(self) -> None:
        self._holder = None

    def take(self, news: Generator[News, None, None]) -> Iterator[News]:
        """The news of a run, as long as no other has taken the turn or ended it."""
        self._holder = mine = object()
        with contextlib.closing(news):
            for each in news:
                if self._holder is not mine:
                    return
                yield each
