"""How good the answers of a batch run are, against ground truth: Markdown tables.

    python -m vlm.batch.eval answers/answers.jsonl truth.json

truth.json is laid out like COCO's files, see vlm/batch/truth.py. Each row of the table
is judged by what its prompt asks for: `detect` categories by COCO's mean average
precision, `detect` a phrase by the overlap with what it refers to, captions and answers
by whether they say the same as a given one. Confidences are judged by how often what
they stand for is right.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vlm.batch.coco import average_precision
from vlm.batch.table import Row
from vlm.batch.truth import Scene, Truth, accepted, captions, corners, referred
from vlm.batch.wording import ANSWERS, consensus, exact
from vlm.grounding import overlap
from vlm.metrics import RIGHT, calibration_error, match

BINS = 10


@dataclass(frozen=True)
class Figure:
    """A share from 0 to 1, and over how many of what."""

    name: str
    value: float
    count: int
    what: str


@dataclass(frozen=True)
class Belief:
    """A confidence, and whether what it was about is right."""

    confidence: float
    right: bool


@dataclass
class Report:
    """All that came out; notes are what the reader has to know beside it."""

    figures: list[Figure]
    beliefs: dict[str, list[Belief]]
    notes: list[str]

    def markdown(self) -> str:
        lines = ["| | | of |", "|---|---:|---|"]
        lines += [
            f"| {each.name} | {each.value:.1%} | {each.count} {each.what} |"
            for each in self.figures
        ]
        for name, beliefs in self.beliefs.items():
            lines += ["", *_reliability_table(name, beliefs)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def evaluate(rows: Sequence[Row], truth: Truth) -> Report:
    """Judge the rows of a table."""
    known = [(row, scene) for row in rows if (scene := truth.scene(row)) is not None]
    read = [(row, scene) for row, scene in known if row["error"] is None]
    report = Report([], {}, [])
    for name, count in (
        ("about images that are not in the ground truth", len(rows) - len(known)),
        ("about images that could not be read", len(known) - len(read)),
    ):
        if count:
            report.notes.append(f"Left out: {count} rows {name}.")
    _judge_boxes([pair for pair in read if truth.asked_kinds(pair[0])], truth, report)
    _judge_phrases(read, report)
    for name, given in (("caption", captions), ("answer", accepted)):
        texts = [(row, given(row, scene)) for row, scene in read]
        _judge_texts(name, [(row, some) for row, some in texts if some], report)
    if not report.figures:
        report.notes.append("No row asks for anything that the ground truth tells.")
    return report


def reliability(
    confidences: Sequence[float], right: Sequence[bool], *, bins: int = BINS
) -> list[tuple[int, float, float]]:
    """For each bin of equal width: how many, their mean confidence, the part right.

    A confidence on the border of two belongs to the lower, as in
    `metrics.calibration_error`; means of nothing are nan.
    """
    stated, true = np.asarray(confidences, float), np.asarray(right, float)
    place = np.clip(np.ceil(stated * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, x, minlength=bins) / count for x in (stated, true)]
    return list(zip(count.tolist(), *(mean.tolist() for mean in means)))


def _judge_boxes(
    found: Sequence[tuple[Row, Scene]], truth: Truth, report: Report
) -> None:
    if not found:
        return
    try:
        for name, value in average_precision(found, truth).items():
            report.figures.append(Figure(f"detect: {name}", value, len(found), "rows"))
    except ValueError as error:
        report.notes.append(str(error).capitalize())
    beliefs = []
    for row, scene in found:
        for kind in dict.fromkeys(thing["label"] for thing in row["objects"]):
            mine = [each for each in row["objects"] if each["label"] == kind]
            notes = scene.things.get(kind, []) if kind in truth.asked_kinds(row) else []
            true = [corners(note["bbox"]) for note in notes if not note.get("iscrowd")]
            pairs = match([each["box"] for each in mine], true)
            beliefs += [
                Belief(each["confidence"], j is not None)
                for each, j in zip(mine, pairs)
            ]
    if beliefs:
        report.beliefs[f"boxes, right from IoU {RIGHT}"] = beliefs


def _judge_phrases(found: Sequence[tuple[Row, Scene]], report: Report) -> None:
    """The box of most confidence is the answer, as a phrase refers to one thing."""
    shares = []
    for row, scene in found:
        best = max(row["objects"], key=lambda each: each["confidence"], default=None)
        for box in referred(row, scene):
            shares.append(overlap(best["box"], box) if best else 0.0)
    if shares:
        right = [share >= RIGHT for share in shares]
        for name, values in (("mean IoU", shares), (f"right at {RIGHT}", right)):
            mean = float(np.mean(values))
            report.figures.append(
                Figure(f"phrases: {name}", mean, len(shares), "phrases")
            )


def _judge_texts(
    name: str, found: Sequence[tuple[Row, list[str]]], report: Report
) -> None:
    if not found:
        return
    right = [exact(row["text"], given) for row, given in found]
    count = len(found), "rows"
    report.figures.append(Figure(f"{name}: exact", float(np.mean(right)), *count))
    many = [(row, given) for row, given in found if len(given) >= ANSWERS]
    if many and name == "answer":
        shares = [consensus(row["text"], given) for row, given in many]
        mean = float(np.mean(shares))
        report.figures.append(Figure("answer: VQA accuracy", mean, len(many), "rows"))
    report.beliefs[f"{name}, exact"] = [
        Belief(row["confidence"], true)
        for (row, _), true in zip(found, right)
        if row["confidence"] is not None
    ]


def _reliability_table(name: str, beliefs: Sequence[Belief]) -> list[str]:
    stated = [each.confidence for each in beliefs]
    right = [each.right for each in beliefs]
    lines = [f"| {name}: confidence | of them | mean | right |", "|---|---:|---:|---:|"]
    for number, (count, mean, part) in enumerate(reliability(stated, right)):
        if count:
            low, high = number / BINS, (number + 1) / BINS
            lines.append(
                f"| {low:.1f} to {high:.1f} | {count} | {mean:.1%} | {part:.1%} |"
            )
    error = calibration_error(stated, right, bins=BINS)
    total = f"{np.mean(stated):.1%} | {np.mean(right):.1%}"
    lines.append(f"| all; calibration error {error:.1%} | {len(beliefs)} | {total} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.batch.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("answers", type=Path, help="answers.jsonl of a run")
    parser.add_argument("truth", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    try:
        lines = options.answers.read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        report = evaluate(rows, Truth.load(options.truth))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report.markdown())
    if options.json:
        figures = {each.name: asdict(each) for each in report.figures}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
