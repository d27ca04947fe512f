"""Which files are pictures, and what such a file shows: RGB, upright, on white."""

from __future__ import annotations

import os
import warnings

from PIL import Image, UnidentifiedImageError

from vlm.image import to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000


def read(path: str | os.PathLike) -> Image.Image:
    """The picture in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or too large, too thin, or damaged.
    """
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
        raise
    except (OSError, SyntaxError, EOFError):
        raise ValueError(
            "This picture is damaged or cut short. Save it again, or take another."
        ) from None


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
