"""Patience: how long a question may take, and whether anybody still waits for it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

from gradio.context import LocalContext

LIMIT = 600  # seconds of a question, all its tries together; waiting is not counted

News = TypeVar("News")


def awaited(news: Generator[News, None, None]) -> Iterator[News]:
    """What a model computes for one caller, as long as it is waited for.

    Looked at with each of the news, so that the work ends within a step, also where
    the caller is told nothing before the end and Gradio could not stop it.

    Raises:
        ValueError: it has taken longer than LIMIT, or its caller is gone.
    """
    end = time.monotonic() + LIMIT
    try:
        for each in news:
            yield each
            if is_gone():
                raise ValueError("Nobody waits for this answer any more.")
            if time.monotonic() > end:
                raise ValueError(
                    f"This took longer than {LIMIT} seconds, the most that a question "
                    "may take here, and was ended. Ask for fewer tokens or tries."
                )
    finally:
        news.close()


def is_gone() -> bool:
    """Whether who asked what runs in this thread has stopped it, or gone away."""
    blocks, asked = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or asked is None:  # nobody asked through the queue
        return False
    event = blocks._queue.event_ids_to_events.get(asked)
    return event is None or not event.alive
