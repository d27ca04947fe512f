"""Widget: what all components of the page that have a script of their own share."""

from __future__ import annotations

from functools import cache
from typing import Any

import gradio as gr


class Widget(gr.HTML):
    """An HTML component, quick to ask for what it does not have.

    Gradio takes each name that the script has in quotes for an event's, and searches
    the script anew whenever it asks for a name: 1,200 times to build this page, and
    again for each visitor. Here it is searched once for each name.
    """

    def __getattr__(self, name: str) -> Any:
        if not _quoted(name, self.__dict__.get("js_on_load") or ""):
            raise AttributeError(f"{type(self).__name__} has no {name}.")
        return super().__getattr__(name)


@cache
def _quoted(name: str, script: str) -> bool:
    return any(f"{quote}{name}{quote}" in script for quote in "'\"`")
