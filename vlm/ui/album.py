"""Album: several pictures, chosen one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlm.ui.scope import FOLDER, joined
from vlm.ui.widget import Widget


class Album(Widget):
    """Pictures that are uploaded, dropped, or taken from a shelf of examples.

    The value has the files that are `chosen` and those on the `shelf`. What comes back
    from the browser may be anything: `vlm.ui.matching.pictures_of` checks it.
    """

    def __init__(self, value: dict | None = None, *, most: int, **options: Any) -> None:
        super().__init__(
            value,
            most=most,
            html_template=(FOLDER / "album.html").read_text("utf-8"),
            css_template=(FOLDER / "album.css").read_text("utf-8"),
            js_on_load=joined(["nodes.js", "album.js"]),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def files(paths: Iterable[str]) -> list[dict]:
    """Entries that Gradio serves."""
    return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]


def chosen(value: Any) -> Any:
    """What is said to be chosen, unchecked."""
    return value.get("chosen") if isinstance(value, dict) else None
