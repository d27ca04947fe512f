"""Widget: what all components of the page that have a script of their own share."""

from __future__ import annotations

from functools import cache
from typing import Any

import gradio as gr


class Widget(gr.HTML):
    """An HTML component: what its script names in quotes is an event, or a property.

    Gradio takes all those names for events, so that what it sends of a changed
    property had a listener in it, which only the page could do without. And it searches
    the script anew whenever it asks for what a component does not have: 1,200 times to
    build this page, and again for each visitor. Here it is searched once for each name.
    """

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        script, properties = own.get("js_on_load") or "", own.get("props") or ()
        if name in properties or not _quoted(name, script):
            raise AttributeError(f"{type(self).__name__} has no {name}.")
        return super().__getattr__(name)


@cache
def _quoted(name: str, script: str) -> bool:
    return any(f"{quote}{name}{quote}" in script for quote in "'\"`")
