"""The named endpoints, for `gradio_client`, plain HTTP, and as the tools of MCP.

    client = Client("http://127.0.0.1:7860")
    client.predict(handle_file("cat.jpg"), "cat ; dog", api_name="/detect")

What callers read of an endpoint is its docstring, of each parameter one line, and the
types. Gradio takes those as they stand, so annotations are not postponed here.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import gradio as gr

import vlm
from vlm.probes import METHODS
from vlm.ui import pictures, view
from vlm.ui.asking import MAX_TOKENS, STYLES, Ask, Settings, views
from vlm.ui.callers import named, place, sent
from vlm.ui.explaining import answered
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.replies import (
    Attended,
    Detected,
    Explained,
    Probed,
    Segmented,
    numbers,
    probed,
    thing,
    whole_mask,
)
from vlm.ui.store import Store


def build(engines: dict[str, Any]) -> None:
    """Add the endpoints to the Blocks that is open."""
    api = Api(engines)
    for endpoint in (
        api.probe,
        api.detect,
        api.segment,
        api.attention,
        api.explain,
    ):
        gr.api(endpoint, concurrency_limit=1, concurrency_id="model")


class Api:
    """Each public method is an endpoint of its name, and an MCP tool."""

    def __init__(self, engines: dict[str, Any]) -> None:
        self._engines = engines
        self._store = Store(0)  # keeps nothing: there is no viewer to look into it

    def probe(
        self,
        image: gr.FileData,
        prompt: str,
        start: str = "",
        style: Literal[STYLES] = STYLES[0],
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 40,
        seed: int = 0,
        tries: int = 1,
        max_tokens: int = 256,
        model: str = "",
    ) -> Iterator[Probed]:
        """Ask a PaliGemma model anything about a picture, in its own grammar.

        Streams the answer as it grows. Each token comes with its probability and the
        share of its attention that lay on the image, each box in pixels of the
        picture as x1, y1, x2, y2; an edge is null until it is decoded.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en", "answer en how many?" or "detect cat ; dog"
            start: text that the answer must begin with
            style: how the next token is drawn
            temperature: above 1 more daring, below 1 more careful; not for Greedy
            top_p: for Top-p: draw among the best that together have this probability
            top_k: for Top-k: draw among this many
            seed: the same seed gives the same answer
            tries: draw so many answers and give the most probable; Greedy has just one
            max_tokens: cut the answer behind so many, up to 512
            model: its name, if several are loaded; the first one if left out

        Returns:
            text, tokens, objects with boxes, done, whether it was cut, seconds and rate
        """
        seen = self._views(
            image,
            prompt,
            model,
            start=start,
            style=style,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            tries=tries,
            max_tokens=max_tokens,
        )
        for now in refusing_all(seen):
            yield probed(now)

    def detect(
        self,
        image: gr.FileData,
        things: str,
        max_tokens: int = MAX_TOKENS,
        model: str = "",
    ) -> Detected:
        """Find things in a picture: a box for each one of them that is there.

        A box is x1, y1, x2, y2 in pixels of the picture. The confidence is the model's
        own score. `duplicate` is the number of an earlier object that is the same
        again. An answer that was cut may end with a box that lacks edges (null).

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            things: what to look for, with a semicolon between: "cat ; dog"
            max_tokens: cut the answer behind so many, up to 512
            model: its name, if several are loaded; the first one if left out

        Returns:
            the objects, the answer as the model wrote it, and whether it was cut
        """
        now = refusing(self._found, image, "detect", things, max_tokens, model)
        objects = [thing(each) for each in now["objects"]]
        return {"objects": objects, "text": now["text"], "cut": now["cut"]}

    def segment(
        self,
        image: gr.FileData,
        things: str,
        max_tokens: int = MAX_TOKENS,
        model: str = "",
    ) -> Segmented:
        """Find things in a picture: a box and a mask for each of them that is there.

        A mask is a data URL of a PNG that is as large as the picture: white is the
        thing, black is the rest. (If the picture is longer than 2048 pixels the mask
        is that long, and is to be stretched over it.) It is null where the model gave
        none or cut it short, and with models that come without a decoder of masks.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            things: what to look for, with a semicolon between: "cat ; dog"
            max_tokens: cut the answer behind so many, up to 512; a mask takes about 21
            model: its name, if several are loaded; the first one if left out

        Returns:
            the objects, the answer as the model wrote it, and whether it was cut
        """
        now = refusing(self._found, image, "segment", things, max_tokens, model)
        size = now["width"], now["height"]
        objects = [
            {**thing(each), "mask": whole_mask(each, size)} for each in now["objects"]
        ]
        return {"objects": objects, "text": now["text"], "cut": now["cut"]}

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
        if method not in METHODS:
            raise ValueError(f"There is no {method!r}, only {', '.join(METHODS)}.")
        ask, steps = self._given(image, prompt, model, answer)
        engine, way = self._engines[ask.model], METHODS[method]
        at = range(len(steps))[place("token", token, len(steps))]
        asked = answered(self._engines, ask, tuple(step.token for step in steps))
        heat = way.heat(asked, [at]).numpy()
        return {
            "tokens": [view.token(engine, step) for step in steps],
            "token": at,
            "grid": list(heat.shape),
            "map": numbers(heat),
            "shows": way.shows,
            "hides": way.hides,
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
        trace = vlm.Trace()
        ask, steps = self._given(image, prompt, model, answer, tap=trace)
        engine = self._engines[ask.model]
        at = range(len(steps))[place("token", token, len(steps))]
        maps = vlm.probes.image_attention(trace, at).numpy()
        part = place("layer", layer, len(maps)), place("head", head, maps.shape[1])
        return {
            "tokens": [view.token(engine, step) for step in steps],
            "token": at,
            "grid": list(maps.shape[2:]),
            "maps": numbers(maps[part]),
            "shares": numbers(vlm.probes.attention_shares(trace, at).numpy()[part]),
        }

    def _given(
        self, image: Any, prompt: str, model: str, answer: str, **how: Any
    ) -> tuple[Ask, tuple[vlm.Step, ...]]:
        """A given answer's tokens, or those of the model's own greedy one."""
        ask = self._ask(image, prompt, model, start=answer)
        if not ask.start:
            said = _last(self._views(image, prompt, model))["tokens"]
            ask = replace(ask, start=tuple(each["id"] for each in said))
        engine, picture = self._engines[ask.model], pictures.read(ask.picture)
        steps = engine.score(picture, ask.prompt, ask.start, **how)
        if not steps:
            raise ValueError("The answer has no token to look at. Give an answer.")
        return ask, steps

    def _found(
        self, image: Any, task: str, things: str, max_tokens: int, model: str
    ) -> view.View:
        names = things.split(";") if isinstance(things, str) else []
        listed = " ; ".join(name.strip() for name in names if name.strip())
        if not listed:
            raise ValueError('Say what to look for, such as "cat" or "cat ; dog".')
        prompt = f"{task} {listed}"
        return _last(self._views(image, prompt, model, max_tokens=max_tokens))

    def _views(self, *asked: Any, **how: Any) -> Iterator[view.View]:
        ask = self._ask(*asked, **how)
        yield from views(self._engines[ask.model], self._store, ask)

    def _ask(
        self, image: Any, prompt: str, model: str, *, start: str = "", **settings: Any
    ) -> Ask:
        if not isinstance(start, str):
            raise ValueError("An answer, or the start of one, is given as text.")
        name = named(self._engines, model)
        return Ask(name, sent(image), prompt, start, Settings(**settings))


def _last(seen: Iterator[view.View]) -> view.View:
    return deque(seen, maxlen=1).pop()
