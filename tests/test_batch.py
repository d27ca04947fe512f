"""Batch runs: what is asked, and that nothing of it is lost or doubled."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from bench import batches, killed
from engines import Pair, picture
from PIL import Image

import vlm
from vlm.batch import __main__ as command
from vlm.batch.questions import questions
from vlm.batch.run import How, Picture, _open, run
from vlm.batch.table import Table
from vlm.image import pixels

PROMPTS = ["detect cat ; dog", "caption en", "answer en is there a cat?"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, one of them below, and two files that are none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.jpg", "more/c.webp", "d.png", "e.PNG")):
        picture(number, (60 + number, 40)).save(folder / name)
    (folder / "bad.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:900])
    (folder / "notes.txt").write_text("not even named like one")
    (folder / ".hidden.png").write_bytes((folder / "b.png").read_bytes())
    return folder


# --- what is asked -------------------------------------------------------------------


def test_a_folder_is_asked_in_the_order_of_its_names(folder: Path) -> None:
    asked = questions(folder, PROMPTS[:2])
    names = ["a.jpg", "b.png", "bad.jpg", "cut.png", "d.png", "e.PNG", "more/c.webp"]
    assert [q.key for q in asked] == [(name, i) for name in names for i in (0, 1)]
    assert [q.prompt for q in asked[:2]] == PROMPTS[:2]
    assert asked[-1].path == folder / "more" / "c.webp"


def test_a_list_of_paths_is_seen_from_where_it_lies(folder: Path) -> None:
    (folder / "list.txt").write_text("more/c.webp\n\n  a.jpg \nmore/c.webp\n")
    asked = questions(folder / "list.txt", ["caption en"])
    assert [q.image for q in asked] == ["more/c.webp", "a.jpg"]
    assert asked[0].path.is_file()


def test_a_list_may_bring_its_own_prompts(folder: Path) -> None:
    lines = [{"image": "a.jpg", "prompt": "detect cat"}, {"image": "b.png"}]
    lines += [{"image": "a.jpg", "prompt": "detect dog"}, lines[0]]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = questions(folder / "list.jsonl", ["caption en"])
    assert [(*q.key, q.prompt) for q in asked] == [
        ("a.jpg", 0, "detect cat"),
        ("b.png", 0, "caption en"),
        ("a.jpg", 1, "detect dog"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "prompts", "says"),
    [
        ("list.txt", "", ["caption en"], "names no picture"),
        ("list.txt", "a.jpg", [], "names no picture"),
        ("list.txt", "a.jpg", ["  "], "prompt about a.jpg is empty"),
        ("list.jsonl", "{]", [], "line 1 of"),
        ("list.jsonl", '{"image": "a.jpg"}', [], "no prompt"),
        ("list.jsonl", '{"image": 3, "prompt": "caption en"}', [], "are texts"),
        ("none", None, ["caption en"], "neither a folder nor a file"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | None, prompts: list[str], says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        questions(tmp_path / name, prompts)


# --- a run ---------------------------------------------------------------------------


@pytest.fixture
def here() -> PartialState:
    return PartialState(cpu=True)


HOW = How(batch=4, max_tokens=8, masks=True, attention=True)


def test_rows_are_what_the_engine_says_one_by_one(
    pairs: dict[str, Pair], folder: Path, tmp_path: Path, here: PartialState
) -> None:
    engine = pairs["gemma"].engine
    asked = questions(folder, PROMPTS)
    rows = run(lambda: engine, asked, Table(tmp_path / "out"), HOW, state=here)
    assert [(row["image"], row["number"]) for row in rows] == [q.key for q in asked]
    bad = {row["image"]: row["error"] for row in rows if row["error"]}
    assert list(bad) == ["bad.jpg", "cut.png"]
    assert "not a picture" in bad["bad.jpg"] and "damaged" in bad["cut.png"]
    for question, found in zip(asked, rows):
        assert list(found) == list(rows[0])  # the same columns
        if question.image in bad:
            assert (found["text"], found["objects"]) == (None, [])
            continue
        with Image.open(question.path) as image:
            alone = engine.generate(image, question.prompt, max_tokens=8)
        assert found["text"] == alone.text
        assert (found["width"], found["height"]) == image.size
        assert found["tokens"] == len(alone.steps)
        boxes = [list(thing.box) for thing in alone.objects if thing.valid]
        assert [each["box"] for each in found["objects"]] == [
            pytest.approx(box, abs=0.01) for box in boxes
        ]
        if alone.steps:
            chance = np.prod([step.probability for step in alone.steps])
            assert found["confidence"] == pytest.approx(chance, abs=1e-5)
            shares = [step.image_share for step in alone.steps]
            assert found["attention"]["shares"] == pytest.approx(shares, abs=1e-4)
            total = np.sum(found["attention"]["map"])
            assert total == pytest.approx(np.mean(shares), abs=1e-4)


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in batches.TIMES} for r in rows]


@pytest.mark.parametrize("torn", [0, 40])
def test_a_run_that_broke_goes_on_and_ends_with_the_same_table(
    pairs: dict[str, Pair],
    folder: Path,
    tmp_path: Path,
    here: PartialState,
    monkeypatch: pytest.MonkeyPatch,
    torn: int,
) -> None:
    engine, asked = pairs["gemma2"].engine, questions(folder, PROMPTS)
    alone = run(lambda: engine, asked, Table(tmp_path / "alone"), HOW, state=here)

    class Broken(Exception):
        pass

    answered: list[int] = []

    def breaking(engine, questions, **how):
        answered.append(len(questions))
        if len(answered) == 4:
            raise Broken
        return vlm.many.answers(engine, questions, **how)

    monkeypatch.setattr(vlm, "answers", breaking)
    table = Table(tmp_path / "broken")
    with pytest.raises(Broken):
        run(lambda: engine, asked, table, HOW, state=here)
    part = tmp_path / "broken" / "parts" / "part-0.jsonl"
    content = part.read_bytes()
    assert content.count(b"\n") == 3 * HOW.batch
    part.write_bytes(content[: len(content) - torn])
    again = run(lambda: engine, asked, table, HOW, state=here)
    assert without_times(again) == without_times(alone)
    assert part.read_bytes().count(b"\n") == len(asked)  # nothing was written twice
    # What is done is not asked again, and the model not even loaded for it.
    assert without_times(
        run(lambda: pytest.fail("loaded"), asked, table, HOW, state=here)
    ) == without_times(alone)


def test_an_answer_to_another_prompt_is_not_taken_for_this_one(
    tmp_path: Path, folder: Path, here: PartialState
) -> None:
    table = Table(tmp_path / "out")
    with table.part(0) as part:
        part.append([{"image": "a.jpg", "number": 0, "prompt": "detect dog"}])
    with pytest.raises(ValueError, match="not to 'caption en'"):
        run(lambda: None, questions(folder, ["caption en"]), table, HOW, state=here)


def test_a_picture_that_waits_is_what_the_model_sees_of_it(folder: Path) -> None:
    asked = questions(folder, ["caption en"])
    opened = _open(asked, 28)
    for question in asked:
        if isinstance(kept := opened[question.image], Picture):
            with Image.open(question.path) as image:
                assert kept.size == image.size
                assert (pixels(kept.square, 28) == pixels(image, 28)).all()


# --- the command ---------------------------------------------------------------------


def test_the_command_writes_the_table_and_says_what_was_bad(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    out = tmp_path / "out"
    words = [str(folder), "--out", str(out), "--device", "cpu", "--max-tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["batch", *words, "--prompt", "caption en"])
    assert command.main() == 1
    told = capsys.readouterr()
    assert "bad.jpg: This file is not a picture" in told.err
    assert "7 rows about 7 pictures" in told.out
    assert {path.name for path in out.iterdir()} == {
        "answers.jsonl",
        "answers.csv",
        "sheet.html",
        "parts",
        "run.json",
    }
    # Another question in the same folder would be mixed with these.
    monkeypatch.setattr(sys, "argv", ["batch", *words, "--prompt", "caption de"])
    assert command.main() == 2
    assert "take another --out" in capsys.readouterr().err


def test_killed_three_times_it_ends_with_the_same_table(tmp_path: Path) -> None:
    found = killed.compare(tmp_path, kills=3, pictures=8)
    assert found["equal"], found["words"]
    assert sum(left > 0 for left in found["before"]) > 0


def test_two_launched_processes_write_the_table_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    batches.draw(folder, 6)
    for number in (1, 2):
        batches.finish(folder, tmp_path / str(number), number, killed.BATCH)
    assert batches.table(tmp_path / "1") == batches.table(tmp_path / "2")
    parts = sorted((tmp_path / "2" / "parts").iterdir())
    assert [part.name for part in parts] == ["part-0.jsonl", "part-1.jsonl"]
    assert all(part.read_bytes().count(b"\n") >= 6 for part in parts)
