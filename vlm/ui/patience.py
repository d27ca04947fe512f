"""Patience: how long a question may take, and whether anybody still waits for it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

import gradio as gr
from gradio.context import LocalContext
from gradio.queueing import Event
from gradio.server_messages import ProcessCompletedMessage

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
    if LocalContext.event_id.get(None) is None:  # nobody asked through the queue
        return False
    event = _event()
    return event is None or not event.alive


def came() -> float:
    """When what runs in this thread came into the queue, by the monotonic clock.

    Now, if it did not come through the queue or nobody waits for it any more.
    """
    event = _event()
    return event.enqueue_time if event else time.monotonic()


async def leave(session: str | None, state: gr.State) -> None:
    """Take out of the queue what one visitor asked for, with `state`, and waits for."""
    queue = LocalContext.blocks.get()._queue
    waiting = [
        event
        for each in queue.event_queue_per_concurrency_id.values()
        for event in each.queue
        if event.session_hash == session and state in event.fn.inputs
    ]
    for event in waiting:
        await queue.remove_from_queue(event._id)
        nothing = {"data": [gr.skip() for _ in event.fn.outputs]}
        done = ProcessCompletedMessage(output=nothing, success=True)
        queue.send_message(event, done)


def _event() -> Event | None:
    blocks, asked = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    return blocks and blocks._queue.event_ids_to_events.get(asked)
