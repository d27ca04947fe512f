"""History: what was asked in this browser. It is kept there, and sent nowhere."""

from __future__ import annotations

from typing import Any

from vlm.ui.scope import FOLDER, joined
from vlm.ui.widget import Widget


class History(Widget):
    """A list of the latest runs; tells `restore` what is to be asked again.

    So does an address with a permalink in it (permalink.js) when it is opened. What it
    tells comes from outside: see `vlm.ui.keep`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            html_template=(FOLDER / "history.html").read_text("utf-8"),
            css_template=(FOLDER / "history.css").read_text("utf-8"),
            js_on_load=joined(["permalink.js", "history.js"]),
            apply_default_css=False,
            **options,
        )
