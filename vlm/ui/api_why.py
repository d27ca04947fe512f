"""The named endpoints about one token of an answer: where it looked, and why.

As in api.py: docstrings and types are what callers read, and are not postponed.
"""

from typing import Any, Literal

import gradio as gr

from vlm.probes import METHODS
from vlm.ui import pictures, view
from vlm.ui.answering import attended
from vlm.ui.callers import Caller, place, position, way
from vlm.ui.explaining import answered, heat_of
from vlm.ui.refusing import refusing
from vlm.ui.replies import Attended, Explained, numbers


class Why(Caller):
    """Each public method is an endpoint of its name, and an MCP tool."""

    def attention(
        self,
        image: gr.FileData,
        prompt: str,
        token: int = -1,
        answer: str = "",
        layer: int | None = None,
        head: int | None = None,
        model: str = "",
    ) -> Attended:
        """Where the model looked when it said one token of its answer.

        `maps` is nested as [layers][heads][rows][columns], without the axes that were
        asked for: attention on each patch of the picture, which is squeezed to a
        square first. `shares` are [layers][heads][4]: how much lay on the image, on
        the start token, on the prompt and on the answer so far; they sum to one.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            token: its place in the answer from 0, or from the end as -1
            answer: look at this answer; the model's own greedy one if left out
            layer: just this one of the decoder, from 0 or from the end as -1
            head: just this one, from 0 or from the end as -1
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one looked at, grid, maps, shares
        """
        return refusing(
            self._attention, image, prompt, token, answer, layer, head, model
        )

    def explain(
        self,
        image: gr.FileData,
        prompt: str,
        method: Literal[tuple(METHODS)] = "relevancy",
        token: int = -1,
        answer: str = "",
        model: str = "",
    ) -> Explained:
        """Where on the picture one token of the model's answer came from.

        By one of several ways, of which each shows something else: `shows` and `hides`
        say what. `map` is [rows][columns] over the picture, squeezed to a square, and
        holds nothing below zero; its scale is the way's own.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            method: the way's name
            token: its place in the answer from 0, or from the end as -1
            answer: explain this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one explained, grid, map, words
        """
        return refusing(self._explain, image, prompt, method, token, answer, model)

    def _explain(
        self,
        image: Any,
        prompt: str,
        method: str,
        token: int,
        answer: str,
        model: str,
    ) -> Explained:
        known = METHODS[way(method)]
        ask, steps = self._given(image, prompt, model, answer)
        engine = self._engines[ask.model]
        at = position(token, len(steps))
        asked = answered(self._engines, ask, tuple(step.token for step in steps))
        heat = heat_of(asked, method, [at])
        return {
            "tokens": [view.token(engine, step) for step in steps],
            "token": at,
            "grid": list(heat.shape),
            "map": numbers(heat),
            "shows": known.shows,
            "hides": known.hides,
        }

    def _attention(
        self,
        image: Any,
        prompt: str,
        token: int,
        answer: str,
        layer: int | None,
        head: int | None,
        model: str,
    ) -> Attended:
        ask, steps = self._given(image, prompt, model, answer)
        engine = self._engines[ask.model]
        at = position(token, len(steps))
        ids = tuple(step.token for step in steps)
        picture = pictures.read(ask.picture)
        maps, shares = attended(engine, picture, ask.prompt, ids, at)
        part = place("layer", layer, len(maps)), place("head", head, maps.shape[1])
        return {
            "tokens": [view.token(engine, step) for step in steps],
            "token": at,
            "grid": list(maps.shape[2:]),
            "maps": numbers(maps[part]),
            "shares": numbers(shares[part]),
        }
