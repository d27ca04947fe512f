"""A batch run's table on disk: appended to, killed at any byte, written whole."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlm.batch.rows import run_lengths
from vlm.batch.table import Table, check_format, whole


def row(image: str, number: int = 0, **more) -> dict:
    return {"image": image, "number": number, "prompt": "caption en", **more}


def test_a_line_that_was_begun_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    table = Table(tmp_path)
    with table.part(0) as part:
        part.append([row("a"), row("b", text="a\nb\u2028c\r")])
    path = tmp_path / "parts" / "part-0.jsonl"
    kept = path.read_bytes()
    for end in range(len(kept) + 1):  # wherever the process was killed
        path.write_bytes(kept[:end])
        left = kept[:end].count(b"\n")
        assert list(table.rows()) == [("a", 0), ("b", 0)][:left]
        with table.part(0) as part:
            part.append([row("c")])
        assert list(table.rows()) == [*[("a", 0), ("b", 0)][:left], ("c", 0)]


def test_a_row_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    table = Table(tmp_path)
    for number, text in enumerate(("first", "again")):
        with table.part(number) as part:
            part.append([row("a", text=text)])
    assert table.rows() == {("a", 0): row("a", text="first")}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    part = tmp_path / "parts" / "part-3.jsonl"
    part.write_bytes(json.dumps(row("a")).encode() + b"\n\0\0\0\0\n")
    with pytest.raises(ValueError, match="line 2 of .*part-3.jsonl is damaged"):
        Table(tmp_path).rows()


def test_the_table_says_the_same_in_both_forms(tmp_path: Path) -> None:
    odd = 'a "quoted", text\nwith <b>lines</b> and \u00fcml\u00e4ute'
    rows = [row("a.png", text=odd, objects=[{"label": "cat"}], error=None)]
    rows += [row("b\udcff.png", text=None, objects=[], error="no picture")]
    Table(tmp_path).write(rows)
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert read[0]["text"] == odd and json.loads(read[0]["objects"]) == [
        {"label": "cat"}
    ]
    assert (read[1]["text"], read[1]["error"]) == ("", "no picture")


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")

    def fail(file) -> None:
        file.write("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        whole(path, fail)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_table_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    Table(tmp_path).settle({"model": "a", "masks": False})
    Table(tmp_path).settle({"model": "a", "masks": False})
    with pytest.raises(ValueError, match="answers with model 'a', not 'b'"):
        Table(tmp_path).settle({"model": "b", "masks": False})


def test_parquet_is_refused_in_words_where_pyarrow_is_not(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        check_format("parquet")


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row("a.png", objects=[{"label": "cat", "box": [1.0, 2.0, 3.0, 4.0]}])]
    rows += [row("b.png", objects=[])]
    Table(tmp_path).write(rows, "parquet")
    assert parquet.read_table(tmp_path / "answers.parquet").to_pylist() == rows


def test_run_lengths_are_cocos() -> None:
    dice = np.random.default_rng(0)
    masks = [dice.random((5, 7)) < share for share in (0, 0.2, 0.5, 0.9, 1)]
    for mask in masks:
        told = run_lengths(mask)
        column_by_column: list[bool] = []
        for number, count in enumerate(told["counts"]):
            column_by_column += [number % 2 == 1] * count
        read = np.array(column_by_column).reshape(told["size"][::-1]).T
        assert (read == mask).all()
