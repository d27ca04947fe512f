"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return [body for name, body in fences if name == language]


def test_the_readmes_first_lines_of_python_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(blocks("python")[0], names)
    assert names["heat"].shape == (4, 8, 8)
    assert "<loc" in capsys.readouterr().out


def test_the_packages_docstring_shows_the_same_lines() -> None:
    import vlm

    for line in ("engine = vlm.load(", "heat = vlm.probes.image_attention("):
        assert line in vlm.__doc__ and line in TEXT


def test_every_file_of_the_house_is_there_and_no_other() -> None:
    listed, folder = set(), ""
    for line in blocks("")[0].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        if not indent:
            folder = name if name.endswith("/") else ""
        listed.add((folder if indent else "") + name)
    for name in listed:
        assert (ROOT / name).exists(), name
    modules = {f"vlm/{path.name}" for path in (ROOT / "vlm").glob("*.py")}
    assert modules - {"vlm/__init__.py"} <= listed


def test_the_picture_is_there_and_small() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert (ROOT / path).stat().st_size < 500_000


def test_the_space_starts_the_app_with_the_tested_gradio() -> None:
    front = TEXT.split("---")[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front
    version = re.search(r"sdk_version: (\S+)", front)[1]
    assert (
        f"gradio>={'.'.join(version.split('.')[:2])}"
        in (ROOT / "requirements.txt").read_text()
    )
