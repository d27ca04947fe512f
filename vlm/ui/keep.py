"""Keep: bring back what was asked, out of a link or out of a browser's history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from vlm.ui import pictures
from vlm.ui.again import Again, part, sent
from vlm.ui.asking import Ask, Settings
from vlm.ui.examples import Example
from vlm.ui.history import History
from vlm.ui.models import Models
from vlm.ui.refusing import refusing, warn

BROKEN = (
    "This link is damaged or cut short. Copy it once more, whole, "
    "or choose a picture and write a prompt here."
)


def wire(
    history: History,
    examples: Sequence[Example],
    models: Models,
    **listener: Any,
) -> Any:
    """Ask again what `history` brings back.

    The listener's `outputs` are the picture, the prompt, the model, the fields of
    `Settings`, the start, and what takes an `Again`.
    """

    def bring(event: gr.EventData) -> tuple:
        ask = refusing(restored, part(sent(event), "asked"), examples)
        here = models.asked(ask.model)
        if ask.model != here:
            note = f"This was asked of {ask.model}. Here {here} answers."
            warn(note)
            ask = replace(ask, model=here)
        chosen = here if here in models.choices else models.choices[0]
        settings = astuple(ask.settings)
        return ask.picture, ask.prompt, chosen, *settings, ask.start, Again(ask)

    return history.restore(bring, **listener)


def restored(asked: Any, examples: Sequence[Example]) -> Ask:
    """What a browser wants to ask again. It may come from anybody, so all is checked.

    `asked` has prompt, start, settings, model, and the picture: {"example": name}, or
    {"path": place} of a file that the browser has just sent.

    Raises:
        ValueError: what is wrong with it.
    """
    asked = _part(asked, dict)
    ask = Ask(
        _part(asked.get("model"), str)[:100],
        _picture(_part(asked.get("picture"), dict), examples),
        _part(asked.get("prompt"), str),
        _part(asked.get("start"), str),
        _settings(_part(asked.get("settings"), dict)),
    )
    pictures.read(ask.picture)
    return ask


def _picture(picture: dict, examples: Sequence[Example]) -> str:
    if "example" in picture:
        places = {each.picture.name: str(each.picture) for each in examples}
        if place := places.get(_part(picture["example"], str)):
            return place
        raise ValueError("The example of this link is not here. Choose a picture.")
    try:
        place = Path(_part(picture.get("path"), str)).resolve()
    except (ValueError, OSError, RuntimeError):  # nothing that a file can be called
        raise ValueError(BROKEN) from None
    # No other file of the server may be had by its name.
    if not place.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ValueError(BROKEN)
    return str(place)


def _settings(settings: dict) -> Settings:
    if not settings.keys() <= {field.name for field in fields(Settings)}:
        raise ValueError(BROKEN)
    return Settings(**settings)


def _part(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(BROKEN)
    return value
