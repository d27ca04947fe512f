"""The contact sheet: the table as a page to look at, without a script or a network.

What comes from a file name, a prompt or a model is escaped, and the page forbids itself
everything but its own style and the pictures that lie in it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.batch.table import Row, whole
from vlm.picture_file import read

STYLE = Path(__file__).with_name("sheet.css").read_text("utf-8")
ROWS = 500  # of a page: a few megabytes
EDGE = 320  # pixels of a picture's longer side
COLORS = 6
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_sheet(
    folder: Path, rows: Sequence[Row], paths: Mapping[str, Path], *, model: str
) -> list[Path]:
    """sheet.html in a folder, and sheet-2.html and so on where there are many rows.

    Args:
        paths: of each image, by its name in the rows.
    """
    starts = range(0, len(rows), ROWS)
    pages = [
        folder / (f"sheet-{number}.html" if number > 1 else "sheet.html")
        for number in range(1, len(starts) + 1)
    ]
    for old in set(folder.glob("sheet-*.html")) - set(pages):
        old.unlink()  # of a longer table
    about = f"{_counted(rows)}, answered by {model}"
    for number, (start, path) in enumerate(zip(starts, pages)):
        cards = _cards(rows[start : start + ROWS], paths)
        text = _page(cards, about, pages, number)
        whole(path, lambda file, text=text: file.write(text))
    return pages


def _page(cards: list[str], about: str, pages: Sequence[Path], number: int) -> str:
    links = [
        str(i + 1) if i == number else f'<a href="{path.name}">{i + 1}</a>'
        for i, path in enumerate(pages)
    ]
    nav = f"<nav>Page {' '.join(links)}</nav>\n" if len(pages) > 1 else ""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Contact sheet</title>
<style>
{STYLE}</style>
<header><h1>Contact sheet</h1><p>{escape(about)}</p></header>
{nav}<main>
{"".join(cards)}</main>
{nav}</html>
"""


def _cards(rows: Sequence[Row], paths: Mapping[str, Path]) -> list[str]:
    """A card for each row; a picture is in the page once, at its first row."""
    shown: dict[str, str] = {}
    cards = []
    for row in rows:
        name = row["image"]
        if row["error"] is not None:
            cards.append(_card(row, ""))
            continue
        if name in shown:
            picture = f'<use href="#{shown[name]}"/>'
        else:
            shown[name] = f"p{len(shown)}"
            side = f'width="{row["width"]}" height="{row["height"]}"'
            picture = (
                f'<image id="{shown[name]}" {side} preserveAspectRatio="none" '
                f'href="{_thumb(paths[name])}"/>'
            )
        cards.append(_card(row, _drawing(row, picture)))
    return cards


def _card(row: Row, drawing: str) -> str:
    if row["error"] is not None:
        said = f'<p class="error">{escape(row["error"])}</p>'
    else:
        said = f'<p class="said" dir="auto">{escape(row["text"]) or "(nothing)"}</p>'
        said += _objects(row["objects"]) + f'<p class="figures">{_figures(row)}</p>'
    return f"""<article>
{drawing}<div class="text"><p class="name">{escape(row["image"])}</p>
<p class="prompt">{escape(row["prompt"])}</p>
{said}</div></article>
"""


def _drawing(row: Row, picture: str) -> str:
    width, height = row["width"], row["height"]
    size = max(width, height) / 22
    colors = _colors(row["objects"])
    parts = [picture]
    for thing, color in zip(row["objects"], colors):
        x1, y1, x2, y2 = thing["box"]
        place = f'x="{x1}" y="{y1}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}"'
        label = escape(thing["label"])
        up = max(y1 - size / 3, size)
        parts.append(
            f'<rect class="under" {place}/><rect class="box {color}" {place}/>'
            f'<text x="{x1}" y="{up:.1f}" font-size="{size:.1f}">{label}</text>'
        )
    about = escape(f"{row['image']} with {len(row['objects'])} boxes")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{about}">'
        f"{''.join(parts)}</svg>\n"
    )


def _objects(things: Sequence[dict[str, Any]]) -> str:
    items = [
        f'<li class="{color}">{escape(thing["label"])} {thing["confidence"]:.2f}</li>'
        for thing, color in zip(things, _colors(things))
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _colors(things: Sequence[dict[str, Any]]) -> list[str]:
    """The same for the same label."""
    labels = list(dict.fromkeys(thing["label"] for thing in things))
    return [f"c{labels.index(thing['label']) % COLORS}" for thing in things]


def _figures(row: Row) -> str:
    figures = [f"{row['tokens']} token{'' if row['tokens'] == 1 else 's'}"]
    if row["confidence"] is not None:
        figures.append(f"confidence {row['confidence']:.2f}")
    if row["image_share"] is not None:
        figures.append(f"attention on the image {row['image_share']:.0%}")
    return " · ".join(figures)


def _counted(rows: Sequence[Row]) -> str:
    pictures = len({row["image"] for row in rows})
    bad = len({row["image"] for row in rows if row["error"] is not None})
    unread = f", {bad} of which could not be read" if bad else ""
    return f"{len(rows)} answers about {pictures} pictures{unread}"


def _thumb(path: Path) -> str:
    """A data URL; of a file that is no longer there, none."""
    try:
        image = read(path).copy()
    except (FileNotFoundError, ValueError):
        return ""
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    out = BytesIO()
    image.save(out, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
