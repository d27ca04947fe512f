"""Answers against ground truth: figures that are known beforehand, and counted ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlm.batch import eval as command
from vlm.batch.coco import average_precision
from vlm.batch.eval import evaluate, reliability
from vlm.batch.rows import run_lengths
from vlm.batch.truth import Truth
from vlm.batch.wording import consensus, exact, normal
from vlm.grounding import overlap
from vlm.metrics import calibration_error

KINDS = {"cat": 3, "dog": 7}


def row(image: str, prompt: str, *objects: tuple, text: str = "", **more) -> dict:
    found = [
        {"label": label, "box": list(box), "confidence": confidence}
        for label, box, confidence in objects
    ]
    told = {"image": image, "number": 0, "prompt": prompt, "objects": found}
    return told | {"text": text, "confidence": 0.8, "error": None} | more


def truth(things: dict[str, list[tuple[str, tuple]]], notes: list = ()) -> Truth:
    """Things as (kind, corners) by image; `notes` are annotations as they are."""
    ids = {name: number for number, name in enumerate(things, 10)}
    return Truth.read(
        {
            "images": [{"id": id, "file_name": name} for name, id in ids.items()],
            "categories": [{"id": id, "name": name} for name, id in KINDS.items()],
            "annotations": [
                {"image_id": ids[name], "category_id": KINDS[kind], "bbox": sides(box)}
                for name, some in things.items()
                for kind, box in some
            ]
            + [{**note, "image_id": ids[note["image_id"]]} for note in notes],
        }
    )


def sides(box: tuple) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def values(rows: list[dict], true: Truth) -> dict[str, float]:
    return {figure.name: figure.value for figure in evaluate(rows, true).figures}


# --- boxes ---------------------------------------------------------------------------

THINGS = {
    "a.jpg": [("cat", (0, 0, 100, 100)), ("dog", (200, 0, 300, 100))],
    "b.jpg": [("cat", (50, 50, 150, 150))],
}


def test_perfect_boxes_have_a_precision_of_one() -> None:
    pytest.importorskip("pycocotools")
    rows = [
        row(name, "detect cat ; dog", *[(kind, box, 0.9) for kind, box in some])
        for name, some in THINGS.items()
    ]
    found = values(rows, truth(THINGS))
    assert found == pytest.approx(dict.fromkeys(found, 1)) and len(found) == 4


def test_boxes_that_are_moved_are_right_up_to_their_overlap() -> None:
    pytest.importorskip("pycocotools")
    # Moved by a quarter of the side the overlap is 0.6: right at 0.50, 0.55 and 0.60.
    rows = [
        row(
            name,
            "detect cat ; dog",
            *[
                (kind, (x1 + 25, y1, x2 + 25, y2), 0.9)
                for kind, (x1, y1, x2, y2) in some
            ],
        )
        for name, some in THINGS.items()
    ]
    found = values(rows, truth(THINGS))
    assert found["detect: AP50"] == 1 and found["detect: AP75"] == 0
    assert found["detect: AP"] == pytest.approx(0.3)


def test_only_what_was_asked_for_is_missed() -> None:
    pytest.importorskip("pycocotools")
    rows = [row("a.jpg", "detect cat", ("cat", (0, 0, 100, 100), 0.4))]
    assert values(rows, truth(THINGS))["detect: AP"] == pytest.approx(1)
    rows.append(row("b.jpg", "detect cat"))  # there is one, and none was found
    found = values(rows, truth(THINGS))
    assert found["detect: AR"] == pytest.approx(0.5)


def test_the_mean_is_the_area_under_precision_at_101_recalls() -> None:
    pytest.importorskip("pycocotools")
    dice = np.random.default_rng(4)
    things, rows = {}, []
    for number in range(30):
        name, some, said = f"{number}.jpg", [], []
        for kind in KINDS:
            for corner in dice.integers(0, 5, dice.integers(0, 3)) * 300:
                box = (corner, corner, corner + 100, corner + 100)
                if (kind, box) in some:
                    continue
                some.append((kind, box))
                shift = float(dice.choice([0, 20, 60]))
                moved = (corner + shift, corner, corner + shift + 100, corner + 100)
                if dice.random() < 0.8:
                    said.append((kind, moved, float(dice.random())))
        things[name] = some
        rows.append(row(name, "detect cat ; dog", *said))
    expected = np.mean([counted(rows, things, kind, 0.5) for kind in KINDS])
    assert 0.2 < expected < 0.9
    found = values(rows, truth(things))["detect: AP50"]
    assert found == pytest.approx(expected, abs=1e-9)


def counted(rows: list[dict], things: dict, kind: str, least: float) -> float:
    """COCO's average precision of one category, step by step."""
    said = sorted(
        (-each["confidence"], row["image"], tuple(each["box"]))
        for row in rows
        for each in row["objects"]
        if each["label"] == kind
    )
    left = {
        name: [box for label, box in some if label == kind]
        for name, some in things.items()
    }
    there, right, points = sum(map(len, left.values())), 0, []
    for number, (_, name, box) in enumerate(said, 1):
        hits = [true for true in left[name] if overlap(box, true) >= least]
        if hits:
            left[name].remove(max(hits, key=lambda true: overlap(box, true)))
            right += 1
        points.append((right / there, right / number))
    recalls = np.linspace(0, 1, 101)
    best = [max((p for r, p in points if r >= recall), default=0) for recall in recalls]
    return float(np.mean(best))


def test_without_pycocotools_the_rest_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    rows = [row("a.jpg", "detect cat", ("cat", (0, 0, 100, 100), 0.4))]
    report = evaluate(rows, truth(THINGS))
    assert "pip install pycocotools" in report.markdown()
    assert report.beliefs
    with pytest.raises(ValueError, match="not installed"):
        average_precision([], truth(THINGS))


def test_run_lengths_are_read_by_coco_as_they_were_meant() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    dice = np.random.default_rng(0)
    for share in (0, 0.2, 0.8, 1):
        drawn = dice.random((6, 9)) < share
        told = run_lengths(drawn)
        assert (mask.decode(mask.frPyObjects(told, *told["size"])) == drawn).all()


# --- phrases, texts ------------------------------------------------------------------


def test_a_phrase_is_judged_by_its_surest_box() -> None:
    box = (0.0, 0.0, 100.0, 100.0)
    notes = [
        {"image_id": name, "expression": phrase, "bbox": sides(box)}
        for name, phrase in (
            ("a.jpg", "left cat"),
            ("a.jpg", "The Cat there"),
            ("b.jpg", "left cat"),
        )
    ]
    rows = [
        row("a.jpg", "detect left cat", ("x", (0, 0, 9, 9), 0.2), ("x", box, 0.9)),
        row("a.jpg", "detect the cat there", ("x", (0, 0, 100, 40), 0.9)),
        row("b.jpg", "detect left cat"),
    ]
    found = values(rows, truth({"a.jpg": [], "b.jpg": []}, notes))
    assert found["phrases: mean IoU"] == pytest.approx((1 + 0.4 + 0) / 3)
    assert found["phrases: right at 0.5"] == pytest.approx(1 / 3)


def test_answers_and_captions_are_exact_or_not() -> None:
    notes = [
        {"image_id": "a.jpg", "question": "How many cats?", "answers": ["2", "three"]},
        {"image_id": "a.jpg", "question": "Many cats?", "answers": [{"answer": "yes"}]},
        {"image_id": "a.jpg", "caption": "Two cats on a sofa."},
        {"image_id": "a.jpg", "caption": "The cats sleep"},
    ]
    rows = [
        row("a.jpg", "answer en how many cats?", text="Two."),
        row("a.jpg", "answer en many cats?", text="no"),
        row("a.jpg", "caption en", text="cats sleep"),
        row("a.jpg", "caption <loc0001><loc0002><loc0003><loc0004>", text="a sofa"),
    ]
    report = evaluate(rows, truth({"a.jpg": []}, notes))
    found = {each.name: (each.value, each.count) for each in report.figures}
    assert found == {"caption: exact": (1.0, 1), "answer: exact": (0.5, 2)}
    assert [b.right for b in report.beliefs["answer, exact"]] == [True, False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog.", "dog"),
        ("two cats", "2 cats"),
        ("don't know", "dont know"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("the man's", "mans"),
        ("none", "0"),
    ],
)
def test_texts_that_say_the_same(one: str, other: str) -> None:
    assert normal(one) == normal(other)
    assert exact(one, ["something", other])


def test_texts_that_do_not() -> None:
    assert normal("3.5") != normal("35")
    assert normal("3.5 meters.") == "3.5 meters"
    assert not exact("cat", ["cats", "a dog"])


def test_vqas_accuracy_leaves_each_person_out_in_turn() -> None:
    given = ["yes"] * 3 + ["no"] * 7
    # One of the three left out: 2 of 3; one of the others: 3 of 3.
    assert consensus("yes", given) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert consensus("no", given) == 1 and consensus("maybe", given) == 0


# --- confidences ---------------------------------------------------------------------


def test_the_reliability_table_counts_what_lies_in_each_bin() -> None:
    dice = np.random.default_rng(2)
    stated = np.concatenate([dice.random(300), [0.0, 0.1, 0.3, 1.0]])
    right = dice.random(len(stated)) < stated**2
    bins = reliability(stated, right)
    assert sum(count for count, _, _ in bins) == len(stated)
    for number, (count, mean, part) in enumerate(bins):
        low, high = number / 10, (number + 1) / 10
        inside = (stated > low) & (stated <= high) | (stated == 0) & (number == 0)
        assert count == inside.sum()
        assert mean == pytest.approx(stated[inside].mean())
        assert part == pytest.approx(right[inside].mean())
    gaps = sum(count * abs(part - mean) for count, mean, part in bins) / len(stated)
    assert gaps == pytest.approx(calibration_error(stated, right))


def test_a_box_is_believed_rightly_where_it_lies_on_its_own_kind() -> None:
    rows = [
        row(
            "a.jpg",
            "detect cat ; dog",
            ("cat", (0, 0, 100, 90), 0.9),
            ("cat", (0, 0, 100, 100), 0.5),  # the better one; the other is a second
            ("cat", (200, 0, 300, 100), 0.7),  # which is the dog
        )
    ]
    (beliefs,) = evaluate(rows, truth(THINGS)).beliefs.values()
    assert [(b.confidence, b.right) for b in beliefs] == [
        (0.9, False),
        (0.5, True),
        (0.7, False),
    ]


# --- what is left out ----------------------------------------------------------------


def test_rows_that_cannot_be_judged_are_told_of() -> None:
    rows = [
        row("elsewhere.jpg", "detect cat"),
        row("a.jpg", "detect cat", error="damaged"),
        row("folder/b.jpg", "detect zebra"),
    ]
    report = evaluate(rows, truth(THINGS))
    told = report.markdown()
    assert "1 rows about images that are not in the ground truth" in told
    assert "1 rows about images that could not be read" in told
    assert "No row asks for anything" in told


def test_the_command_prints_tables(tmp_path: Path, monkeypatch, capsys) -> None:
    raw = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a cat"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(raw))
    told = row("a.jpg", "caption en", text="cat")
    (tmp_path / "answers.jsonl").write_text(json.dumps(told) + "\n")
    words = [str(tmp_path / "answers.jsonl"), str(tmp_path / "truth.json")]
    words += ["--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["eval", *words])
    assert command.main() == 0
    out = capsys.readouterr().out
    assert "| caption: exact | 100.0% | 1 rows |" in out
    assert "| 0.7 to 0.8 | 1 | 80.0% | 100.0% |" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["caption: exact"]["value"] == 1
    (tmp_path / "truth.json").write_text("[]")
    assert command.main() == 2
    assert "no ground truth in COCO's layout" in capsys.readouterr().err
