"""The line of help under the prompt: what the task is, or what is amiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm.ui import prompts
from vlm.ui.lint import lint
from vlm.ui.widget import Widget

FOLDER = Path(__file__).parent


class Hint(Widget):
    """Shows a `hint`: one thing at a time, so that its place keeps its height.

    `repair` is triggered to have the prompt written as advised, `language`, with a
    `code`, to have it in another language.
    """

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        super().__init__(
            value,
            html_template=(FOLDER / "hint.html").read_text("utf-8"),
            js_on_load=(FOLDER / "hint.js").read_text("utf-8"),
            apply_default_css=False,
            languages=[list(pair) for pair in prompts.LANGUAGES.items()],
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def hint(prompt: str, about: dict[str, Any]) -> dict[str, Any]:
    """What the line says: `words`, a `repair` of the prompt, and its `language`.

    `language` is None where none is spoken, `amiss` whether the words are advice.
    """
    task, advice = prompts.of(prompt), lint(prompt, about)
    told = {
        "words": task.help if task else "",
        "repair": None,
        "amiss": bool(advice),
        "language": prompts.language_of(prompt),
    }
    if advice:
        told |= {"words": advice[0].message, "repair": advice[0].repair}
    return told
