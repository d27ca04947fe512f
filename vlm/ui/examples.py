"""Pictures to begin with, each with a prompt: a row of buttons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.ui.widget import Widget

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """`fails` marks one that the embedded model gets wrong: those belong to it too."""

    picture: Path | None
    prompt: str
    fails: bool = False


def listed(folder: Path) -> list[Example]:
    """The examples named in a folder's examples.json, in its order."""
    index = folder / "examples.json"
    entries = json.loads(index.read_text("utf-8")) if index.exists() else []
    return [
        Example(folder / entry["picture"], entry["prompt"], entry.get("fails", False))
        for entry in entries
    ]


class Examples(Widget):
    """Tells `pick` the index of the example that was clicked.

    Unlike gr.Dataset its buttons have names, which a screen reader can say.
    """

    def __init__(self, value: list[dict] | None = None, **options: Any) -> None:
        super().__init__(
            value,
            html_template='<div class="examples"></div>',
            js_on_load=(FOLDER / "examples.js").read_text("utf-8"),
            apply_default_css=False,
            **options,
        )

    @staticmethod
    def shown(examples: list[Example]) -> list[dict]:
        return [
            {
                "prompt": example.prompt,
                "fails": example.fails,
                "file": {
                    "path": str(example.picture),
                    "meta": {"_type": "gradio.FileData"},
                },
            }
            for example in examples
        ]

    def api_info(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "object"}}
