"""The named endpoints that put one token of an answer to the test.

As in api.py: docstrings and types are what callers read, and are not postponed.
"""

from collections.abc import Iterator
from typing import Any, Literal

import gradio as gr

from vlm.probes import METHODS, TRIALS, Asked
from vlm.ui import pictures, view
from vlm.ui.callers import Caller, position, sent, way
from vlm.ui.explaining import answered, heat_of
from vlm.ui.patience import awaited
from vlm.ui.refusing import refusing_all
from vlm.ui.replies import CutOff, Patched, ReadByLayer, Shuffled, TakenAway
from vlm.ui.trying import passes

ROWS = ("answer", "text", "all")


class Try(Caller):
    """Each public method is an endpoint of its name, and an MCP tool."""

    def logit_lens(
        self,
        image: gr.FileData,
        prompt: str,
        token: int = -1,
        answer: str = "",
        model: str = "",
    ) -> Iterator[ReadByLayer]:
        """What a PaliGemma would say after each layer, where it chose one token.

        `layers` are numbered from 0, and -1 is the embedding. Of each: the token's
        `probability`, the three most probable pieces as `top`, and (not of the
        embedding) the `balance` of attention on image, start token, prompt, answer.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            token: its place in the answer from 0, or from the end as -1
            answer: test this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one tested, what each layer says
        """
        yield from refusing_all(
            self._tried("layers", image, prompt, token, answer, model)
        )

    def knockout(
        self,
        image: gr.FileData,
        prompt: str,
        token: int = -1,
        rows: Literal[ROWS] = ROWS[0],
        box: list[float] | None = None,
        method: Literal[tuple(METHODS)] = "relevancy",
        answer: str = "",
        model: str = "",
    ) -> Iterator[CutOff]:
        """How much less likely a token becomes when parts are cut off from it.

        Streams. `cuts` hide patches: those of a box, all others, and the hottest tenth
        of a map; `change` is that of the token's natural log-probability, `random` the
        mean change by as many random patches. `heads` are [layers][heads], each
        silenced by itself. What is not known yet is null.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            token: its place in the answer from 0, or from the end as -1
            rows: who no longer sees the patches: the answer, all text, or everybody
            box: x1, y1, x2, y2 in pixels of the picture; none if left out
            method: the way to explain whose map's hottest patches are hidden
            answer: test this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one tested, cuts and heads
        """

        def options(asked: Asked, at: int) -> dict[str, Any]:
            shares = None if box is None else _shares(box, asked.image.size)
            return {"heat": _map(method, asked, at), "box": shares, "rows": str(rows)}

        yield from refusing_all(
            self._tried("knockout", image, prompt, token, answer, model, options)
        )

    def faithfulness(
        self,
        image: gr.FileData,
        prompt: str,
        method: Literal[tuple(METHODS)] = "relevancy",
        token: int = -1,
        answer: str = "",
        model: str = "",
    ) -> Iterator[TakenAway]:
        """Whether an answer's token depends on what a way to explain calls important.

        Streams. In `deletion` the hottest patches of its map go first, in `insertion`
        they come first. `probabilities` are the token's when `shares` of the patches
        have gone or come, for the map (`heat`) and for a random order. Less `area` is
        a better map in deletion, more is one in insertion.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            method: the name of the way to explain
            token: its place in the answer from 0, or from the end as -1
            answer: test this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one tested, four curves
        """

        def options(asked: Asked, at: int) -> dict[str, Any]:
            return {"heat": _map(method, asked, at)}

        yield from refusing_all(
            self._tried("faithfulness", image, prompt, token, answer, model, options)
        )

    def patching(
        self,
        image: gr.FileData,
        prompt: str,
        token: int = -1,
        layer: int = 0,
        other: gr.FileData | None = None,
        answer: str = "",
        model: str = "",
    ) -> Iterator[Patched]:
        """How much of a token comes back when a part of the model's states is put back.

        Streams. The pass is spoilt by noise on the image, or by another picture; then
        the unspoilt states are put in. A score of 1 is all of the token's, 0 is none:
        for the `image` and the `last` row after each of the `layers` (-1 is the
        embedding), and for each of the `positions` after one layer.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            token: its place in the answer from 0, or from the end as -1
            layer: after which positions are put back, from 0; the embedding is -1
            other: spoil the pass by this picture; by noise if left out
            answer: test this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one tested, and the scores
        """

        def options(asked: Asked, at: int) -> dict[str, Any]:
            if type(layer) is not int:
                raise ValueError(f"layer is {layer!r}; give a whole number.")
            held = pictures.bytes_of(asked.image)
            spoilt = None if other is None else pictures.read(sent(other), held=held)
            return {"layer": layer, "other": spoilt}

        yield from refusing_all(
            self._tried("patching", image, prompt, token, answer, model, options)
        )

    def shuffled(
        self,
        image: gr.FileData,
        prompt: str,
        token: int = -1,
        answer: str = "",
        model: str = "",
    ) -> Iterator[Shuffled]:
        """Whether the ways to explain a token would say the same of an untaught model.

        Streams. Of each of the `ways`: its map, `own`, and the one of the same model
        with the weights of its decoder `shuffled`, both [rows][columns], and how much
        they are `alike`: 1 is the same order of patches, 0 none. What is not known
        yet is null. Refused for models that are too large to be copied.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en" or "detect cat ; dog"
            token: its place in the answer from 0, or from the end as -1
            answer: test this answer; the model's own greedy one if left out
            model: its name, if several are loaded; the first one if left out

        Returns:
            the tokens of the answer, the place of the one tested, and the ways
        """
        yield from refusing_all(
            self._tried("shuffled", image, prompt, token, answer, model)
        )

    def _tried(
        self,
        trial: str,
        image: Any,
        prompt: str,
        token: int,
        answer: str,
        model: str,
        options: Any = lambda asked, at: {},
    ) -> Iterator[dict[str, Any]]:
        ask, steps = self._given(image, prompt, model, answer)
        engine = self._engines[ask.model]
        at = position(token, len(steps))
        asked = answered(self._engines, ask, tuple(step.token for step in steps))
        told = {"tokens": [view.token(engine, step) for step in steps], "token": at}
        words = {"shows": TRIALS[trial].shows, "hides": TRIALS[trial].hides}
        for done, of, found in awaited(passes(trial, asked, at, **options(asked, at))):
            yield {**told, "done": done, "of": of, **found, **words}


def _map(method: str, asked: Asked, at: int) -> Any:
    return heat_of(asked, way(method), [at]).tolist()


def _shares(box: Any, size: tuple[int, int]) -> tuple[float, ...]:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4
    if not numbers or not all(type(edge) in (int, float) for edge in box):
        raise ValueError("A box is x1, y1, x2, y2 in pixels of the picture.")
    return tuple(edge / size[i % 2] for i, edge in enumerate(box))
