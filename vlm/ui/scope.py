"""The viewer: picture, boxes, tokens and attention, linked both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vlm.ui.store import Store

FOLDER = Path(__file__).parent
# Parts of one script and one style; what is named first is drawn beneath.
SCRIPTS = (
    "maps.js",
    "picture.js",
    "heat.js",
    "boxes.js",
    "edges.js",
    "heads.js",
    "sheet.js",
    "tokens.js",
    "detail.js",
    "objects.js",
    "tools.js",
    "keep.js",
    "scope.js",
)
STYLES = (
    "scope.css",
    "heat.css",
    "tokens.css",
    "detail.css",
    "objects.css",
    "tools.css",
    "narrow.css",
)
MAX_KEYS = 64


class Scope(gr.HTML):
    """Shows a `view` (see `vlm.ui.view`).

    The value is light and is streamed. The attention maps are not in it: the script
    fetches them from the store, once, and draws every layer and head by itself.
    The template is static and the script only ever sets `textContent`, so no text of
    a user or of the model is read as markup.

    A stopped run has no last value, so its end is told by a new `stopped_at`.
    """

    def __init__(
        self,
        value: dict | None = None,
        *,
        store: Store,
        stopped_at: float = 0,
        **options: Any,
    ) -> None:
        def attention(request: Any) -> dict[str, dict] | None:
            return store.read(*_checked(request))

        super().__init__(
            value,
            html_template=(FOLDER / "scope.html").read_text("utf-8"),
            css_template=joined(STYLES),
            js_on_load=joined(SCRIPTS),
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


def joined(names: Sequence[str]) -> str:
    return "\n".join((FOLDER / name).read_text("utf-8") for name in names)


def _checked(request: Any) -> tuple[str, list[str]]:
    # Anyone can call a server function with anything, and without a queue.
    if not isinstance(request, dict):
        return "", []
    run, keys = request.get("run"), request.get("keys")
    if not isinstance(run, str) or not isinstance(keys, list):
        return "", []
    return run, [key for key in keys[:MAX_KEYS] if isinstance(key, str)]
