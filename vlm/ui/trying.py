"""Trying: one test of one token of an answer, as far as it has come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from math import isfinite
from typing import Any

from vlm.probes import TRIALS, Asked, News
from vlm.probes.trials import MAX_POSITIONS
from vlm.ui import pictures
from vlm.ui.again import LOST
from vlm.ui.answering import PAUSE
from vlm.ui.explaining import answered, chosen_picture, ended
from vlm.ui.models import Models
from vlm.ui.patience import awaited
from vlm.ui.store import Run, Store
from vlm.ui.zero import on_gpu


def tried(engines: Models, store: Store, data: Any) -> Iterator[dict[str, Any]]:
    """`data` is {run, token, trial, number}, which `picture` of several what lies on
    patches is of, and what that test has to be told:

        heat    rows of the map that lies on the picture    knockout, faithfulness
        box     x1, y1, x2, y2 in shares of the sides, null: none          knockout
        rows    who no longer sees the patches                             knockout
        layer   after which positions are put back                         patching
        before  spoil the pass by the picture before it was painted over   patching

    Yields:
        run, token, picture, trial and number as they were given; done and of, in
        passes; what is found so far (see `vlm.probes.trials`); whether it has ended;
        and when this was said: what is older than a stop comes too late.

    Raises:
        ValueError: what is wrong with what was sent, or can no longer be asked.
    """
    given = data if isinstance(data, dict) else {}
    run = ended(store, given.get("run"))
    name, token, number = given.get("trial"), given.get("token"), given.get("number")
    if not isinstance(name, str) or name not in TRIALS:
        raise ValueError(f"There is no such test, only {', '.join(TRIALS)}.")
    ids = tuple(each["id"] for each in run.view["tokens"])
    if type(token) is not int or token not in range(len(ids)):
        raise ValueError("Choose a token of the answer: what is to be tested?")
    asked = answered(engines, run.ask, ids, chosen_picture(given))
    options = OPTIONS[name](asked, given, run, store)
    told = {"run": given["run"], "token": token, "trial": name}
    told["picture"] = asked.focus
    # What is larger than 64 bits cannot be sent back.
    told["number"] = number if type(number) is int and 0 <= number < 2**53 else 0
    shown = 0.0
    with contextlib.closing(awaited(passes(name, asked, token, **options))) as news:
        for done, of, found in news:
            if done < of and time.perf_counter() - shown < PAUSE:
                continue
            told |= {"done": done, "of": of, "found": found, "ended": done == of}
            yield {**told, "at": time.time()}
            shown = time.perf_counter()


@on_gpu(seconds=120)
def passes(name: str, asked: Asked, token: int, **options: Any) -> Iterator[News]:
    """What the test of that name tells, pass by pass."""
    yield from TRIALS[name].run(asked, token, **options)


def trials() -> dict[str, Any]:
    """What the viewer is told of them: names and words, and positions at most."""
    words = ("title", "shows", "hides")
    told = [
        {"name": name, **{word: getattr(trial, word) for word in words}}
        for name, trial in TRIALS.items()
    ]
    return {"each": told, "positions": MAX_POSITIONS}


def _none(*_: Any) -> dict[str, Any]:
    return {}


def _cut(asked: Asked, given: dict, *_: Any) -> dict[str, Any]:
    return {
        "heat": _heat(asked, given.get("heat")),
        "box": _box(given.get("box")),
        "rows": str(given.get("rows", "answer")),
    }


def _taken(asked: Asked, given: dict, *_: Any) -> dict[str, Any]:
    return {"heat": _heat(asked, given.get("heat"))}


def _put(asked: Asked, given: dict, run: Run, store: Store) -> dict[str, Any]:
    depth, layer = asked.engine.config.decoder.depth, given.get("layer")
    if type(layer) is not int or not -1 <= layer < depth:
        raise ValueError(f"layer is {layer!r}; give one from -1 to {depth - 1}.")
    if not given.get("before"):
        return {"layer": layer}
    if run.view["before"] is None:
        raise ValueError("Paint a part of the picture over first, and ask again.")
    earlier = store.get(run.view["before"]["run"])
    if earlier is None:
        raise ValueError(LOST)
    return {"layer": layer, "other": pictures.read(earlier.ask.picture)}


OPTIONS = {
    "layers": _none,
    "knockout": _cut,
    "faithfulness": _taken,
    "patching": _put,
    "shuffled": _none,
}


def _heat(asked: Asked, rows: Any) -> list[list[float]]:
    grid = asked.engine.config.vision.grid
    if not isinstance(rows, list) or len(rows) != grid:
        raise ValueError(f"A map has {grid} rows of {grid} numbers. Choose another.")
    for row in rows:
        if not isinstance(row, list) or len(row) != grid or not all(map(_heats, row)):
            raise ValueError(f"A row of a map is {grid} numbers, none below zero.")
    return rows


def _heats(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value) and value >= 0


def _box(box: Any) -> tuple[float, ...] | None:
    if box is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_heats, box)):
        raise ValueError("A box has four edges, each from 0 to 1.")
    return tuple(box)
