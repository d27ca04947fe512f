"""The table of a run on disk: parts that grow, and the whole once all is there.

    parts/part-0.jsonl    what process 0 has answered, a line for each row
    answers.jsonl         all rows in the order of the questions
    answers.csv           the same, objects as JSON in their column; or answers.parquet
    run.json              how they were answered

A part is only ever appended to, whole lines at a time, and on disk before the next
batch begins. So a process may be killed at any moment: what it leaves is whole lines
and perhaps the beginning of one, which is dropped. What a line is about is in the line
(image and number of the prompt), so that rows are counted once however often they were
written.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]
Key = tuple[str, int]

FORMATS = ("csv", "parquet")


class Table:
    """The rows that lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)

    def settle(self, settings: dict[str, Any]) -> None:
        """Hold how the rows are made; all of a table are made in the same way.

        Raises:
            ValueError: those that are here were made in another way.
        """
        path = self.folder / "run.json"
        if path.exists():
            known = json.loads(path.read_text("utf-8"))
            for name, value in settings.items():
                if known.get(name) != value:
                    raise ValueError(
                        f"{self.folder} has answers with {name} {known.get(name)!r}, "
                        f"not {value!r}: take another --out, or the same {name}"
                    )
        else:
            text = json.dumps(settings, indent=1) + "\n"
            whole(path, lambda file: file.write(text))

    def rows(self) -> dict[Key, Row]:
        """All whole rows of all parts; of a row that was written twice the first.

        Raises:
            ValueError: a line is damaged.
        """
        found: dict[Key, Row] = {}
        for path in sorted(self.parts.glob("part-*.jsonl")):
            for number, line in enumerate(_whole_lines(path).splitlines(), 1):
                try:
                    row = json.loads(line)
                    found.setdefault((row["image"], row["number"]), row)
                except (ValueError, TypeError, KeyError):
                    raise ValueError(
                        f"line {number} of {path} is damaged: delete that line, and "
                        "its question is answered again"
                    ) from None
        return found

    def part(self, number: int) -> Part:
        """Where process `number` appends its rows."""
        return Part(self.parts / f"part-{number}.jsonl")

    def write(self, rows: Sequence[Row], format: str = "csv") -> None:
        """The whole table, each file of it appearing at once."""
        lines = (json.dumps(row) + "\n" for row in rows)
        whole(self.folder / "answers.jsonl", lambda file: file.writelines(lines))
        if format == "parquet":
            _write_parquet(self.folder / "answers.parquet", rows)
        else:
            whole(self.folder / "answers.csv", lambda file: _write_csv(file, rows))


class Part:
    """Rows in the order in which one process came to them."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            # A line that was begun by a process that is no more.
            os.truncate(path, len(_whole_lines(path)))
        self.file = path.open("ab")

    def append(self, rows: Iterable[Row]) -> None:
        """On disk when this returns."""
        self.file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def whole(path: Path, fill: Callable[[TextIO], object]) -> None:
    """Write a text file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # What is no character (a file's name may be any bytes) is written as its code.
        with beside.open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_format(format: str) -> None:
    """Know before the work, not after it, that the table can be written.

    Raises:
        ValueError: it cannot, and what to do.
    """
    if format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401 - asked for, not a requirement
        except ImportError:
            raise ValueError(
                "Parquet needs pyarrow, which is not installed: `pip install pyarrow`, "
                "or take --table csv"
            ) from None


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _write_csv(file: TextIO, rows: Sequence[Row]) -> None:
    columns = list(rows[0])
    out = csv.writer(file)
    out.writerow(columns)
    for row in rows:
        cells = (row[name] for name in columns)
        out.writerow(
            json.dumps(cell) if isinstance(cell, (list, dict)) else cell
            for cell in cells
        )


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
