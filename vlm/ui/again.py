"""Asking again from the viewer: from a token on, about a region, or what is painted.

What the viewer sends can come from anybody, so all of it is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlm.ui import pictures, prompts
from vlm.ui.asking import MAX_TOKENS, Ask, Settings, views
from vlm.ui.masked import masked
from vlm.ui.models import Models
from vlm.ui.store import Run, Store
from vlm.ui.view import View

MAX_DISCS = 2000
MAX_RADIUS = 0.2
LEAST_SIDE = 1 / 32
ONE = "This is for one picture. Remove the others, press Run, then try again."
Discs = tuple[tuple[float, float, float], ...]
"""x, y and radius of each, in shares of the picture's width."""

LOST = "This answer is no longer kept. Press Run, then try again."


@dataclass(eq=False)  # each one is itself, however alike
class Again:
    """What is to be asked next.

    Attributes:
        old: the last view of an answer that is to be scored anew.
        discs: what to paint over first.
        mask_iou: how much of a painted mask the start of the answer keeps.
    """

    ask: Ask
    old: View | None = None
    discs: Discs = ()
    mask_iou: float | None = None

    def views(self, engines: Models, store: Store) -> Iterator[View]:
        ask = self.ask
        if self.discs:
            ask = replace(ask, picture=pictures.painted(ask.picture, self.discs))
        engine = engines[ask.model]
        yield from views(engine, store, ask, self.old, mask_iou=self.mask_iou)


def branched(store: Store, data: Any) -> Again:
    """`data` is {run, ids}: the same question, its answer beginning with these tokens.

    Raises:
        ValueError: the run is not kept, or there are no ids or too many. Whether the
            vocabulary has them is the engine's to say.
    """
    kept, ids = _run(store, data), part(data, "ids")
    if not isinstance(ids, list) or not all(type(each) is int for each in ids):
        raise ValueError("A branch needs the ids of its tokens, as whole numbers.")
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise ValueError(f"A branch has {len(ids)} tokens; 1 to {MAX_TOKENS} can be.")
    return Again(replace(kept.ask, start=tuple(ids)))


def in_region(store: Store, data: Any, model: str, picture: str, *how: Any) -> Again:
    """`data` is {run, box}: what is in a box x1, y1, x2, y2, in shares of the sides?

    Of the picture of that run, which may have been painted over; `picture` if there
    was no run yet.

    Raises:
        ValueError: the run is not kept or about several pictures, or the box is none.
    """
    box = part(data, "box")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_share, box)):
        raise ValueError("A region has four edges, each from 0 to 1.")
    x1, y1, x2, y2 = box
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        raise ValueError("This region is too small to see anything. Draw a larger one.")
    if part(data, "run"):
        picture = _of_one(_run(store, data).ask).picture
    *settings, _ = how  # a forced start was meant for another question
    prompt = prompts.region((x1, y1, x2, y2))
    return Again(Ask(model, picture, prompt, settings=Settings(*settings)))


def painted_over(store: Store, data: Any) -> Again:
    """`data` is {run, strokes: [{x, y, r}]}: the same question with parts in grey.

    Raises:
        ValueError: the run is not kept, was stopped, or is about several pictures, or
            the strokes are none.
    """
    kept, discs = _painted(store, data)
    return Again(kept.ask, kept.view, discs)


def begun_by_mask(engines: Models, store: Store, data: Any) -> Again:
    """`data` is as for `painted_over`: the question to segment what it was about.

    Its answer begins with the tokens of what is painted.

    Raises:
        ValueError: as there; or the question was about no thing, or the engine has no
            masks.
    """
    kept, discs = _painted(store, data)
    prompt = prompts.segmenting(kept.ask.prompt)
    mask = pictures.covered(discs, (kept.view["width"], kept.view["height"]))
    start = masked(engines[kept.ask.model], mask, band=prompts.BAND)
    ask = replace(kept.ask, prompt=prompt, start=start.text)
    return Again(ask, mask_iou=start.iou)


def another_try(store: Store, data: Any) -> View:
    """`data` is {run}: the last view of one of several tries.

    Raises:
        ValueError: it is not kept, or the tries are not done.
    """
    kept = _run(store, data)
    if kept.view is None:
        raise ValueError("The tries are not done yet. Wait for the last one.")
    return kept.view


def _painted(store: Store, data: Any) -> tuple[Run, Discs]:
    kept, strokes = _run(store, data), part(data, "strokes")
    if kept.view is None:
        raise ValueError("This answer has no end yet. Let it finish, then paint.")
    _of_one(kept.ask)
    if not isinstance(strokes, list) or not 1 <= len(strokes) <= MAX_DISCS:
        raise ValueError(f"Paint something first: 1 to {MAX_DISCS} dabs of the brush.")
    discs = tuple(tuple(part(each, key) for key in "xyr") for each in strokes)
    tallest = kept.view["height"] / kept.view["width"]
    for x, y, r in discs:
        if not (_is_share(x) and _is_share(y, tallest) and _is_share(r, MAX_RADIUS)):
            raise ValueError("A dab of the brush lies outside the picture. Clear it.")
    return kept, discs


def _run(store: Store, data: Any) -> Run:
    run = part(data, "run")
    kept = store.get(run) if isinstance(run, str) else None
    if kept is None:
        raise ValueError(LOST)
    return kept


def _of_one(ask: Ask) -> Ask:
    if ask.more:
        raise ValueError(ONE)
    return ask


def sent(event: Any) -> Any:
    """What came with an event; None if it came from no browser, and has nothing."""
    return getattr(event, "_data", None)


def part(data: Any, key: str) -> Any:
    """What a browser sent under a key; None if it sent no such thing."""
    return data.get(key) if isinstance(data, dict) else None


def _is_share(number: Any, most: float = 1) -> bool:
    return type(number) in (int, float) and 0 <= number <= most
