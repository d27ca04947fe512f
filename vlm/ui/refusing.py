"""What is wrong with an input or a run, as a message on the page and in the API."""

from __future__ import annotations

import html
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gradio as gr

from vlm.ui.faults import sentence


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
    return gr.Error(as_text(message), print_exception=False)


def as_text(message: str) -> str:
    """Gradio shows messages as markup, and some repeat what a stranger wrote."""
    return html.escape(message, quote=False)
