"""Files from strangers to RGB pictures, and pictures to what the page shows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gradio.processing_utils import encode_pil_to_bytes, hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image, ImageDraw, ImageOps

from vlm import frames, picture_file
from vlm.picture_file import FORMATS
from vlm.ui.old_files import will_be_old
from vlm.video import CLIPS

LANCZOS = Image.Resampling.LANCZOS
MAX_PICTURES = 16  # in one question
MAX_CLIP = 400_000_000  # pixels of all frames together, as all must be decoded
SHOWN_EDGE = 896
MASK_EDGE = 2048  # pixels of a mask's longer side
PAINTED_EDGE = 512  # the same of one that was painted: a hand is no surer
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


def read_all(paths: Sequence[str]) -> Image.Image | list[Image.Image]:
    """What an engine is asked about: one picture, or several in a list.

    ValueError: see `read`, or they are too large together.
    """
    images, held = [], 0
    for path in paths:
        images.append(read(path, held=held))
        held += bytes_of(images[-1])
    return images if len(images) > 1 else images[0]


def clip(path: str, most: int) -> list[str]:
    """Files of a clip's frames, evenly spread over its time, no larger than shown.

    None of a picture that does not move. ValueError: see `read`, or it is too long.
    """
    read(path)  # it says what is wrong with it
    with Image.open(path, formats=FORMATS) as opened:
        if not getattr(opened, "is_animated", False) or opened.format not in CLIPS:
            return []
        if opened.n_frames * opened.width * opened.height > MAX_CLIP:
            raise ValueError(
                f"This clip has {opened.n_frames} frames of {opened.width} x "
                f"{opened.height} pixels. Make it shorter or smaller."
            )
        taken = frames(opened, most)
    return [kept(_small(frame), "png") for frame in taken]


def bytes_of(image: Image.Image) -> int:
    """The bytes that an RGB picture takes in memory."""
    return 4 * image.width * image.height


def shown(image: Image.Image) -> dict:
    """A copy small enough to send, as the file entry that Gradio serves."""
    return {"path": kept(_small(image), "webp"), "meta": {"_type": "gradio.FileData"}}


def painted(
    path: str | os.PathLike, discs: Sequence[tuple[float, float, float]]
) -> str:
    """A copy of the picture with grey discs, and nothing else changed; its path.

    Discs are x, y and radius in shares of the picture's width. ValueError: see `read`.
    """
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
    will_be_old(place)
    try:
        os.utime(place)  # it is used, so it is not old
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.NamedTemporaryFile(dir=place.parent, delete=False)
        try:
            with part:
                part.write(content)
            os.replace(part.name, place)
        except OSError:
            os.unlink(part.name)
            raise
    return str(place)


def _fill(
    image: Image.Image, discs: Sequence[tuple[float, float, float]], color: object
) -> None:
    pen = ImageDraw.Draw(image)
    for x, y, radius in discs:
        pen.circle((x * image.width, y * image.width), radius * image.width, fill=color)


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) <= SHOWN_EDGE:
        return image
    return ImageOps.contain(image, (SHOWN_EDGE, SHOWN_EDGE), LANCZOS)
