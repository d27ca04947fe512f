"""The figures of the evaluation: what all marks come to, and the table of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.metrics import RIGHT, average_precision, calibration_error, f1
from vlm.tiny.grading import Belief, Case, Mark, Naming, Search, spoken
from vlm.tiny.language import ENGLISH, LANGUAGES

# Each figure's line of the table, in its order; those of other languages follow.
LINES = {
    "one precision": "detect one kind: boxes that are right (IoU >= 0.5)",
    "one recall": "detect one kind: things that were found",
    "one f1": "detect one kind: F1@0.5",
    "one iou": "detect one kind: mean IoU of boxes that are right",
    "several precision": "detect several kinds: boxes that are right",
    "several recall": "detect several kinds: things that were found",
    "several f1": "detect several kinds: F1@0.5",
    "several iou": "detect several kinds: mean IoU of boxes that are right",
    "map": "detect: mAP@0.5",
    "refused": "detect: an absent kind gets no box",
    "mask": "segment: IoU of the mask, its box being right",
    "mask filled": "segment: the same of the filled box",
    "exists": "is there a ...?",
    "count": "how many ...?",
    "color": "what color is the ...?",
    "where": "where is the ...?",
    "larger": "which is larger?",
    "beside": "left or right of?",
    "region": "caption of a region",
    "question": "question: one whose answer is right",
    "caption": "caption: F1 of the kinds it names",
    "caption exact": "caption: right word for word",
    "describe": "describe: F1 of the kinds it names",
    "describe exact": "describe: right word for word",
    "pointing loc": "location tokens that look most into their box",
    "pointing label": "label tokens that look most into their box",
    "box ece": "a box's confidence: calibration error",
    "exists ece": "yes or no's probability: calibration error",
    "pair": "pair: the right text of 20",
}


@dataclass(frozen=True)
class Figure:
    """A share from 0 to 1, over how many cases, and what belongs beside it."""

    value: float
    count: int
    note: str = ""


def figures(marks: Iterable[Mark]) -> dict[str, Figure]:
    """What the marks come to, by figure; one without a case is left out."""
    heaps: dict[tuple[type, str], list[Mark]] = defaultdict(list)
    for mark in marks:
        heaps[type(mark), mark.figure].append(mark)
    found: dict[str, Figure] = {}
    searches: list[Search] = []
    for (sort, name), heap in heaps.items():
        found |= _SUMS[sort](name, heap)
        searches += heap if sort is Search else []
    found["map"] = mean_average_precision(searches)
    return {name: figure for name, figure in found.items() if figure.count}


def table(found: dict[str, Figure]) -> str:
    """The figures as Markdown, one row each."""
    rows = [("", "", "of"), ("---", "---:", "---")]
    for name, line in LINES.items():
        for language in LANGUAGES:
            if (figure := found.get(spoken(name, language))) is not None:
                said = line if language is ENGLISH else f"{line}, {language.code}"
                rows.append(
                    (
                        said,
                        f"{figure.value:.1%}",
                        f"{figure.count} {figure.note}".strip(),
                    )
                )
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(
        f"| {said:{widths[0]}} | {value:>{widths[1]}} | {count} |"
        for said, value, count in rows
    )


def mean_average_precision(searches: Sequence[Search]) -> Figure:
    """The mean of the average precisions of the kinds that were to be found.

    A scene is asked for one or two kinds, so a kind's ranking is over the answers to
    the questions that asked for it. Half of those are about scenes without it, where
    each of its boxes is false, and so is one whose label was not asked for. Boxes are
    matched by overlap and not by confidence, which differs from the PASCAL protocol
    only where two boxes lie on one thing.
    """
    kinds: dict[str, list[Search]] = defaultdict(list)
    for search in searches:
        kinds[search.kind].append(search)
    precisions = []
    for heap in kinds.values():
        there = sum(search.there for search in heap)
        if there:
            boxes = [box for search in heap for box in search.boxes]
            confidences = [confidence for confidence, _ in boxes]
            right = [share >= RIGHT for _, share in boxes]
            precisions.append(average_precision(confidences, right, there))
    mean = float(np.mean(precisions)) if precisions else 0.0
    return Figure(mean, len(precisions), "kinds")


def _mean(name: str, heap: Sequence[Case]) -> dict[str, Figure]:
    return {name: Figure(float(np.mean([case.value for case in heap])), len(heap))}


def _detection(name: str, heap: Sequence[Search]) -> dict[str, Figure]:
    """Over all boxes and things at once."""
    boxes = [share for search in heap for _, share in search.boxes]
    right = [share for share in boxes if share >= RIGHT]
    there = sum(search.there for search in heap)
    return {
        f"{name} precision": Figure(
            len(right) / max(1, len(boxes)), len(boxes), "boxes"
        ),
        f"{name} recall": Figure(len(right) / max(1, there), there, "things"),
        f"{name} f1": Figure(f1(len(right), len(boxes), there), there, "things"),
        f"{name} iou": Figure(sum(right) / max(1, len(right)), len(right), "boxes"),
    }


def _naming(name: str, heap: Sequence[Naming]) -> dict[str, Figure]:
    right, said, there = (
        sum(getattr(naming, part) for naming in heap)
        for part in ("right", "said", "there")
    )
    return {name: Figure(f1(right, said, there), len(heap), "texts")}


def _calibration(name: str, heap: Sequence[Belief]) -> dict[str, Figure]:
    stated = [belief.probability for belief in heap]
    right = [belief.right for belief in heap]
    error = calibration_error(stated, right)
    note = f"(mean {np.mean(stated):.1%}, right {np.mean(right):.1%})"
    return {name: Figure(error, len(heap), note)}


_SUMS = {Case: _mean, Search: _detection, Naming: _naming, Belief: _calibration}
