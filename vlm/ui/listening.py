"""Listening: who has a stream of news open, and what follows where nobody has one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from gradio.queueing import Queue
from starlette.datastructures import QueryParams

PAGE, CALL = "queue/data", "call/"  # the two kinds of streams, under Gradio's path
ASKED = "queue/join"
LAST = b'"close_stream"'  # in what a page's stream ends with
READ = 0.1  # seconds, in which a browser has read what it was told
# Seconds. A reply that comes after its news opens one more stream; of a session that is
# forgotten Gradio says that there is none, and the page would then wait in vain.
LATER = 60


class Listening:
    """ASGI: knows how many streams of news each visitor has open.

    Gradio keeps what was not told to those who went away, of 2,000 of them. And it
    ends a page's stream when all is told; who asks in that moment has the reply before
    the end, waits for news in the old stream, and opens no new one. So that reply is
    held back until the end is read. The model works meanwhile.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._streams: Counter[str] = Counter()
        self._ending: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        _, _, path = scope.get("path", "").partition("/gradio_api/")
        if path.startswith(ASKED):
            send = self._after_the_end(scope, send)
        if not path.startswith((PAGE, CALL)):
            return await self._app(scope, receive, send)
        queue = _queue(scope)
        session = _visitor(queue, path, scope["query_string"])
        self._streams[session] += 1
        ended = False

        async def sent(message: Any) -> None:
            nonlocal ended
            if LAST not in message.get("body", b""):
                return await send(message)
            ended = True
            self._ending[session] += 1
            try:
                await send(message)
            finally:
                loop = asyncio.get_running_loop()
                loop.call_later(READ, self._has_read, session)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
                if ended:
                    loop = asyncio.get_running_loop()
                    loop.call_later(LATER, self._forget_told, queue, session)
                else:
                    forget(queue, session, left=True)

    def _has_read(self, session: str) -> None:
        self._ending[session] -= 1
        if not self._ending[session]:
            del self._ending[session]

    def _forget_told(self, queue: Queue, session: str) -> None:
        if session not in self._streams:
            forget(queue, session, left=False)

    def _after_the_end(self, scope: Any, send: Any) -> Any:
        async def replied(message: Any) -> None:
            session = _asker(_queue(scope), message.get("body", b""))
            while self._ending.get(session):
                await asyncio.sleep(READ / 10)
            await send(message)

        return replied


def forget(queue: Queue, session: str, *, left: bool) -> None:
    """What is there for this visitor, unless something is still on its way.

    Of one who has not `left` but was told all, what has come since is kept too.
    """
    asked = queue.pending_event_ids_session.get(session, ())
    events = [queue.event_ids_to_events.get(each) for each in asked]
    news = queue.pending_messages_per_session.get(session)
    come = not left and news is not None and not news.empty()
    if not come and not any(event and event.alive for event in events):
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)


def _queue(scope: Any) -> Queue:
    return scope["app"].get_blocks()._queue


def _asker(queue: Queue, reply: bytes) -> str | None:
    """The session of the event that Gradio's reply names, if it names one."""
    try:
        named = json.loads(reply)["event_id"]
    except (ValueError, LookupError, TypeError):  # a refusal, or the reply's header
        return None
    event = queue.event_ids_to_events.get(named)
    return event.session_hash if event else None


def _visitor(queue: Queue, path: str, query: bytes) -> str:
    """The session that a stream tells of; that of a call is named by its event."""
    if path.startswith(PAGE):
        return QueryParams(query).get("session_hash", "")
    call = path.rpartition("/")[2]
    event = queue.event_ids_to_events.get(call)
    return event.session_hash if event else call
