"""Explaining: every way's map of some tokens of an answer, one after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import vlm
from vlm.probes import METHODS, Asked
from vlm.ui import pictures
from vlm.ui.again import LOST
from vlm.ui.answering import PAUSE
from vlm.ui.asking import Ask
from vlm.ui.models import Models
from vlm.ui.patience import awaited
from vlm.ui.store import Run, Store
from vlm.ui.zero import on_gpu

MAX_TOKENS = 8  # each costs passes of its own


def explained(engines: Models, store: Store, data: Any) -> Iterator[dict[str, Any]]:
    """`data` is {run, tokens, picture}: a run's name, places in its answer, and which
    of several pictures the maps are to be of, from 0; the first if it is left out.

    Yields:
        the same with `heats` by the way's name, each a list of rows that ends with
        three digits, one more at a time; the `part` of the next that is done, where
        that takes long; `done`; and when this was said, as older than a stop is late.

    Raises:
        ValueError: the run is not kept or not ended, has no such tokens or picture,
            was not answered by a PaliGemma, or nobody waits any more.
    """
    asked, tokens = _checked(engines, store, data)
    told = {"run": data["run"], "tokens": tokens, "picture": asked.focus}
    told |= {"heats": {}, "part": 0}
    yield {**told, "done": False, "at": time.time()}
    with contextlib.closing(awaited(_growing(asked, tokens))) as news:
        for name, part, heat in news:
            if part < 1:
                yield {**told, "part": part, "done": False, "at": time.time()}
                continue
            rows = [[float(f"{value:.3g}") for value in row] for row in heat.tolist()]
            told = {**told, "heats": {**told["heats"], name: rows}}
            done = len(told["heats"]) == len(METHODS)
            yield {**told, "done": done, "at": time.time()}


def heat_of(asked: Asked, name: str, tokens: Sequence[int]) -> np.ndarray:
    """What the way of that name says: float32 [rows, columns]."""
    *_, heat = awaited(_heats(asked, name, tokens))
    return heat


@on_gpu(seconds=90)
def _heats(asked: Asked, name: str, tokens: Sequence[int]) -> Iterator[np.ndarray]:
    for _, heat in METHODS[name].growing(asked, tokens):
        yield heat.numpy()


@on_gpu(seconds=120)
def _growing(
    asked: Asked, tokens: Sequence[int]
) -> Iterator[tuple[str, float, np.ndarray]]:
    """The way's name, the part that is done of it, and its map so far."""
    for name, way in METHODS.items():
        for part, heat in _paced(way.growing(asked, tokens)):
            yield name, part, heat.numpy()


def _paced(growing: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
    """The last, and before it no more than a browser can follow."""
    shown = time.perf_counter()
    for part, heat in growing:
        if part == 1 or time.perf_counter() - shown >= PAUSE:
            yield part, heat
            shown = time.perf_counter()


def ways() -> dict[str, Any]:
    """What the viewer is told of them: of how many tokens at most, names and words."""
    words = ("title", "shows", "hides")
    told = [
        {"name": name, **{word: getattr(way, word) for word in words}}
        for name, way in METHODS.items()
    ]
    return {"most": MAX_TOKENS, "each": told}


def _checked(engines: Models, store: Store, data: Any) -> tuple[Asked, list[int]]:
    given = data if isinstance(data, dict) else {}
    kept, tokens = ended(store, given.get("run")), given.get("tokens")
    ids = tuple(token["id"] for token in kept.view["tokens"])
    known = range(len(ids))
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(type(token) is int and token in known for token in tokens)
    ):
        raise ValueError("Choose a token of the answer: what is to be explained?")
    asked = answered(engines, kept.ask, ids, chosen_picture(given))
    return asked, tokens[:MAX_TOKENS]


def ended(store: Store, run: Any) -> Run:
    """A run that has come to its end.

    Raises:
        ValueError: it is not kept, or has no end.
    """
    kept = store.get(run) if isinstance(run, str) else None
    if kept is None:
        raise ValueError(LOST)
    if kept.view is None:
        raise ValueError("This answer has no end yet. Let it finish, then explain it.")
    return kept


def chosen_picture(given: dict[str, Any]) -> int:
    """Which picture is meant, as a viewer sends it.

    Raises:
        ValueError: it is no number.
    """
    picture = given.get("picture", 0)
    if type(picture) is not int:
        raise ValueError("Choose one of the pictures: which is meant?")
    return picture


def answered(
    engines: Models, ask: Ask, ids: tuple[int, ...], picture: int = 0
) -> Asked:
    """A question and its answer, for probes.

    Raises:
        ValueError: a picture cannot be read or is not there, or the model is no
            PaliGemma.
    """
    engine = engines[ask.model]
    if not isinstance(engine, vlm.Engine):
        raise ValueError("This model cannot be asked why.")
    image = pictures.read_all(ask.pictures)
    return Asked(engine, image, ask.prompt, ids, focus=picture)
