"""What is wrong with an input or a run, as a message on the page and in the API."""

from __future__ import annotations

import html
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gradio as gr

from vlm.ui.faults import sentence

MOST = 300  # characters of a message's beginning, and of its end


def refusing(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the function returns; what it raises becomes a message."""
    try:
        return function(*arguments, **named)
    except gr.Error:
        raise
    except Exception as error:
        words = sentence(error)
    # Not from within, where the message would hold the error, the error its frames,
    # and these the caches of an answer that has failed.
    raise refusal(words)


def refusing_all(values: Iterator[Any]) -> Generator[Any, None, None]:
    """What the iterator yields; what it raises becomes a message."""
    try:
        yield from values
        return
    except gr.Error:
        raise
    except Exception as error:
        words = sentence(error)
    raise refusal(words)


def refusal(message: str) -> gr.Error:
    """It stands until the next question (see page.html) or until it is closed.

    Gradio would close all messages together, 10 seconds after the first of them: one
    that came last would be gone before it is read.
    """
    return gr.Error(as_text(message), duration=None, print_exception=False)


def warn(message: str) -> None:
    """Tell of something that does not keep a question from being asked."""
    if message:
        gr.Warning(as_text(message))


def as_text(message: str) -> str:
    """Gradio shows messages as markup, and some repeat what a stranger wrote.

    That may be of any length, and hold halves of characters, which cannot be sent.
    """
    if len(message) > 2 * MOST:
        message = f"{message[:MOST]} … {message[-MOST:]}"
    message = message.encode("utf-8", "replace").decode()
    return html.escape(message, quote=False)
