"""Files from strangers to RGB pictures, and pictures to what the page shows."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from gradio.processing_utils import encode_pil_to_bytes, hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image, ImageDraw, UnidentifiedImageError

from vlm.image import to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
SHOWN_EDGE = 896
GREY = (127, 127, 127)  # the middle of what a model takes: it says nothing


def read(path: str | os.PathLike) -> Image.Image:
    """The picture in a file: upright, on white, RGB. ValueError says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_size(*image.size)
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError:
        kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF"
        raise ValueError(f"This file is not a picture. Take a {kinds} file.") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("more than 178 million")) from None
    except FileNotFoundError:
        raise ValueError(
            "This picture is no longer kept here. Choose it once more."
        ) from None
    except (OSError, SyntaxError, EOFError):
        raise ValueError(
            "This picture is damaged or cut short. Save it again, or take another."
        ) from None


def shown(image: Image.Image) -> dict:
    """A copy small enough to send, as the file entry that Gradio serves."""
    small = image.copy()
    small.thumbnail((SHOWN_EDGE, SHOWN_EDGE), Image.Resampling.LANCZOS)
    return {"path": kept(small, "webp"), "meta": {"_type": "gradio.FileData"}}


def painted(
    path: str | os.PathLike, discs: Sequence[tuple[float, float, float]]
) -> str:
    """A copy of the picture with grey discs, and nothing else changed; its path.

    Discs are x, y and radius in shares of the picture's width. ValueError: see `read`.
    """
    image = read(path).copy()
    pen = ImageDraw.Draw(image)
    for x, y, radius in discs:
        pen.circle((x * image.width, y * image.width), radius * image.width, fill=GREY)
    return kept(image, "png")


def kept(image: Image.Image, format: str) -> str:
    """A file in Gradio's cache, which serves no others, named by what is in it.

    It appears whole: somebody else's request may be sending the same one just now.
    """
    content = encode_pil_to_bytes(image, format)
    place = Path(get_upload_folder(), hash_bytes(content), f"image.{format}")
    try:
        os.utime(place)  # it is used, so it is not old
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as part:
            part.write(content)
        os.replace(part.name, place)
    return str(place)


def _check_size(width: int, height: int) -> None:
    # The header tells the size, so nothing has been decoded yet.
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(f"{width} x {height}"))
    if min(width, height) < 8 or max(width, height) > 50 * min(width, height):
        raise ValueError(
            f"This picture is {width} x {height} pixels, too thin to see anything. "
            "Take one with at least 8 pixels and no more than 50 times wider than high."
        )


def _too_large(size: str) -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"This picture has {size} pixels; at most {limit} million. Make it smaller."
