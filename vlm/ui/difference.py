"""What differs between two answers: their words, boxes, likelihood and attention.

A and B are the two sides of a comparison. Everything here is a pure function of what
both said, as plain lists and arrays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from math import exp
from typing import Any

import numpy as np

from vlm.grounding import overlap

LEAST_SEEN = 0.001  # of a token's attention
# A place or a code is a word of its own; the space in front belongs to a word.
WORD = re.compile(r"\s*(?:<(?:loc|seg)\d+>|[^\s<]+|<)")


def words(a: str, b: str) -> list[dict[str, str]]:
    """The words of both texts in one row, each with the `side` that has it.

    A side is "a", "b" or "both". Where they part, the words of A come first.
    """
    left, right = WORD.findall(a), WORD.findall(b)
    stripped = [[word.strip() for word in each] for each in (left, right)]
    row: list[dict[str, str]] = []
    for kind, i, j, k, n in SequenceMatcher(None, *stripped, False).get_opcodes():
        if kind == "equal":
            row += [{"text": word, "side": "both"} for word in left[i:j]]
            continue
        row += [{"text": word, "side": "a"} for word in left[i:j]]
        row += [{"text": word, "side": "b"} for word in right[k:n]]
    return row


def boxes(
    a: Sequence[dict[str, Any]],
    b: Sequence[dict[str, Any]],
    sizes: Sequence[tuple[int, int]],
) -> dict[str, list[dict[str, Any]]]:
    """Which objects of both views are the same, and which only one side has.

    The same is what has the same label and overlaps; of several the pair that
    overlaps most goes first, and each object has one partner. Boxes are compared as
    shares of their own pictures, whose (width, height) are `sizes`.

    Returns:
        `pairs` of label, number in A, number in B and IoU, the best first, and the
        number and label of each object that is left in `a` and in `b`.
    """
    places = [
        [_shares(thing["box"], size) for thing in side]
        for side, size in zip((a, b), sizes)
    ]
    found = [
        (overlap(places[0][i], places[1][j]), i, j)
        for i, one in enumerate(a)
        for j, other in enumerate(b)
        if one["label"] == other["label"] and places[0][i] and places[1][j]
    ]
    pairs: list[dict[str, Any]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for iou, i, j in sorted(found, key=lambda pair: -pair[0]):
        if iou > 0 and i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            pairs.append({"label": a[i]["label"], "a": i, "b": j, "iou": round(iou, 3)})
    left = [
        [
            {"number": i, "label": thing["label"]}
            for i, thing in enumerate(side)
            if i not in used
        ]
        for side, used in zip((a, b), taken)
    ]
    return {"pairs": pairs, "a": left[0], "b": left[1]}


def in_words(a: dict[str, float], b: dict[str, float], same: bool) -> list[str]:
    """How likely each side finds the other's answer, in plain sentences.

    `a` is the natural logarithm of the probability that A and that B give to the whole
    answer of A, by side, `b` the same of B's answer; `same`: they answered the same.
    """
    if same:
        how = _times(b["b"] - a["a"])
        return [f"Both say the same. B finds it {how} A does."]
    return [
        f"B finds A’s answer {_times(a['b'] - b['b'])} its own.",
        f"A finds B’s answer {_times(b['a'] - a['a'])} its own.",
    ]


def attention(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far apart two tokens looked at their images, for each layer.

    `a` and `b` are attention on the same grid, [layers, heads, rows, columns], of one
    token each. The mean over heads is renormalised over the image, which is what the
    viewer's "mean" shows.

    Returns:
        float64 [layers], the Jensen-Shannon divergence in bits; nan where a side has
        less than a thousandth of its attention on the image, for that is noise.
    """
    means = [maps.mean(axis=1).reshape(len(maps), -1) for maps in (a, b)]
    seen = np.minimum(*(mean.sum(axis=1) for mean in means))
    return np.where(seen < LEAST_SEEN, np.nan, jensen_shannon(*means))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence over the last axis, in bits.

    0 where both are the same, 1 where nothing of one lies where the other does. What
    does not sum to one is renormalised; a row of zeros counts as even.

    Args:
        p, q: non-negative, [..., n].
    Returns:
        float64 [...].
    """
    p, q = _distribution(p), _distribution(q)
    middle = (p + q) / 2
    return np.clip((_relative(p, middle) + _relative(q, middle)) / 2, 0, 1)


def _relative(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence in bits; q is above 0 wherever p is."""
    there = p > 0
    ratio = np.divide(p, q, out=np.ones_like(p), where=there)
    return (p * np.log2(ratio)).sum(axis=-1)


def _distribution(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    even = np.full_like(values, 1 / values.shape[-1])
    return np.divide(values, total, out=even, where=total > 0)


def _shares(box: Sequence[float | None], size: tuple[int, int]) -> list[float] | None:
    """The box in shares of its picture; None if it is not whole."""
    if None in box:
        return None
    return [edge / size[i % 2] for i, edge in enumerate(box)]


def _times(difference: float) -> str:
    """A difference of logarithms as "40 times less likely than"."""
    ratio = exp(min(abs(difference), 50))
    if ratio < 1.05:
        return "as likely as"
    if ratio >= 1e6:
        factor = "more than a million"
    else:
        factor = f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"
    return f"{factor} times {'more' if difference > 0 else 'less'} likely than"
