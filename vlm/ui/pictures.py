"""Files from strangers to RGB pictures, and pictures to what the page shows."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gradio.processing_utils import encode_pil_to_bytes, hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image, ImageDraw, ImageOps

from vlm import picture_file

LANCZOS = Image.Resampling.LANCZOS
SHOWN_EDGE = 896
MASK_EDGE = 2048  # pixels of a mask's longer side
PAINTED_EDGE = 512  # the same of one that was painted: a hand is no surer
KEPT_SECONDS = 3600  # of copies, as of uploads: see `vlm.ui.page.build`
GREY = (127, 127, 127)  # the middle of what a model takes: it says nothing


def read(path: str | os.PathLike, *, held: int = 0) -> Image.Image:
    """The picture in a file: upright, on white, RGB. ValueError says what is wrong.

    `held` is what other pictures of the request take: see `vlm.picture_file.read`.
    """
    try:
        return picture_file.read(path, held=held)
    except FileNotFoundError:
        raise ValueError(
            "This picture is no longer kept here. Choose it once more."
        ) from None


def bytes_of(image: Image.Image) -> int:
    """The bytes that an RGB picture takes in memory."""
    return 4 * image.width * image.height


def shown(image: Image.Image) -> dict:
    """A copy small enough to send, as the file entry that Gradio serves."""
    small = image
    if max(image.size) > SHOWN_EDGE:
        small = ImageOps.contain(image, (SHOWN_EDGE, SHOWN_EDGE), LANCZOS)
    return {"path": kept(small, "webp"), "meta": {"_type": "gradio.FileData"}}


def painted(
    path: str | os.PathLike, discs: Sequence[tuple[float, float, float]]
) -> str:
    """A copy of the picture with grey discs, and nothing else changed; its path.

    Discs are x, y and radius in shares of the picture's width. ValueError: see `read`.
    Such copies are removed after an hour, at the next painting.
    """
    _sweep()
    image = read(path)
    _fill(image, discs, GREY)
    return kept(image, "png")


def covered(
    discs: Sequence[tuple[float, float, float]], size: tuple[int, int]
) -> np.ndarray:
    """What such discs cover of a picture of `size` (W, H), as a mask.

    bool [rows, columns], the longer side PAINTED_EDGE.
    """
    scale = PAINTED_EDGE / max(size)
    mask = Image.new("1", tuple(max(1, round(side * scale)) for side in size))
    _fill(mask, discs, 1)
    return np.asarray(mask)


def white(image: Image.Image) -> np.ndarray:
    """The mask that is white in a picture: bool [H, W], MASK_EDGE at most."""
    grey = image.convert("L")
    grey.thumbnail((MASK_EDGE, MASK_EDGE), Image.Resampling.BOX)
    return np.asarray(grey) >= 128


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
            try:
                part.write(content)
                part.flush()
                os.replace(part.name, place)
            except OSError:  # such as a full disk
                os.unlink(part.name)
                raise
    return str(place)


def _sweep() -> None:
    """Remove old copies: no component shows them, so Gradio does not know of them."""
    for file in Path(get_upload_folder()).glob("*/image.png"):
        with contextlib.suppress(FileNotFoundError):  # somebody else's request was here
            if time.time() - file.stat().st_mtime > KEPT_SECONDS:
                file.unlink()


def _fill(
    image: Image.Image, discs: Sequence[tuple[float, float, float]], color: object
) -> None:
    pen = ImageDraw.Draw(image)
    for x, y, radius in discs:
        pen.circle((x * image.width, y * image.width), radius * image.width, fill=color)
