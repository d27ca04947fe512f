"""The viewer: picture, boxes, tokens and attention, linked both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

FOLDER = Path(__file__).parent
SCRIPTS = ("maps.js", "picture.js", "heads.js", "tokens.js", "detail.js", "scope.js")
MAX_KEYS = 64

Read = Callable[[str, list[str]], "dict[str, dict] | None"]


class Scope(gr.HTML):
    """Shows a `view` (see `vlm.ui.view`).

    The value is light and is streamed. The attention maps are not in it: the script
    fetches them with `read`, once, and draws every layer and head without the server.
    The template is static and the script only ever sets `textContent`, so no text of
    a user or of the model is read as markup.

    A stopped run has no last value, so its end is told by a new `stopped_at`.
    """

    def __init__(
        self,
        value: dict | None = None,
        *,
        read: Read,
        stopped_at: float = 0,
        **options: Any,
    ) -> None:
        def attention(request: Any) -> dict[str, dict] | None:
            return read(*_checked(request))

        super().__init__(
            value,
            html_template=(FOLDER / "scope.html").read_text("utf-8"),
            css_template=(FOLDER / "scope.css").read_text("utf-8"),
            js_on_load="\n".join((FOLDER / js).read_text("utf-8") for js in SCRIPTS),
            apply_default_css=False,
            server_functions=[attention],
            stopped_at=stopped_at,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {
            "type": "object",
            "description": "text, tokens, objects, done; the rest is for the viewer",
        }

    def example_payload(self) -> dict:
        return {}

    def example_value(self) -> dict:
        return {}


def _checked(request: Any) -> tuple[str, list[str]]:
    # Anyone can call a server function with anything, and without a queue.
    if not isinstance(request, dict):
        return "", []
    run, keys = request.get("run"), request.get("keys")
    if not isinstance(run, str) or not isinstance(keys, list):
        return "", []
    return run, [key for key in keys[:MAX_KEYS] if isinstance(key, str)]
