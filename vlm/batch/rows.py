"""A row of the table: a question, what it was answered with, or what was wrong."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import vlm
from vlm.batch.questions import Question
from vlm.batch.table import Row
from vlm.grounding import Object
from vlm.metrics import paste

DIGITS = 6  # of confidences and shares; rounding in float32 lies behind them


def answered(
    question: Question,
    answer: vlm.Answer,
    objects: list[Object],
    size: tuple[int, int],
    *,
    masks: bool = False,
    attention: bool = False,
) -> Row:
    """The row of an answer.

    `confidence` is the product of its tokens' probabilities, None where there are none;
    `seconds` and `first_token` count from the start of its batch. An object has a
    label, a box (x1, y1, x2, y2 in pixels of the upright picture), a confidence, and
    its mask if that is asked for and there. Boxes that are cut short or without area
    stand in the text alone.

    Args:
        size: (W, H) of the picture.
        masks: in the run lengths that COCO's files have.
        attention: for each token the share that lay on the image, and the mean map of
            all of them, [rows, columns]; layers and heads are averaged.
    """
    steps = answer.steps
    chance = prod(step.probability for step in steps)
    shares = [step.image_share for step in steps]
    row = _empty(question) | {
        "text": answer.text,
        "confidence": round(chance, DIGITS) if steps else None,
        "objects": [_object(each, size, masks) for each in objects if each.valid],
        "width": size[0],
        "height": size[1],
        "tokens": len(steps),
        "image_share": round(float(np.mean(shares)), DIGITS) if shares else None,
        "first_token": round(answer.timing.first_token, 4),
        "seconds": round(answer.timing.total, 4),
    }
    if attention:
        heat = [[round(float(x), DIGITS) for x in line] for line in answer.heat]
        shares = [round(share, DIGITS) for share in shares]
        row["attention"] = {"shares": shares, "map": heat} if steps else None
    return row


def failed(question: Question, error: str, *, attention: bool = False) -> Row:
    """The row of a question that could not be asked."""
    row = _empty(question) | {"error": error}
    return row | {"attention": None} if attention else row


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] as COCO's uncompressed run lengths, column by column.

    The first of them is of what is outside.
    """
    flat = np.asarray(mask, bool).T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _empty(question: Question) -> Row:
    """All columns, in their order."""
    return {
        "image": question.image,
        "number": question.number,
        "prompt": question.prompt,
        "text": None,
        "confidence": None,
        "objects": [],
        "width": None,
        "height": None,
        "tokens": None,
        "image_share": None,
        "first_token": None,
        "seconds": None,
        "error": None,
    }


def _object(thing: Object, size: tuple[int, int], masks: bool) -> dict[str, Any]:
    told = {
        "label": thing.label,
        "box": [round(side, 2) for side in thing.box],
        "confidence": round(thing.confidence, DIGITS),
    }
    if masks:
        drawn = None if thing.mask is None else paste(thing.mask, thing.box, size)
        told["mask"] = None if drawn is None else run_lengths(drawn)
    return told
