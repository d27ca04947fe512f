"""COCO's mean average precision of the boxes in a table, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from vlm.batch.table import Row
from vlm.batch.truth import Scene, Truth

# Places of `COCOeval.stats`.
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AR": 8}
ABSENT = (
    "no mAP: pycocotools is not installed (`pip install pycocotools`); the rest is here"
)


def average_precision(
    found: Sequence[tuple[Row, Scene]], truth: Truth
) -> dict[str, float]:
    """COCO's figures over rows that were asked for categories.

    A row is judged on the categories that it was asked for: things of others in its
    image are left out. A box whose label is a category that was not asked for is false.
    Nothing comes out where there is no thing to be found.

    Raises:
        ValueError: pycocotools is not installed, and what to do.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ValueError(ABSENT) from None
    things, boxes = _things(found, truth), _boxes(found, truth)
    if all(thing["iscrowd"] for thing in things):
        return {}
    if not boxes:
        return dict.fromkeys(STATS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        there = COCO()
        there.dataset = {
            "info": {},
            "images": [{"id": id} for id in {scene.id for _, scene in found}],
            "categories": [{"id": id} for id in truth.categories.values()],
            "annotations": things,
        }
        there.createIndex()
        judged = COCOeval(there, there.loadRes(boxes), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {name: float(judged.stats[place]) for name, place in STATS.items()}


def _things(found: Sequence[tuple[Row, Scene]], truth: Truth) -> list[dict[str, Any]]:
    """Annotations that were asked for, each once, with all that COCOeval reads."""
    asked = {
        (scene.id, kind): scene
        for row, scene in found
        for kind in truth.asked_kinds(row)
    }
    notes = [
        note
        for (_, kind), scene in asked.items()
        for note in scene.things.get(kind, [])
    ]
    return [
        {"iscrowd": 0, "area": note["bbox"][2] * note["bbox"][3], **note, "id": number}
        for number, note in enumerate(notes, 1)
    ]


def _boxes(found: Sequence[tuple[Row, Scene]], truth: Truth) -> list[dict[str, Any]]:
    return [
        {
            "image_id": scene.id,
            "category_id": truth.categories[thing["label"]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": thing["confidence"],
        }
        for row, scene in found
        for thing in row["objects"]
        if thing["label"] in truth.categories
        for x1, y1, x2, y2 in [thing["box"]]
    ]
