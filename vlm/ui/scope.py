"""The viewer: picture, boxes, tokens and attention, linked both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.ui.explaining import ways
from vlm.ui.export import exported
from vlm.ui.store import Store
from vlm.ui.trying import trials
from vlm.ui.widget import Widget

FOLDER = Path(__file__).parent
# Parts of one script and one style; what is named first is drawn beneath.
SCRIPTS = (
    "nodes.js",
    "ramp.js",
    "maps.js",
    "picture.js",
    "reel.js",
    "sinks.js",
    "heat.js",
    "thumbs.js",
    "boxes.js",
    "edges.js",
    "heads.js",
    "sheet.js",
    "explain.js",
    "trial_figures.js",
    "trial_layers.js",
    "trial_cut.js",
    "trial_curves.js",
    "trial_patch.js",
    "trial_shuffled.js",
    "trial.js",
    "tokens.js",
    "detail.js",
    "objects.js",
    "meta.js",
    "region.js",
    "paint.js",
    "tools.js",
    "change.js",
    "permalink.js",
    "keep.js",
    "link.js",
    "waiting.js",
    "scope.js",
)
STYLES = (
    "scope.css",
    "heat.css",
    "reel.css",
    "explain.css",
    "trial.css",
    "tokens.css",
    "detail.css",
    "objects.css",
    "tools.css",
    "keep.css",
    "narrow.css",
)
MAX_KEYS = 64


class Scope(Widget):
    """Shows a `view` (see `vlm.ui.view`).

    The value is light and is streamed. The attention maps are not in it: the script
    fetches them from the store, once, and draws every layer and head by itself.
    The template is static and the script only ever sets `textContent`, so no text of
    a user or of the model is read as markup.

    A stopped run has no last value, so its end is told by a new `stopped_at`. What
    `vlm.ui.explaining` yields comes as `explained`, what `vlm.ui.trying` does as
    `tried`.
    Viewers of one `group` show the same layer, head and tokens, and less beside them.
    """

    def __init__(
        self,
        value: dict | None = None,
        *,
        store: Store,
        stopped_at: float = 0,
        explained: dict | None = None,
        tried: dict | None = None,
        group: str = "",
        **options: Any,
    ) -> None:
        def attention(request: Any) -> dict[str, dict] | None:
            return store.read(*_checked(request))

        def export(request: Any) -> dict[str, Any]:
            return exported(store, request, **viewer)

        viewer = {
            "markup": (FOLDER / "scope.html").read_text("utf-8"),
            "style": joined(STYLES),
            "script": joined(SCRIPTS),
        }
        super().__init__(
            value,
            html_template=viewer["markup"],
            css_template=viewer["style"],
            js_on_load=viewer["script"],
            apply_default_css=False,
            server_functions=[attention, export],
            stopped_at=stopped_at,
            explained=explained,
            tried=tried,
            ways=ways(),
            trials=trials(),
            group=group,
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
