"""The gate: what of a request is refused before any of our functions is called.

Gradio sees to paths, to the size of each upload and to other origins; see
`vlm.ui.page.launch`. Here is what it leaves open.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_upload_folder, is_in_or_equal, is_static_file
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from vlm.ui.listening import Listening
from vlm.ui.refusing import refusal

MAX_UPLOAD = 130 * 2**20  # bytes of one request: eight files, each of the most
MAX_BODY = 2**20  # bytes of any other request: they are JSON, which grows in memory
MAX_MCP = 8 * 2**20  # bytes of a tool's call, which may hold a picture
LEAST_FREE = 2**30  # bytes of the disk; what is sent is kept for an hour
FULL = "The disk of this server is nearly full: it takes nothing now. Try again later."
ADDRESS = "Send the picture itself as a file: this server opens no address."
UNFIT = (
    "What was sent is not what this asks for. “Use via API”, below the page, tells the "
    "arguments and their order."
)
# What Gradio raises where a value is none of those that a component takes.
UNFIT_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
)
# What is under Gradio's path but no part of the page: ffmpeg at work on a stranger's
# film, a session's state written to disk, a stream without an end.
CLOSED = ("process_recording", "deep_link", "dev/")


class Page(gr.Blocks):
    """Blocks that open no file but what was sent, and tell what they cannot take.

    So many events may wait as `waiting` says. Calls that jump the queue are refused.
    """

    def __init__(self, *, waiting: int, **options: Any) -> None:
        self._waiting = waiting
        super().__init__(**options)

    def queue(self) -> Page:
        # Gradio calls this by itself; once more would make all routes once more.
        return super().queue(max_size=self._waiting, api_open=False)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *state: Any, **options: Any
    ) -> list[Any]:
        if block_fn.fn is None:  # the browser's own; there is nothing to call here
            raise refusal(UNFIT)
        try:
            traverse(inputs, _check_file, is_file_obj_with_meta)
            return await super().preprocess_data(block_fn, inputs, *state, **options)
        except gr.Error:
            raise
        except UNFIT_ERRORS as error:
            raise refusal(UNFIT) from error


class Bounded:
    """ASGI: no request's body is read beyond its bound, and some paths are closed."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        _, _, path = scope["path"].partition("/gradio_api/")
        if path.startswith(CLOSED):
            return await _told(404, "This is not here.")(scope, receive, send)
        if path == "upload" and _is_nearly_full(get_upload_folder()):
            return await _told(507, FULL)(scope, receive, send)
        kind = Headers(scope=scope).get("content-type", "")
        files, most, read = kind.startswith("multipart/"), _most(path), 0

        async def bounded() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # At this error, and no other, Gradio removes what it has written of files.
            if files and message["type"] == "http.disconnect":
                raise MultiPartException("The upload was cut short.")
            if read > most:
                words = f"This is more than the maximum allowed size of {most} bytes."
                raise MultiPartException(words) if files else HTTPException(413, words)
            return message

        await self._app(scope, bounded, send)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return _told(404, "There is no such function. “Use via API” lists them.")


async def _unfit(request: Request, error: Exception) -> JSONResponse:
    return _told(400, "What was sent is not what is taken here.")


# What Gradio's server is made with. It raises KeyError for numbers and names of
# functions that are not there, TypeError for an upload without a file's name. And it
# would repeat a body without what is asked for, in which it may fail.
SERVER = {
    "middleware": [Middleware(Bounded), Middleware(Listening)],
    "exception_handlers": {
        FnIndexInferError: _unknown,
        KeyError: _unknown,
        TypeError: _unfit,
        RequestValidationError: _unfit,
    },
}


def _told(status: int, words: str) -> JSONResponse:
    return JSONResponse({"detail": words}, status)


def _most(path: str) -> int:
    """Bytes of a request to this path under Gradio's."""
    if path == "upload":
        return MAX_UPLOAD
    return MAX_MCP if path.startswith("mcp") else MAX_BODY


def _is_nearly_full(folder: str) -> bool:
    places = (Path(folder), *Path(folder).parents)  # the folder is made when needed
    there = next(each for each in places if each.exists())
    return shutil.disk_usage(there).free < LEAST_FREE


def _check_file(file: dict) -> dict:
    """Uploaded, or one of the page's own. Gradio looks only once it serves."""
    path = file["path"]
    if is_http_url_like(path):
        raise refusal(ADDRESS)
    if not is_in_or_equal(path, get_upload_folder()) and not is_static_file(path):
        raise refusal(UNFIT)
    return file
