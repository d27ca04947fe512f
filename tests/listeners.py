"""Every listener and endpoint of a page, called as Gradio calls them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import gradio as gr
import orjson
import strategies
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder
from hypothesis import strategies as st
from pages import EXAMPLES, pages
from PIL import Image

from vlm.ui.controls import Picture

YIELDS = 3  # of a listener that streams, after which it is left alone
PICTURES = ("image", "mask", "image_a", "image_b", "other")
FIELDS = (
    *("run", "keys", "kind", "ids", "box", "strokes", "tokens", "token", "trial"),
    *("number", "heat", "rows", "layer", "before", "patch", "code", "index", "asked"),
)


class Listeners:
    """Those of the page of some engines; `known` are runs that it has kept of each."""

    def __init__(self, engines: Sequence[Any], pair: Any) -> None:
        self.demo = pages.build(engines, EXAMPLES, pair=lambda: pair)
        self.all = [each for each in self.demo.fns.values() if each.fn is not None]
        self.uploaded = _upload()
        # In a thread of its own: in this one Playwright's loop may be running.
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        self.names = [each.describe()["name"] for each in engines]
        self.known = [self._run(name) for name in self.names]

    def named(self, name: str, *, visibility: str = "private") -> Any:
        return next(
            each
            for each in self.all
            if (each.name, each.api_visibility) == (name, visibility)
        )

    def _run(self, model: str) -> str:
        probe = self.named("probe")
        inputs = self.plausible(probe)
        # Behind the turn, the picture and the prompt.
        (said,) = self.call(probe, [*inputs[:3], model, *inputs[4:]], None, yields=999)
        return said["run"]

    def call(
        self, listener: Any, inputs: list, event: Any, *, yields: int = YIELDS
    ) -> Any:
        """What it gives first; `event` is what a browser says that has happened."""
        asked = self._call(listener, inputs, event, yields)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    async def _call(self, listener: Any, inputs: list, event: Any, yields: int) -> Any:
        state, iterator, first = SessionState(self.demo), None, None
        where = listener.targets[0][0] if listener.targets else None
        for _ in range(yields):
            told = await self.demo.process_api(
                listener,
                list(inputs),
                state=state,
                iterator=iterator,
                event_data=gr.EventData(self.demo.blocks.get(where), event),
            )
            orjson.dumps(told["data"], default=str)  # as it is sent
            first = first or told["data"]
            if not told.get("is_generating"):
                break
            iterator = told["iterator"]
        return first

    def plausible(self, listener: Any, model: str = "") -> list:
        """Arguments that it is made for; `model` is for an endpoint."""
        picture = {"path": self.uploaded, "meta": strategies.KNOWN}
        if any(type(block).__name__ != "Api" for block in listener.inputs):
            return [
                picture if isinstance(block, Picture) else getattr(block, "value", None)
                for block in listener.inputs
            ]
        known: dict[str, Any] = dict.fromkeys(PICTURES, picture)
        known |= {"images": [picture], "texts": ["a cat"], "model": model}
        parameters = inspect.signature(listener.fn).parameters
        for name, each in parameters.items():
            default = "detect cat" if each.default is each.empty else each.default
            known.setdefault(name, default)
        return [known[name] for name in parameters][: len(listener.inputs)]

    def calls(self) -> st.SearchStrategy[tuple]:
        """Calls with an argument or two, and an event, that do not belong there."""
        wrong = st.one_of(strategies.values(), strategies.file_values(self.uploaded))
        fields = {name: strategies.values() for name in FIELDS}
        fields["run"] = st.one_of(st.sampled_from(self.known), strategies.values())
        known = st.fixed_dictionaries({}, optional=fields)
        events = st.one_of(strategies.values(), known)

        @st.composite
        def calls(draw: Callable) -> tuple:
            listener = draw(st.sampled_from(self.all))
            inputs = self.plausible(listener, draw(st.sampled_from(self.names)))
            if inputs:
                places = st.sets(st.integers(0, len(inputs) - 1), max_size=2)
                for at in draw(places):
                    inputs[at] = draw(wrong)
            return listener, inputs, draw(events)

        return calls()


def _upload() -> str:
    """A file that lies where uploads do."""
    file = Path(get_upload_folder(), "uploaded", "picture.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((64, 48)).save(file)
    return str(file)
