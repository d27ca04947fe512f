"""Framing: which part of an image a tower sees, and on what scale its grey levels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm.hub import FRAMING
from vlm.image import standardized, to_rgb
from vlm.weights import read_json

STRIP = 16  # times as long as wide


@dataclass(frozen=True)
class Framing:
    """Shrink or enlarge the shorter side to `edge`, keep the middle, a square.

    Attributes:
        size: pixels along a side of the square.
        edge: at least `size`.
        mean, std: of the channels, where black is 0 and white 1.
    """

    size: int
    edge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, size: int) -> Framing:
        """What preprocessor_config.json says; OpenAI's CLIP where there is none.

        Args:
            size: of the images that the tower takes.
        Raises:
            ValueError: it asks for something else than is done here.
        """
        path = folder / FRAMING
        raw = {**OPENAI, **(read_json(path) if path.is_file() else {})}
        edge = _number(raw["size"] or size, "shortest_edge", path)
        crop = _number(raw["crop_size"] or size, "height", path)
        known = {key: raw[key] for key in DONE}
        if known != DONE or crop != size or edge < size:
            raise ValueError(
                f"{path} asks for {known}, a shorter side of {edge} and a square of "
                f"{crop}; here it is {DONE}, and a square of {size} out of no less"
            )
        return cls(size, edge, tuple(raw["image_mean"]), tuple(raw["image_std"]))

    def pixels(self, image: Image.Image) -> Tensor:
        """The image as the tower takes it: float32 [1, 3, size, size].

        Equals transformers' CLIPImageProcessorPil for RGB images up to 16 times as long
        as wide; of longer ones only the middle is enlarged, which moves it by less than
        a pixel.

        Raises:
            ValueError: not an image.
        """
        image = _middle(to_rgb(image))
        width, height = (side * self.edge // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        square = image.crop((left, top, left + self.size, top + self.size))
        mean, std = (torch.tensor(x)[:, None, None] for x in (self.mean, self.std))
        return standardized(square, mean, std)

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square as x1, y1, x2, y2 in parts of an upright image's sides."""
        part = self.size / self.edge * min(width, height)
        x, y = part / width, part / height
        return (1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2


# What preprocessor_config.json means when it leaves something out, and what is done.
DONE = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "resample": Image.Resampling.BICUBIC.value,
}
OPENAI = {
    **DONE,
    "size": 0,  # as large as the tower's images
    "crop_size": 0,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _number(size: int | dict[str, Any], key: str, path: Path) -> int:
    """A size, which old files have as a mere number."""
    if isinstance(size, int):
        return size
    sides = [size[name] for name in (key, "width") if size.get(name) is not None]
    if key not in size or len(set(sides)) != 1:
        raise ValueError(f"{path} has a size of {size}; a {key} was expected")
    return sides[0]


def _middle(image: Image.Image) -> Image.Image:
    """A long strip without its ends, which would be enlarged, only to be cut off."""
    short, long = sorted(image.size)
    if long <= STRIP * short:
        return image
    width, height = (min(side, STRIP * short) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
