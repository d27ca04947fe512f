"""Drawings of twenty-four kinds of things, in several styles.

The embedded checkpoint learns from scenes made of these drawings.  They are kept
as one picture per style (`<style>.webp`, with alpha) and one `sprites.json` which
says where each drawing lies, so that a fresh clone needs no icon packages.

    python -m vlm.tiny.sprites ICONS                    # rebuild assets/sprites
    python -m vlm.tiny.sprites ICONS --out DIR --styles twemoji

ICONS is a folder with the npm packages `@iconify-json/<style>`.  The second line
makes a folder with a style that no training has seen, for evaluation.
"""

import argparse
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageOps

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "sprites"
STYLES = (
    *("noto", "noto-v1", "fxemoji", "fluent-emoji", "fluent-emoji-flat"),
    "fluent-emoji-high-contrast",
)
PIXELS = 96  # longest side of a drawing
COLUMNS = 6  # drawings in a row of a style's picture

# What to look for in each style.  Animals are whole bodies, because a face and a
# body under one name are two things to learn.
DRAWINGS = {
    "cat": ("cat", "black-cat"),
    "dog": ("dog",),
    "fish": ("fish", "tropical-fish"),
    "penguin": ("penguin",),
    "turtle": ("turtle",),
    "tree": ("deciduous-tree", "evergreen-tree"),
    "flower": ("blossom", "tulip"),
    "mushroom": ("mushroom",),
    "apple": ("red-apple", "green-apple"),
    "banana": ("banana",),
    "pizza": ("pizza",),
    "cup": ("hot-beverage",),
    "car": ("automobile",),
    "boat": ("sailboat",),
    "house": ("house",),
    "ball": ("soccer-ball", "basketball"),
    "elephant": ("elephant",),
    "butterfly": ("butterfly",),
    "snail": ("snail",),
    "bus": ("bus",),
    "rocket": ("rocket",),
    "star": ("star",),
    "heart": ("red-heart",),
    "cake": ("birthday-cake",),
}
# Where a style has other names, or its drawing under the usual name differs too much.
EXCEPTIONS = {
    ("noto-v1", "ball"): ("soccer-ball", "baseball"),  # its basketball is a hoop
    ("fluent-emoji", "cup"): ("hot-beverage", "teacup-without-handle"),
    ("fluent-emoji-flat", "cup"): ("hot-beverage", "teacup-without-handle"),
    ("fxemoji", "cat"): ("catside",),
    ("fxemoji", "dog"): ("dogside",),
    ("fxemoji", "fish"): ("fish", "tropicalfish"),
    ("fxemoji", "tree"): ("deciduoustree", "evergreen"),
    ("fxemoji", "apple"): ("redapple", "greenapple"),
    ("fxemoji", "pizza"): ("sliceofpizza",),
    ("fxemoji", "cup"): ("hotbeverage",),
    ("fxemoji", "house"): ("housebuilding",),
    ("fxemoji", "ball"): ("soccerball", "tennisball"),
    ("fxemoji", "butterfly"): (),
    ("fxemoji", "star"): ("whitemediumstar",),  # the usual one has rays
    ("fxemoji", "heart"): ("redheart",),
    ("fxemoji", "cake"): ("birthdaycake",),
}
# Drawn with lines alone: whatever they enclose becomes paper.
OUTLINES = {"fluent-emoji-high-contrast", "emojione-monotone"}
# This boat stands before a square of sky, which would be part of its outline.
SKIES = {("fxemoji", "sailboat"): '<path fill="#D7F4F7" '}


@dataclass(frozen=True)
class Sprite:
    """One drawing, trimmed to what is visible of it."""

    kind: str
    style: str
    image: Image.Image  # RGBA


def load_sprites(folder: str | Path = ASSETS) -> dict[str, list[Sprite]]:
    """Read a folder written by `build`: the drawings of each kind."""
    folder = Path(folder)
    entries = json.loads((folder / "sprites.json").read_text())
    sheets: dict[str, Image.Image] = {}
    sprites: dict[str, list[Sprite]] = {}
    for entry in entries:
        kind, style = entry["kind"], entry["style"]
        if style not in sheets:
            sheets[style] = Image.open(folder / f"{style}.webp").convert("RGBA")
        x, y, width, height = entry["rectangle"]
        image = sheets[style].crop((x, y, x + width, y + height))
        sprites.setdefault(kind, []).append(Sprite(kind, style, image))
    return sprites


def build(icons: str | Path, out: str | Path, styles: Iterable[str] = STYLES) -> None:
    """Draw the kinds from the icon packages; write one picture per style."""
    icons, out = Path(icons), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for style in styles:
        drawn = list(_draw_style(icons / style / "icons.json", style))
        rows = -(-len(drawn) // COLUMNS)
        sheet = Image.new("RGBA", (COLUMNS * PIXELS, rows * PIXELS))
        for number, (kind, name, image) in enumerate(drawn):
            x, y = number % COLUMNS * PIXELS, number // COLUMNS * PIXELS
            sheet.paste(image, (x, y))
            rectangle = [x, y, *image.size]
            entry = {"kind": kind, "style": style, "name": name, "rectangle": rectangle}
            entries.append(entry)
        sheet.save(out / f"{style}.webp", quality=80, method=6)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (out / "sprites.json").write_text(f"[\n{lines}\n]\n")


def _draw_style(path: Path, style: str) -> Iterator[tuple[str, str, Image.Image]]:
    icons = json.loads(path.read_text())
    for kind, usual in DRAWINGS.items():
        names = EXCEPTIONS.get((style, kind), usual)
        present = [name for name in names if name in icons["icons"]]
        if names and not present:
            raise ValueError(f"{path} has 0 of the {len(names)} drawings {names}")
        for name in present:
            image = _draw(icons, name, SKIES.get((style, name)))
            image = _fill(image) if style in OUTLINES else image
            yield kind, name, _trim(image)


def _draw(icons: dict, name: str, sky: str | None) -> Image.Image:
    import resvg_py  # only needed to rebuild the pictures

    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    body = icon["body"]
    if sky is not None:
        start = body.index(sky)
        body = body[:start] + body[body.index("/>", start) + 2 :]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    large = resvg_py.svg_to_bytes(svg_string=svg, width=4 * PIXELS)
    return Image.open(io.BytesIO(bytes(large))).convert("RGBA")


def _fill(image: Image.Image) -> Image.Image:
    """Lay white paper under a line drawing, as far as its lines enclose."""
    open_air = ImageOps.expand(image.getchannel("A"), 1)  # a way round the drawing
    ImageDraw.floodfill(open_air, (0, 0), 255, thresh=128)
    lines = image.getchannel("A").point(lambda alpha: 255 * (alpha > 128))
    outside = ImageChops.subtract(ImageOps.crop(open_air, 1), lines)
    paper = Image.new("RGBA", image.size, "white")
    paper.putalpha(outside.point(lambda value: 255 * (value < 255)))
    return Image.alpha_composite(paper, image)


def _trim(image: Image.Image) -> Image.Image:
    # Faint shadows do not count as a part of the thing.
    visible = image.getchannel("A").point(lambda alpha: 255 * (alpha > 64))
    image = image.crop(visible.getbbox())
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    return image


def main() -> None:
    """Rebuild the pictures from the icon packages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("icons", type=Path)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--styles", nargs="+", default=STYLES)
    arguments = parser.parse_args()
    build(arguments.icons, arguments.out, arguments.styles)
    sprites = load_sprites(arguments.out)
    counts = Counter({kind: len(drawings) for kind, drawings in sprites.items()})
    print(f"{counts.total()} drawings of {len(counts)} kinds: {dict(counts)}")


if __name__ == "__main__":
    main()
