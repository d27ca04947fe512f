"""Scenes: drawings of known things at known places, made faster than they are learnt.

    stock = Stock(load_sprites())
    scene = compose(np.random.default_rng(0), stock)

A `Stock` keeps every drawing at a few sizes and in a few hues, and a pool of
backgrounds, so that a scene is one crop, one affine map per thing and one blend.

    python -m vlm.tiny.scenes --sheet OUT.png

draws 48 scenes with their boxes and names.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from vlm.tiny.backgrounds import PIXELS as GROUND
from vlm.tiny.backgrounds import make_backgrounds
from vlm.tiny.sprites import ASSETS, OUTLINES, Sprite, load_sprites

COUNTS = (0.03, 0.23, 0.26, 0.22, 0.13, 0.08, 0.05)  # chances of 0, 1 .. 6 things
REPEAT = 0.3  # chance that a further thing is of a kind already there
# Longest side, of the scene, by number of things.
LARGEST = (0.85, 0.6, 0.57, 0.5, 0.45, 0.42)
SMALLEST = 0.22
HIDDEN = 0.25  # how much of a thing later ones may cover
TRIES = 8  # places tried for a thing before it is left out
PLAIN = 0.15  # share of white and grey backgrounds
LEVELS = (96, 68, 48, 34, 24)  # longest sides at which a drawing is kept
HUES = 12  # steps in a full turn of the hue
SKETCHED = 0.1  # share of things whose drawing is reduced to its lines
SKETCH = -1  # instead of a hue
WEATHER = 0.3  # share of scenes in another light
# A car may be of any colour; a banana or a cat may not.
COLORABLE = {
    *("ball", "boat", "car", "cup", "fish", "flower", "house", "mushroom"),
    *("butterfly", "bus", "star", "heart"),
}
COLORS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    *("black", "white", "grey"),
)


@dataclass(frozen=True)
class Thing:
    """Something to be seen in a scene; the box is that of its visible pixels."""

    kind: str
    style: str
    box: tuple[float, float, float, float]  # x1, y1, x2, y2
    color: str | None  # one of COLORS, None where none prevails
    visible: float  # the share of it that no other thing covers
    mask: np.ndarray | None = None  # bool, as large as the scene


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it, the farthest first."""

    image: Image.Image
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Look:
    """A drawing in one hue, premultiplied by its alpha, at each of the LEVELS."""

    style: str
    color: str | None
    levels: tuple[Image.Image, ...]


class Stock:
    """What scenes are made of: drawings by size and hue, and backgrounds."""

    def __init__(
        self, sprites: dict[str, list[Sprite]], *, backgrounds: int = 200, seed: int = 0
    ) -> None:
        self.sprites = sprites
        self.kinds = tuple(sprites)
        self.backgrounds = make_backgrounds(np.random.default_rng(seed), backgrounds)
        self._looks: dict[tuple[str, int, int], Look] = {}

    def look(self, kind: str, number: int, hue: int) -> Look:
        """Drawing `number` of a kind, its hue turned by `hue` of HUES steps.

        With SKETCH for the hue, only its lines on white.
        """
        key = kind, number, hue
        if key not in self._looks:
            self._looks[key] = _make_look(self.sprites[kind][number], hue)
        return self._looks[key]


def compose(
    rng: np.random.Generator,
    stock: Stock,
    *,
    size: int = 128,
    kinds: Sequence[str] | None = None,
    masks: bool = False,
) -> Scene:
    """Make a scene of `size` pixels; the same state of `rng` makes the same scene.

    `kinds` narrows what may be in it, for a learner that starts with a few.
    """
    canvas = _draw_background(rng, stock.backgrounds, size)
    owner = np.zeros((size, size), np.uint8)  # the number of the thing seen there
    looks: list[tuple[str, Look]] = []
    whole: list[int] = []  # pixels of each thing, were it alone
    chosen = _choose_kinds(rng, stock.kinds if kinds is None else kinds)
    for kind in chosen:
        number = int(rng.integers(len(stock.sprites[kind])))
        look = stock.look(kind, number, _choose_hue(rng, kind))
        patch = _pose(rng, look, size, LARGEST[len(chosen) - 1])
        if _place(rng, patch, canvas, owner, whole):
            looks.append((kind, look))
    if rng.random() < WEATHER:
        canvas = _change_light(rng, canvas)
    things = []
    for number, (kind, look) in enumerate(looks, 1):
        mask = owner == number
        visible = int(np.count_nonzero(mask)) / whole[number - 1]
        thing = Thing(kind, look.style, _box(mask), look.color, visible)
        things.append(replace(thing, mask=mask) if masks else thing)
    return Scene(Image.fromarray(canvas), tuple(things))


def _choose_kinds(rng: np.random.Generator, kinds: Sequence[str]) -> list[str]:
    count = int(np.searchsorted(np.cumsum(COUNTS), rng.random()))
    chosen: list[str] = []
    for _ in range(min(count, len(COUNTS) - 1)):
        repeat = chosen and rng.random() < REPEAT
        pool = chosen if repeat else kinds
        chosen.append(pool[int(rng.integers(len(pool)))])
    return chosen


def _choose_hue(rng: np.random.Generator, kind: str) -> int:
    if rng.random() < SKETCHED:
        return SKETCH
    turned = kind in COLORABLE and rng.random() < 0.5
    return int(rng.integers(HUES)) if turned else 0


def _change_light(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Dim or brighten, tint a little, flatten or deepen the contrast."""
    gain = rng.uniform(0.6, 1.25) * rng.uniform(0.9, 1.1, 3)
    lift = rng.uniform(-25, 40)
    curve = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)
    return np.stack([curve[canvas[..., c], c] for c in range(3)], axis=2)


def _draw_background(
    rng: np.random.Generator, backgrounds: np.ndarray, size: int
) -> np.ndarray:
    if rng.random() < PLAIN:
        shade = 255 if rng.random() < 0.5 else int(rng.integers(90, 255))
        return np.full((size, size, 3), shade, np.uint8)
    picture = backgrounds[int(rng.integers(len(backgrounds)))]
    side = min(size, GROUND)
    y, x = rng.integers(GROUND - side + 1, size=2)
    picture = picture[y : y + side, x : x + side]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    tint = rng.integers(190, 257, 3).astype(np.uint16)
    picture = (picture * tint >> 8).astype(np.uint8)
    if side < size:
        picture = np.asarray(Image.fromarray(picture).resize((size, size))).copy()
    return picture


def _pose(
    rng: np.random.Generator, look: Look, size: int, largest: float
) -> np.ndarray:
    """The drawing as it will stand in the scene: premultiplied RGBA, uint16."""
    longest = size * rng.uniform(SMALLEST, largest)
    fitting = [level for level in look.levels if max(level.size) - 2 >= longest]
    source = fitting[-1] if fitting else look.levels[0]
    scale = longest / (max(source.size) - 2)
    aspect = math.sqrt(rng.uniform(0.88, 1.12))
    across, down = scale * aspect, scale / aspect
    turned = rng.random() < 0.5
    angle = math.radians(rng.uniform(-20, 20)) if turned else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    wide, high = across * source.width, down * source.height
    width = min(size, math.ceil(wide * cos + high * abs(sin)))
    height = min(size, math.ceil(wide * abs(sin) + high * cos))
    if rng.random() < 0.5:
        across = -across
    # PIL asks where an output pixel comes from: undo the turn, then the scale.
    a, b, c, d = cos / across, sin / across, -sin / down, cos / down
    x = source.width / 2 - a * width / 2 - b * height / 2
    y = source.height / 2 - c * width / 2 - d * height / 2
    posed = source.transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, x, c, d, y),
        Image.Resampling.BILINEAR,
    )
    patch = np.array(posed, np.uint16)
    light = int(128 * rng.uniform(0.8, 1.12))  # times 255 it still fits 16 bits
    patch[..., :3] = np.minimum(patch[..., :3] * light >> 7, patch[..., 3:])
    return patch


def _place(
    rng: np.random.Generator,
    patch: np.ndarray,
    canvas: np.ndarray,
    owner: np.ndarray,
    whole: list[int],
) -> bool:
    """Blend the patch in at a place where it hides no earlier thing too much."""
    height, width = patch.shape[:2]
    solid = patch[..., 3] > 127
    least = (1 - HIDDEN) * np.array(whole)  # what must stay visible of each thing
    seen = np.bincount(owner.ravel(), minlength=len(whole) + 1)[1:]
    for _ in range(TRIES):
        y = int(rng.integers(len(canvas) - height + 1))
        x = int(rng.integers(len(canvas) - width + 1))
        here = np.s_[y : y + height, x : x + width]
        covered = np.bincount(owner[here][solid], minlength=len(whole) + 1)[1:]
        if (seen - covered >= least).all():
            through = canvas[here] * (255 - patch[..., 3:])
            canvas[here] = patch[..., :3] + (through + 127) // 255
            whole.append(int(np.count_nonzero(solid)))
            owner[here][solid] = len(whole)
            return True
    return False


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    xs, ys = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def _make_look(sprite: Sprite, hue: int) -> Look:
    image = sprite.image
    if hue == SKETCH:
        image = _sketch(image)
    elif hue:
        image = _turn_hue(sprite, hue)
    # Lines on paper: whether they are black or white is nothing that one would ask.
    lines = hue == SKETCH or sprite.style in OUTLINES
    color = None if lines else name_color(image)
    levels = []
    for longest in LEVELS:
        scale = longest / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        # A transparent rim lets the affine map draw soft edges.
        level = Image.new("RGBA", (width + 2, height + 2))
        level.paste(image.resize((width, height), Image.Resampling.LANCZOS), (1, 1))
        levels.append(level.convert("RGBa"))
    return Look(sprite.style, color, tuple(levels))


def _sketch(image: Image.Image) -> Image.Image:
    """Dark lines on white, where the brightness of a drawing jumps or it ends."""
    alpha = np.array(image.getchannel("A"), float)
    grey = np.array(image.convert("L"), float)
    # Beyond its edge the drawing goes on as black, so that the edge is a line too.
    grey = np.pad(np.where(alpha > 127, grey + 128, 0), 1)
    jump = np.hypot(grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1])
    shade = 255 - np.clip(3 * (jump - 16), 0, 235)
    bands = [Image.fromarray(shade.astype(np.uint8))] * 3
    return Image.merge("RGBA", [*bands, image.getchannel("A")])


def _turn_hue(sprite: Sprite, hue: int) -> Image.Image:
    image, turn = sprite.image, np.uint8(hue * 256 // HUES)
    h, s, v = np.split(np.array(image.convert("RGB").convert("HSV")), 3, axis=2)
    leaf = (sprite.kind == "flower") & (h > 45) & (h < 125) & (s > 80)
    h = np.where(leaf, h, h + turn)
    solid = np.array(image.getchannel("A")) > 127
    if s[solid].mean() < 70:  # white and grey drawings have no hue to turn: dye them
        h, s = np.where(leaf, h, turn), np.maximum(s, 160)
    turned = Image.fromarray(np.concatenate([h, s, v], 2), "HSV").convert("RGB")
    turned.putalpha(image.getchannel("A"))
    return turned


def name_color(image: Image.Image) -> str | None:
    """The colour that at least 45 % of the visible pixels of an RGBA picture have."""
    solid = np.array(image.getchannel("A")) > 127
    hsv = np.array(image.convert("RGB").convert("HSV"))[solid].astype(float)
    h, s, v = hsv[:, 0] * 360 / 256, hsv[:, 1] / 255, hsv[:, 2] / 255
    turns = np.array([18, 40, 64, 172, 246, 292, 345])  # where the next hue begins
    hues = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "red")
    votes = np.array([COLORS.index(hue) for hue in hues])[np.searchsorted(turns, h)]
    dull = (v < 0.68) | (s < np.where(v < 0.85, 0.66, 0.58))
    votes[(h >= 8) & (h < 46) & dull & (s > 0.25)] = COLORS.index("brown")
    votes[((h < 12) | (h > 330)) & (s < 0.55) & (v > 0.8)] = COLORS.index("pink")
    votes[s < 0.16] = COLORS.index("grey")
    votes[(s < 0.16) & (v > 0.84)] = COLORS.index("white")
    votes[(v < 0.24) | (v < 0.36) & (s < 0.25)] = COLORS.index("black")
    counts = np.bincount(votes, minlength=len(COLORS))
    most = int(counts.argmax())
    return COLORS[most] if counts[most] >= 0.45 * len(votes) else None


def draw_sheet(stock: Stock, *, columns: int = 8, rows: int = 6) -> Image.Image:
    """Many scenes with boxes, names and colours, for a look by eye."""
    rng, side = np.random.default_rng(0), 256
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for number in range(columns * rows):
        scene = compose(rng, stock)
        zoom = (side - 4) / scene.image.width
        image = scene.image.resize((side - 4, side - 4), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for thing in scene.things:
            x1, y1, x2, y2 = (zoom * value for value in thing.box)
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline="#e4003a", width=2)
            text = f" {thing.color or '-'} {thing.kind} "
            pen.rectangle(pen.textbbox((x1, y1), text), fill="#e4003a")
            pen.text((x1, y1), text, fill="white")
        sheet.paste(image, (number % columns * side, number // columns * side))
    return sheet


def main() -> None:
    """Draw a contact sheet of scenes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sheet", required=True)
    parser.add_argument("--sprites", default=ASSETS)
    arguments = parser.parse_args()
    draw_sheet(Stock(load_sprites(arguments.sprites))).save(arguments.sheet)


if __name__ == "__main__":
    main()
