"""Pixels to tensor, and patches back to pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Modes of 16 bits per pixel, in any byte order.
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
EXIF = 2**17  # bytes of it that are looked at
STRIP = 250_000  # pixels that are converted at once
# What makes an image upright, by EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pixels(image: Image.Image, size: int, *, channels: int = 3) -> Tensor:
    """The image as the vision tower takes it: float32 [1, channels, size, size], -1..1.

    Squeezed to a square, whatever its aspect, by Pillow's bicubic filter: other
    libraries' bicubic differs from it by grey levels. The rest is transformers'
    SiglipImageProcessor, and equals it for RGB images.

    Raises:
        ValueError: not an image, or neither 1 nor 3 channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels, not {channels}")
    square = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    if channels == 1:
        square = square.convert("L")
    return standardized(square)


def standardized(
    image: Image.Image, mean: Tensor | float = 0.5, std: Tensor | float = 0.5
) -> Tensor:
    """Grey levels of 0..255 as float32 [1, C, H, W]: of 0..1, less mean, over std.

    Args:
        mean, std: for all channels, or [C, 1, 1].
    """
    values = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
    values = values.permute(2, 0, 1)[None].to(torch.float32)
    return (values * (1 / 255) - mean) / std


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as a person would see it: upright, opaque, 8 bits per channel.

    The first frame of an animation; turned by its EXIF orientation; transparency over
    white; 16-bit and float pixels scaled to 0..255 instead of clipped. The image
    itself is left as it is (and is returned if there is nothing to do).

    Raises:
        ValueError: not a Pillow image, empty, or unreadable.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(  # noqa: TRY004 - as all that a caller did wrong
            f"expected a PIL image, got {type(image).__name__}; PIL.Image.open(path) "
            "reads a file, PIL.Image.fromarray(array) takes an array"
        )
    if 0 in image.size:
        raise ValueError(f"the image is empty: {image.width} x {image.height} pixels")
    try:
        image = _upright(_first_frame(image))
        opaque = not image.has_transparency_data
        return image if image.mode == "RGB" and opaque else _converted(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"the image cannot be read ({error}); save it again as PNG or JPEG"
        ) from error


def patch_box(
    row: int, column: int, *, grid: int, size: tuple[int, int], seen: float = 1.0
) -> tuple[float, float, float, float]:
    """Where a patch lies: x1, y1, x2, y2 in pixels of an image of `size` (W, H).

    The model sees the image squeezed to a square, so a patch is a rectangle of the
    original's aspect. `seen` is the part of a side that patches cover: if the patch
    does not divide the model's image size, the last pixels are not looked at
    (`seen = grid * patch_size / image_size`).

    Raises:
        ValueError: no such patch.
    """
    if not (0 <= row < grid and 0 <= column < grid):
        raise ValueError(f"patch ({row}, {column}) is not on a grid of {grid} x {grid}")
    width, height = (side * seen / grid for side in size)
    return column * width, row * height, (column + 1) * width, (row + 1) * height


def image_key(image: Image.Image) -> str:
    """A name for what the model sees of an image: same pixels, same key (32 digits).

    Taken after `to_rgb`, so palette, orientation, transparency and frame count, and
    the file's name and format do not.

    Raises:
        ValueError: see `to_rgb`.
    """
    image = to_rgb(image)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{image.mode} {image.width} {image.height} ".encode())
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.hexdigest()


def _first_frame(image: Image.Image) -> Image.Image:
    current = image.tell()
    if current == 0:
        image.load()
        return image
    image.seek(0)
    try:
        return image.copy()
    finally:
        image.seek(current)


def _upright(image: Image.Image) -> Image.Image:
    """Turned by EXIF. ImageOps.exif_transpose writes the other tags anew, and raises
    where one of them is damaged; here only the orientation has to be readable."""
    told = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    try:
        # Of more than this, entries may name the same bytes over and over.
        turn = TURNS.get(image.getexif().get(0x0112)) if len(told) <= EXIF else None
    except SyntaxError:
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    # What said how to turn it must not stay, or the image would be turned once more.
    kept = {"transparency"} & image.info.keys()
    turned.info = {key: image.info[key] for key in kept}
    return turned


def _converted(image: Image.Image) -> Image.Image:
    """As opaque RGB. Strip by strip: at once, each step would hold the whole of it."""
    deep = image.mode in (*SIXTEEN_BITS, "I", "F")
    grey = _range(image) if deep else None
    whole, top = Image.new("RGB", image.size), 0
    for strip in _strips(image):
        if grey:
            strip = Image.fromarray(_eight_bits(_values(strip), *grey))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip)
        whole.paste(strip.convert("RGB"), (0, top))
        top += strip.height
    return whole


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image from top to bottom, some rows at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _range(image: Image.Image) -> tuple[float, float]:
    """Black and white of 16-bit, 32-bit or float grey levels.

    White is the type's largest value where the type tells (16 bits: 65535) and the
    conventional one where the values fit it (floats 0..1; 0..255; 0..65535). Anything
    else, such as a height map in metres, goes from its least to its greatest.
    """
    whites = {"I": (255, 65535), "F": (1, 255)}.get(image.mode, (65535,))
    ends = [(x.min(), x.max()) for x in map(_values, _strips(image))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return next(((0, w) for w in whites if low >= 0 and high <= w), (low, high))


def _values(image: Image.Image) -> np.ndarray:
    """float64 [H, W]; what is no number is 0."""
    return np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)


def _eight_bits(values: np.ndarray, black: float, white: float) -> np.ndarray:
    scale = 255 / (white - black or 1)  # all the same: black
    return np.round((values - black) * scale).astype(np.uint8)
