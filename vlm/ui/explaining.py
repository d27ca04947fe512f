"""Explaining: every way's map of some tokens of an answer, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import vlm
from vlm.probes import METHODS, Asked
from vlm.ui import pictures
from vlm.ui.again import LOST
from vlm.ui.asking import Ask
from vlm.ui.store import Store

MAX_TOKENS = 8  # each costs passes of its own


def explained(
    engines: dict[str, Any], store: Store, data: Any
) -> Iterator[dict[str, Any]]:
    """`data` is {run, tokens}: the run's name, and places in its answer.

    Yields:
        the same with `heats` by the way's name, each a list of rows that ends with
        three digits, one more at a time; and `done`.

    Raises:
        ValueError: the run is not kept or not ended, has no such tokens, or was not
            answered by a PaliGemma.
    """
    asked, tokens = _checked(engines, store, data)
    told = {"run": data["run"], "tokens": tokens, "heats": {}, "done": False}
    yield told
    for count, (name, way) in enumerate(METHODS.items(), start=1):
        rows = [
            [float(f"{value:.3g}") for value in row]
            for row in way.heat(asked, tokens).tolist()
        ]
        told = {**told, "heats": {**told["heats"], name: rows}}
        yield {**told, "done": count == len(METHODS)}


def ways() -> dict[str, Any]:
    """What the viewer is told of them: of how many tokens at most, names and words."""
    words = ("title", "shows", "hides")
    told = [
        {"name": name, **{word: getattr(way, word) for word in words}}
        for name, way in METHODS.items()
    ]
    return {"most": MAX_TOKENS, "each": told}


def _checked(
    engines: dict[str, Any], store: Store, data: Any
) -> tuple[Asked, list[int]]:
    given = data if isinstance(data, dict) else {}
    run, tokens = given.get("run"), given.get("tokens")
    kept = store.get(run) if isinstance(run, str) else None
    if kept is None:
        raise ValueError(LOST)
    if kept.view is None:
        raise ValueError("This answer has no end yet. Let it finish, then explain it.")
    ids = tuple(token["id"] for token in kept.view["tokens"])
    known = range(len(ids))
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(type(token) is int and token in known for token in tokens)
    ):
        raise ValueError("Choose a token of the answer: what is to be explained?")
    return answered(engines, kept.ask, ids), tokens[:MAX_TOKENS]


def answered(engines: dict[str, Any], ask: Ask, ids: tuple[int, ...]) -> Asked:
    """A question and its answer, for probes.

    Raises:
        ValueError: the picture cannot be read, or the model is no PaliGemma.
    """
    engine = engines[ask.model]
    if not isinstance(engine, vlm.Engine):
        raise ValueError("This model cannot be asked why.")
    return Asked(engine, pictures.read(ask.picture), ask.prompt, ids)
