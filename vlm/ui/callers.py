"""What callers of the endpoints send, which may be anything."""

from __future__ import annotations

from typing import Any

from gradio_client.utils import is_file_obj_with_meta


def named(engines: dict[str, Any], model: str) -> str:
    """The model to ask: the first one if none is named."""
    if model and model not in engines:
        raise ValueError(f"There is no model {model!r}, only {', '.join(engines)}.")
    return model or next(iter(engines))


def sent(image: Any) -> str:
    """Where a picture that was sent lies, in Gradio's cache.

    Gradio has seen to that if it knows the value for a file. Any other string or dict
    comes here as it was sent, and may name whatever file of this machine.
    """
    if image is None:
        return ""
    if not is_file_obj_with_meta(image):
        raise ValueError("Send the picture as a file: handle_file(its path or URL).")
    return image["path"]


def place(name: str, number: int | None, count: int) -> int | slice:
    """What to index an axis of `count` with; all of it if no number is asked for."""
    if number is None:
        return slice(None)
    if not isinstance(number, int) or not -count <= number < count:
        raise ValueError(f"{name} is {number}; give one from 0 to {count - 1}, or -1.")
    return number
