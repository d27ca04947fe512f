"""Procedural backgrounds: walls, woods, skies and patterns to put things on.

They are drawn, not photographed, so that no licence comes with them.  They matter
because a model which has only seen things on white paper finds nothing elsewhere.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

PIXELS = 192


def make_backgrounds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw `count` backgrounds, kind after kind: uint8, count x PIXELS x PIXELS x 3."""
    pictures = [PAINTERS[i % len(PAINTERS)](rng) for i in range(count)]
    return np.stack([np.clip(picture, 0, 255).astype(np.uint8) for picture in pictures])


def _flat(rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(_color(rng), (PIXELS, PIXELS, 3))


def _gradient(rng: np.random.Generator) -> np.ndarray:
    along = _ramp(rng.uniform(0, 2 * math.pi))
    along = (along - along.min()) / np.ptp(along)
    return _mix(_color(rng), _color(rng), along)


def _glow(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS - rng.uniform(0.2, 0.8, (2, 1, 1))
    return _mix(_color(rng), _color(rng), np.clip(np.hypot(y, x) * 1.4, 0, 1))


def _clouds(rng: np.random.Generator) -> np.ndarray:
    noise = _noise(rng, 3) + 0.5 * _noise(rng, 8) + 0.25 * _noise(rng, 24)
    return _mix(_color(rng), _color(rng), np.clip(noise / 1.5, 0, 1))


def _grain(rng: np.random.Generator) -> np.ndarray:
    shade = rng.normal(0, rng.uniform(4, 22), (PIXELS, PIXELS, 1))
    return _clouds(rng) * 0.3 + _color(rng) * 0.7 + shade


def _stripes(rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(_ramp(rng.uniform(0, math.pi)) * rng.uniform(6, 40))
    edge = rng.uniform(1, 12)  # from soft waves to hard lines
    return _mix(*_near_colors(rng), np.clip(0.5 + edge * wave, 0, 1))


def _checker(rng: np.random.Generator) -> np.ndarray:
    cell, angle = rng.uniform(8, 32), rng.choice([0.0, math.pi / 4])
    rows, columns = _ramp(angle), _ramp(angle + math.pi / 2)
    squares = np.floor(rows * PIXELS / cell) + np.floor(columns * PIXELS / cell)
    return _mix(*_near_colors(rng), squares % 2)


def _dots(rng: np.random.Generator) -> np.ndarray:
    step, radius = rng.uniform(12, 36), rng.uniform(0.12, 0.4)
    y, x = np.mgrid[:PIXELS, :PIXELS] / step % 1 - 0.5
    inside = np.clip((radius - np.hypot(y, x)) * step, 0, 1)
    return _mix(*_near_colors(rng), inside)


def _landscape(rng: np.random.Generator) -> np.ndarray:
    y = np.mgrid[:PIXELS, :PIXELS][0] / PIXELS
    sky = _mix(_shade(rng, (120, 180, 235)), _shade(rng, (225, 235, 245)), y)
    clouds = np.clip(_noise(rng, 5) * 2 - 1.1, 0, 1)
    picture = sky + (255 - sky) * clouds[..., None] * rng.uniform(0, 0.9)
    horizon = rng.uniform(0.35, 0.75)
    for tint in ((120, 150, 170), (110, 160, 80)):
        hills = horizon + 0.25 * (_noise(rng, 4)[0] - 0.5)
        ground = _shade(rng, tint) + 25 * (_noise(rng, 40)[..., None] - 0.5)
        picture = np.where((y > hills)[..., None], ground, picture)
        horizon += rng.uniform(0.05, 0.2)
    return picture


def _wood(rng: np.random.Generator) -> np.ndarray:
    planks = int(rng.integers(1, 7))
    y = np.mgrid[:PIXELS, :PIXELS][0] / PIXELS * planks
    fibre = np.sin(_noise(rng, 3, 14) * rng.uniform(20, 50)) * 0.5 + 0.5
    dark, light = _shade(rng, (140, 95, 55)), _shade(rng, (205, 160, 110))
    picture = _mix(light, dark, fibre * rng.uniform(0.2, 0.7))
    picture += rng.normal(0, 12, planks + 1)[y.astype(int)][..., None]
    picture *= np.where(y % 1 < 0.03 * planks, 0.7, 1)[..., None]
    return picture if rng.random() < 0.5 else picture.transpose(1, 0, 2)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    high = rng.uniform(12, 30)
    wide = high * rng.uniform(1.6, 2.6)
    y, x = np.mgrid[:PIXELS, :PIXELS]
    row = np.floor(y / high)
    x = x + row % 2 * wide / 2
    column = np.floor(x / wide)
    mortar = (y % high < high * 0.1) | (x % wide < high * 0.1)
    each = np.sin(row * 127.1 + column * 311.7) * rng.uniform(5, 22)
    bricks = _shade(rng, (170, 90, 70), 40) + each[..., None]
    bricks = bricks + 20 * (_noise(rng, 48)[..., None] - 0.5)
    return np.where(mortar[..., None], _shade(rng, (205, 200, 190)), bricks)


def _shapes(rng: np.random.Generator) -> np.ndarray:
    """Plain shapes which are no things: not all that is round is a ball."""
    image = Image.new("RGB", (PIXELS, PIXELS), tuple(_color(rng).astype(int)))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 12))):
        x, y = rng.uniform(-20, PIXELS, 2)
        w, h = rng.uniform(8, 70, 2)
        fill = tuple(_color(rng).astype(int))
        draw = rng.choice([pen.ellipse, pen.rectangle, pen.line])
        options = {"width": 4} if draw == pen.line else {}
        draw((x, y, x + w, y + h), fill=fill, **options)
    return np.asarray(image)


PAINTERS = (
    *(_flat, _gradient, _glow, _clouds, _grain, _stripes, _checker, _dots),
    *(_landscape, _wood, _bricks, _shapes, _landscape),
)


def _color(rng: np.random.Generator) -> np.ndarray:
    """Any colour, pale and dull ones more often than loud ones."""
    grey = rng.uniform(40, 255)
    return np.clip(grey + rng.normal(0, 1, 3) * rng.uniform(5, 70), 0, 255)


def _near_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours for a pattern, mostly close ones: real walls do not flicker."""
    first = _color(rng)
    return first, first + (_color(rng) - first) * rng.uniform(0.2, 0.8)


def _shade(
    rng: np.random.Generator, color: tuple[int, int, int], spread: float = 18
) -> np.ndarray:
    return np.array(color) * rng.uniform(0.7, 1.1) + rng.normal(0, spread, 3)


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share[..., None]


def _ramp(angle: float) -> np.ndarray:
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    return x * math.cos(angle) + y * math.sin(angle)


def _noise(rng: np.random.Generator, columns: int, rows: int = 0) -> np.ndarray:
    """Smooth noise in 0..1 from a coarse grid."""
    grid = rng.random((rows or columns, columns)).astype(np.float32)
    smooth = Image.fromarray(grid).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float64)
