"""The header: which model answers, and a menu to choose another."""

from __future__ import annotations

from functools import cache
from string import Template
from typing import Any

from vlm.machine import Memory
from vlm.published import CHECKPOINTS, Checkpoint
from vlm.ui import figures, zero
from vlm.ui.models import Models
from vlm.ui.scope import FOLDER, joined
from vlm.ui.widget import Widget

MOST_CHARACTERS = 500  # of what is typed


class Header(Widget):
    """Shows what `told` gives; a static template, in which only text is set.

    While a model is being loaded it asks for news. `switched` is triggered when
    another model answers than the page shows, with `idle`: whether no answer is shown.
    """

    def __init__(self, models: Models, **options: Any) -> None:
        def news(_: Any) -> dict[str, Any]:
            return told(models)

        def choose(source: Any) -> dict[str, Any]:
            return chosen(models, source)

        def published(_: Any) -> list[dict[str, Any]]:
            return rows() if models.switching else []

        logo = (FOLDER / "logo.svg").read_text("utf-8")
        markup = Template((FOLDER / "header.html").read_text("utf-8"))
        built = told(models)
        super().__init__(
            built,
            html_template=markup.substitute(logo=logo),
            css_template=joined(["menu.css"]),
            js_on_load=joined(["nodes.js", "menu.js", "header.js"]),
            apply_default_css=False,
            server_functions=[news, choose, published],
            menu=models.switching,
            built=built["version"],
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def told(models: Models) -> dict[str, Any]:
    """The models' news, with the `name` that is shown and the `facts` behind it."""
    news = models.news()
    abouts = [models.about(name) for name in news["names"]]
    first = abouts[0]
    facts = [zero.place(first["device"]), first["arithmetic"]]
    if len(abouts) == 1 and first["device"]:
        facts.insert(0, f"{first['layers']} layers × {first['heads']} heads")
    return {
        **news,
        "name": " and ".join(news["names"]),
        "facts": " · ".join(filter(None, facts)),
    }


def chosen(models: Models, source: Any) -> dict[str, Any]:
    """Choose what a browser sent, which may be anything; "" calls a loading off.

    Gives the news, with what is wrong as `error`.
    """
    try:
        named = isinstance(source, str) and source.strip().isprintable()
        if not named or len(source) > MOST_CHARACTERS:
            raise ValueError("Give a folder or a Hub name.")
        models.choose(source)
    except ValueError as error:
        return {**told(models), "error": str(error)}
    return told(models)


@cache
def rows() -> list[dict[str, Any]]:
    """The published checkpoints in words, and whether each fits this machine."""
    memory = Memory.here()
    return [_row(checkpoint, memory) for checkpoint in CHECKPOINTS]


def _row(checkpoint: Checkpoint, memory: Memory) -> dict[str, Any]:
    size = checkpoint.bytes()
    others = [f"@{name}" for name in checkpoint.dtypes if name != "main"]
    half = figures.size(checkpoint.bytes("bfloat16")) if others else ""
    pictures = "" if checkpoint.images == 1 else f", {checkpoint.images} pictures"
    return {
        "name": checkpoint.name,
        "size": f"{checkpoint.resolution} px · {figures.short(checkpoint.parameters)} "
        f"parameters · {figures.size(size)} ({checkpoint.dtypes['main']})"
        + (f", {half} as {' or '.join(others)}" if others else ""),
        "does": f"{checkpoint.does}{pictures}",
        "prompts": list(checkpoint.prompts),
        "fit": memory.fit(size),
    }
