"""Which files are pictures, and what such a file shows: RGB, upright, on white."""

from __future__ import annotations

import os
import warnings

from PIL import Image, UnidentifiedImageError

from vlm.image import to_rgb
from vlm.picture_parts import is_crowded

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 100 * 2**20  # of a file; on the page, an upload's bound is lower
MAX_PIXELS = 25_000_000
MEMORY = 250_000_000  # bytes that the reading of pictures may take at its peak
# TIFF's tags of a tile's width and height. A tile is decoded whole, however small the
# picture is that it is a part of.
TILE = 322, 323


def read(path: str | os.PathLike, *, held: int = 0) -> Image.Image:
    """The picture in a file. Nothing is decoded before its header has been judged.

    Args:
        held: bytes that the pictures take which are read already, of the same request.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or too large, too thin, or damaged.
    """
    try:
        fault = _fault_of_file(path)
        if not fault:
            with warnings.catch_warnings():
                # They tell of large and of damaged files, which are judged here.
                warnings.simplefilter("ignore")
                with Image.open(path, formats=FORMATS) as image:
                    fault = _fault(image, MEMORY - held)
                    if not fault:
                        return to_rgb(image)
    except (FileNotFoundError, MemoryError):
        raise
    except UnidentifiedImageError:
        kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF"
        raise ValueError(f"This file is not a picture. Take a {kinds} file.") from None
    except Image.DecompressionBombError:
        fault = _too_large("more than 178 million", MAX_PIXELS)
    except Exception as error:  # a decoder raises whatever damage makes it stumble over
        raise ValueError(
            "This picture is damaged or cut short. Save it again, or take another."
        ) from error
    raise ValueError(fault)


def _fault_of_file(path: str | os.PathLike) -> str:
    """What is wrong with a file whatever it shows, as a sentence; or nothing."""
    if (size := os.path.getsize(path)) > MAX_BYTES:
        megabytes = f"{size >> 20} MB; at most {MAX_BYTES >> 20} MB"
        return f"This file has {megabytes}. Save it as JPEG or WebP."
    if is_crowded(path):
        return "This file has far too many parts. Save it again, as PNG or JPEG."
    return ""


def _fault(image: Image.Image, memory: int) -> str:
    """What is wrong with a picture by its header, as a sentence; or nothing.

    `memory` is what its reading may take, in bytes.
    """
    width, height = image.size
    most = min(MAX_PIXELS, memory // _cost(image))
    if width * height > most:
        return _too_large(f"{width} x {height}", most)
    if any(tile[0] == "bmp_rle" for tile in image.tile):
        # Its decoder is Python's, and would take a minute for some MB.
        return "This picture is a compressed BMP. Save it again, as PNG or JPEG."
    if image.format == "TIFF":
        columns, rows = (image.tag_v2.get(tag, 1) for tag in TILE)
        if columns * rows > most:
            return _too_large(f"tiles of {columns} x {rows}", most)
    if min(width, height) < 8 or max(width, height) > 50 * min(width, height):
        return (
            f"This picture is {width} x {height} pixels, too thin to see anything. "
            "Take one with at least 8 pixels and no more than 50 times wider than high."
        )
    return ""


def _cost(image: Image.Image) -> int:
    """Bytes per pixel at the peak of reading, rounded up; measured.

    WebP's decoder keeps three canvases; a progressive JPEG all its coefficients. The
    others need the picture, the picture turned, and the picture as RGB.
    """
    if image.format == "WEBP":
        return 18
    return 10 if image.format == "JPEG" and image.mode != "CMYK" else 12


def _too_large(size: str, most: int) -> str:
    limit = f"at most {most / 1e6:.3g} million of its kind"
    return f"This picture has {size} pixels; {limit}. Make it smaller."
