"""A picture of scenes with what is in them and what a model says is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from vlm.grounding import Object
from vlm.tiny.grading import pair_up
from vlm.tiny.questions import Question, judge

COLUMNS = 5
SIDE = 256  # of a scene as it is drawn
GAP = 22
UNDER = 42  # for the two lines under a scene
HEAD = 40
PAPER, INK, QUIET = "white", "#1c1e26", "#6b7080"
RIGHT, WRONG, TRUE, SHADE = "#1769d2", "#d5294d", "white", "#1c1e26"


@dataclass(frozen=True)
class Cell:
    """A question about a scene and its answer."""

    question: Question
    text: str
    objects: Sequence[Object]


def draw_sheet(cells: Sequence[Cell]) -> Image.Image:
    """The cells in rows of five, over each other; failures are red."""
    rows = -(-len(cells) // COLUMNS)
    width = COLUMNS * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + rows * (SIDE + UNDER + GAP)), PAPER)
    _draw_legend(ImageDraw.Draw(sheet))
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        x, y = GAP + column * (SIDE + GAP), HEAD + row * (SIDE + UNDER + GAP)
        sheet.paste(_draw_scene(cell), (x, y))
        pen = ImageDraw.Draw(sheet)
        words = failure(cell)
        if words:
            pen.rectangle((x - 4, y - 4, x + SIDE + 3, y + SIDE + 3), None, WRONG, 3)
        prompt = cell.question.prefix
        _write(pen, (x, y + SIDE + 6), prompt, INK, 17)
        color = WRONG if words else QUIET
        _write(pen, (x, y + SIDE + 26), words or _praise(cell), color, 14)
    return sheet


def _praise(cell: Cell) -> str:
    refused = cell.question.task == "detect" and not cell.question.target
    return "right, there is none" if refused else "right"


def failure(cell: Cell) -> str:
    """What is wrong with an answer, in words; nothing where it is right."""
    if cell.question.task != "detect":
        right = judge(cell.question, cell.text)
        return "" if right else f'"{cell.text.strip()}", not "{cell.question.suffix}"'
    pairs = list(pair_up(cell.objects, cell.question.target))
    found = [id(thing) for _, thing in pairs]
    missed = [thing.kind for thing in cell.question.target if id(thing) not in found]
    false = [item.label or "?" for item, thing in pairs if thing is None]
    lists = {"missed": missed, "false": false}
    return "; ".join(
        f"{word} {', '.join(some)}" for word, some in lists.items() if some
    )


def _draw_scene(cell: Cell) -> Image.Image:
    image = cell.question.scene.image
    zoom = SIDE / image.width
    picture = image.resize((SIDE, round(image.height * zoom)), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    for thing in cell.question.target:
        corners = _scale(thing.box, zoom)
        pen.rectangle([corner + 1 for corner in corners], outline=SHADE)
        pen.rectangle(corners, outline=TRUE)
    labels = []
    for item, thing in pair_up(cell.objects, cell.question.target):
        if item.valid:
            color = WRONG if thing is None else RIGHT
            corners = _scale(item.box, zoom)
            pen.rectangle(corners, outline=color, width=3)
            labels.append((corners, f"{item.label} {item.confidence:.2f}", color))
    for label in labels:  # over all boxes, so that none is crossed out
        _draw_label(pen, *label)
    return picture


def _scale(box: Iterable[float], zoom: float) -> list[int]:
    """Inside the picture, of which the box's far edges are not a part."""
    x1, y1, x2, y2 = (round(value * zoom) for value in box)
    return [x1, y1, max(x1, min(x2, SIDE) - 1), max(y1, min(y2, SIDE) - 1)]


def _draw_label(
    pen: ImageDraw.ImageDraw, corners: Sequence[int], text: str, color: str
) -> None:
    """Above the box, or in it where there is no room above."""
    font = _font(13)
    width = round(font.getlength(text)) + 8
    x = max(0, min(corners[0], SIDE - width))
    y = corners[1] - 17 if corners[1] >= 17 else corners[1]
    pen.rectangle((x, y, x + width, y + 17), fill=color)
    pen.text((x + 4, y + 8), text, "white", font, anchor="lm")


def _draw_legend(pen: ImageDraw.ImageDraw) -> None:
    x, y = GAP, HEAD // 2 - 3
    for color, width, text in (
        (RIGHT, 3, "said, and right (IoU >= 0.5)"),
        (WRONG, 3, "said, and false; or a wrong answer"),
        (SHADE, 1, "where it is"),
    ):
        pen.rectangle((x, y - 6, x + 15, y + 5), outline=color, width=width)
        pen.text((x + 22, y), text, QUIET, _font(14), anchor="lm")
        x += 22 + round(_font(14).getlength(text)) + GAP


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: str, size: int
) -> None:
    """One line, cut to the width of a scene."""
    font = _font(size)
    if font.getlength(text) > SIDE:
        while font.getlength(f"{text} ...") > SIDE:
            text = text[:-1]
        text = f"{text} ..."
    pen.text(place, text, color, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
