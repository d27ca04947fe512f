"""Comparing: two questions, their answers, and what differs between these.

asks = Ask("tiny", "cat.jpg", "detect cat"), Ask("tiny", "cat.jpg", "detect dog")
for news in comparisons(models, store, asks):
    ...  # {"a": a view}, then {"b": a view}, at last {"difference": ...}
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any

import numpy as np

from vlm.ui import difference, pictures
from vlm.ui.answering import scored
from vlm.ui.asking import Ask, views
from vlm.ui.models import Models
from vlm.ui.store import Run, Store, unpack
from vlm.ui.view import View

SIDES = "ab"
LEAST = 1e-38  # a probability of which float32 can still take the logarithm


def comparisons(
    models: Models, store: Store, asks: tuple[Ask, Ask]
) -> Iterator[dict[str, Any]]:
    """The views of both answers as they come, A before B, and then the difference.

    Raises:
        ValueError: a picture cannot be read, or a model cannot be asked.
    """
    # Held until the end: another may take the place of one of them.
    engines = {ask.model: models[ask.model] for ask in asks}
    ends: dict[str, View] = {}
    for side, ask in zip(SIDES, asks):
        for now in views(engines[ask.model], store, ask):
            yield {side: now}
        ends[side] = now
    yield {"difference": _difference(engines, store, asks, ends)}


def _difference(
    engines: dict[str, Any], store: Store, asks: tuple[Ask, Ask], ends: dict[str, View]
) -> dict[str, Any]:
    """What the panel shows and `/compare` gives.

    `likelihood` has for each answer, "a" and "b": its `tokens` with the probabilities
    that each side gives them, and the `total` and `mean` natural logarithm by each.
    """
    a, b = ends["a"], ends["b"]
    by_text = not all(
        _shares_words(engines[ask.model], end) for ask in asks for end in (a, b)
    )
    sizes = [(end["width"], end["height"]) for end in (a, b)]
    likelihood = {
        side: _likelihood(engines, asks, end, by_text) for side, end in ends.items()
    }
    return {
        "phase": "done",
        "words": difference.words(a["text"], b["text"]),
        "boxes": difference.boxes(a["objects"], b["objects"], sizes),
        "likelihood": likelihood,
        "sentences": _sentences(ends, likelihood),
        "retokenised": by_text,
        "attention": _attention(store, a, b),
    }


def _shares_words(engine: Any, end: View) -> bool:
    """The engine's vocabulary gives these tokens the names that they have."""
    size = engine.tokenizer.size
    return all(
        token["id"] < size and engine.tokenizer.piece(token["id"]) == token["text"]
        for token in end["tokens"]
    )


def _likelihood(
    engines: dict[str, Any], asks: tuple[Ask, Ask], end: View, by_text: bool
) -> dict[str, Any]:
    """What each side gives to one answer; None where there is nothing to give to."""
    answer = end["text"] if by_text else [token["id"] for token in end["tokens"]]
    tokens, total, mean = {}, {}, {}
    for side, ask in zip(SIDES, asks):
        engine = engines[ask.model]
        steps = scored(engine, pictures.read(ask.picture), ask.prompt, answer)
        logs = [log(max(step.probability, LEAST)) for step in steps]
        tokens[side] = [
            {
                "text": engine.tokenizer.piece(step.token),
                "probability": float(f"{step.probability:.4g}"),
            }
            for step in steps
        ]
        total[side] = round(sum(logs), 3) if logs else None
        mean[side] = round(sum(logs) / len(logs), 3) if logs else None
    return {"tokens": tokens, "total": total, "mean": mean}


def _sentences(ends: dict[str, View], likelihood: dict[str, Any]) -> list[str]:
    empty = [side for side in SIDES if likelihood[side]["total"]["a"] is None]
    if empty:
        who = "Both answers are" if empty[1:] else f"{empty[0].upper()}’s answer is"
        return [f"{who} empty, so there is nothing to weigh."]
    totals = (likelihood[side]["total"] for side in SIDES)
    return difference.in_words(*totals, same=ends["a"]["text"] == ends["b"]["text"])


def _attention(store: Store, a: View, b: View) -> dict[str, Any]:
    """How far apart both looked, [layers][tokens] in bits; or `why` it is not told.

    None where one of them hardly looked at its image.
    """
    runs = store.get(a["run"]), store.get(b["run"])
    count = min(len(a["tokens"]), len(b["tokens"]))
    why = ""
    if a["grid"] != b["grid"] or a["layers"] != b["layers"]:
        why = "These models differ in grid or layers: their looks cannot be compared."
    elif not count:
        why = "An answer is empty, so there is no token to follow."
    elif not all(run and f"a{count - 1}" in run.entries for run in runs):
        why = "The maps of these answers are no longer kept. Compare again to see them."
    if why:
        return {"bits": [], "tokens": [], "why": why}
    bits = [
        difference.attention(*(_maps(run, end, i) for run, end in zip(runs, (a, b))))
        for i in range(count)
    ]
    pieces = [[end["tokens"][i]["text"] for end in (a, b)] for i in range(count)]
    rows = [
        [None if np.isnan(bit) else round(bit, 4) for bit in row]
        for row in np.stack(bits, axis=1).tolist()
    ]
    return {"bits": rows, "tokens": pieces, "why": ""}


def _maps(run: Run, end: View, index: int) -> np.ndarray:
    shape = end["layers"], end["heads"], *end["grid"]
    return unpack(run.entries[f"a{index}"].maps, shape)[0]
