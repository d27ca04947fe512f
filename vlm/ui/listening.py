"""Listening: what a visitor was to be told is forgotten once nobody listens for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gradio.queueing import Queue
from starlette.datastructures import QueryParams

PAGE, CALL = "queue/data", "call/"  # the two kinds of streams, under Gradio's path


class Listening:
    """ASGI: knows how many streams of news each visitor has open.

    Gradio keeps what was not told to those who went away, of 2,000 of them.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._streams: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        _, _, path = scope["path"].partition("/gradio_api/")
        if not path.startswith((PAGE, CALL)):
            return await self._app(scope, receive, send)
        queue = scope["app"].get_blocks()._queue
        session = _visitor(queue, path, scope["query_string"])
        self._streams[session] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
                forget(queue, session)


def forget(queue: Queue, session: str) -> None:
    """What is there for this visitor, unless something is still on its way."""
    asked = queue.pending_event_ids_session.get(session, ())
    events = [queue.event_ids_to_events.get(each) for each in asked]
    if not any(event and event.alive for event in events):
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)


def _visitor(queue: Queue, path: str, query: bytes) -> str:
    """The session that a stream tells of; that of a call is named by its event."""
    if path.startswith(PAGE):
        return QueryParams(query).get("session_hash", "")
    call = path.rpartition("/")[2]
    event = queue.event_ids_to_events.get(call)
    return event.session_hash if event else call
