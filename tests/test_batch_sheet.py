"""The contact sheet: what it shows, and that nothing in it is taken for HTML."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from engines import picture
from PIL import Image

from vlm.batch import sheet
from vlm.batch.sheet import EDGE, POLICY, write_sheet

HOSTILE = "</svg><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&amp;"


def row(image: str = "a.png", number: int = 0, **more) -> dict:
    box = {"label": "cat", "box": [10.0, 20.0, 60.5, 70.0], "confidence": 0.875}
    told = {"image": image, "number": number, "prompt": "detect cat", "text": "cat"}
    told |= {"objects": [box], "width": 640, "height": 480, "tokens": 5}
    told |= {"confidence": 0.5, "image_share": 0.25, "error": None}
    return told | more


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("a.png", "b.png")}
    for number, path in enumerate(paths.values()):
        picture(number, (640, 480)).save(path)
    return paths


class Tags(HTMLParser):
    """All tags with their attributes, and the text that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def written(folder: Path, rows: list[dict], paths: dict[str, Path]) -> Tags:
    (page,) = write_sheet(folder, rows, paths, model="tiny")
    return Tags(page.read_text("utf-8"))


def test_a_box_lies_where_it_is_in_the_picture(tmp_path: Path, paths) -> None:
    page = written(tmp_path, [row()], paths)
    (svg,) = page.all("svg")
    assert svg["viewbox"] == "0 0 640 480"
    for rect in page.all("rect"):
        place = [float(rect[name]) for name in ("x", "y", "width", "height")]
        assert place == [10, 20, 50.5, 50]
    (image,) = page.all("image")
    assert (image["width"], image["height"]) == ("640", "480")
    kind, _, content = image["href"].partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as thumb:
        assert thumb.size == (EDGE, EDGE * 3 // 4)
    assert "cat 0.88" in page.text and "5 tokens" in page.text


def test_nothing_of_it_is_taken_for_html(tmp_path: Path, paths) -> None:
    thing = {"label": HOSTILE, "box": [0, 0, 9, 9], "confidence": 1.0}
    rows = [row(prompt=HOSTILE, text=HOSTILE, objects=[thing])]
    rows += [row(image=HOSTILE, error=HOSTILE)]
    paths[HOSTILE] = paths["a.png"]
    rows += [row(image=HOSTILE, number=1)]
    page = written(tmp_path, rows, paths)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "link", "base", "form"}
    attributes = {name for _, found in page.tags for name in found}
    assert not any(name.startswith("on") for name in attributes)
    assert page.text.count(HOSTILE) >= 6
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == POLICY and "default-src 'none'" in policy


def test_a_picture_is_in_a_page_once(tmp_path: Path, paths) -> None:
    rows = [row("a.png", 0), row("a.png", 1), row("b.png", 0), row("a.png", 2)]
    page = written(tmp_path, rows, paths)
    ids = [image["id"] for image in page.all("image")]
    assert len(ids) == 2 and len(page.all("svg")) == 4
    assert [use["href"] for use in page.all("use")] == [f"#{ids[0]}"] * 2


def test_a_picture_that_is_gone_or_was_bad_has_its_words(tmp_path: Path, paths) -> None:
    paths["b.png"].unlink()
    rows = [row("b.png"), row("bad.png", text=None, error="It is torn.", objects=[])]
    page = written(tmp_path, rows, paths)
    assert "It is torn." in page.text
    assert len(page.all("rect")) == 2  # the box is known, whatever became of the file
    assert "1 of which could not be read" in page.text


def test_long_tables_have_pages_that_know_each_other(
    tmp_path: Path, paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "ROWS", 2)
    rows = [row("a.png", number) for number in range(5)]
    pages = write_sheet(tmp_path, rows, paths, model="tiny")
    assert [page.name for page in pages] == [
        "sheet.html",
        "sheet-2.html",
        "sheet-3.html",
    ]
    for number, path in enumerate(pages):
        page = Tags(path.read_text("utf-8"))
        links = [a["href"] for a in page.all("a")]
        others = [other.name for other in pages if other != path]
        assert links == others * 2  # above and below
        assert len(page.all("article")) == (2, 2, 1)[number]
        assert len(page.all("image")) == 1  # each page stands alone
    write_sheet(tmp_path, rows[:1], paths, model="tiny")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["sheet.html"]


def test_it_asks_nothing_of_a_network(tmp_path: Path, paths) -> None:
    write_sheet(tmp_path, [row()], paths, model="tiny")
    text = (tmp_path / "sheet.html").read_text("utf-8")
    assert not re.findall(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
