"""Whose turn it is to fill the viewers of one visitor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import gradio as gr

from vlm.ui.patience import came, leave

News = TypeVar("News")
ASKED = "(turn) => (document.dispatchEvent(new Event('paliscope:ask')), turn)"


class Turn:
    """A run that begins takes the turn, and a run that has lost it ends.

    So each way to ask first says, by a listener of its own, that the turn is over, as
    Stop does: what is running ends with its next news, and what waits is never begun.

    Gradio's `cancels` would end what is running too late, or end what has just begun,
    and its "always_last" loses what is asked while something is being cancelled.
    """

    def __init__(self) -> None:
        self._holder: object | None = None
        self._ended = 0.0

    @property
    def held(self) -> bool:
        return self._holder is not None

    def end(self) -> None:
        self._holder = None
        self._ended = time.monotonic()

    def take(self, news: Generator[News, None, None]) -> Iterator[News]:
        """The news of a run, as long as no other has taken the turn or ended it."""
        if came() < self._ended:
            return
        self._holder = mine = object()
        try:
            with contextlib.closing(news):
                for each in news:
                    if self._holder is not mine:
                        return
                    yield each
        finally:
            if self._holder is mine:
                self._holder = None


def over(state: gr.State) -> dict[str, Any]:
    """What a listener is made with that says: the Turn in `state` is over.

    And what was told of the question before goes from the page (see page.html).
    """

    async def end(turn: Turn, request: gr.Request | None = None) -> None:
        turn.end()
        if request:  # it came from a page
            await leave(request.session_hash, state)

    return {"fn": end, "inputs": state, "js": ASKED}
