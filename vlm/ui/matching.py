"""Pictures and texts that are matched: what is asked, and what a pair says to it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlm.tap import Tap, Weights
from vlm.ui import pictures
from vlm.ui.callers import sent
from vlm.ui.prompts import visible
from vlm.ui.zero import on_gpu

MAX_PICTURES = 8
MAX_TEXTS = 12
MAX_CHARACTERS = 200  # of a text
KEPT_SIDE = 1024  # pixels of a picture's shorter side, at least


@dataclass(frozen=True, eq=False)
class Match:
    """What a pair makes of I pictures and T texts.

    Attributes:
        cosines: float32 [I, T], of the angles between their vectors.
        scale, bias: what makes logits of cosines, scale cos + bias; a pair without a
            bias, a CLIP, was never taught what a sigmoid of them means.
        logits, sigmoid, softmax: float32 [I, T]; see `vlm.Pair.scores`.
        looks: float32 [I, rows, columns], the attention that the one of `looker` pays
            to the patches, mean over its heads; each picture's sums to 1.
        looker: who makes one vector of a picture.
        seen: for each picture x1, y1, x2, y2 of what the pair sees, in parts of its
            sides; the looks lie there.
    """

    cosines: np.ndarray
    scale: float
    bias: float | None
    logits: np.ndarray
    sigmoid: np.ndarray
    softmax: np.ndarray
    looks: np.ndarray
    looker: str
    seen: list[tuple[float, float, float, float]]


@on_gpu(seconds=20)
def matched(pair: Any, images: list[Image.Image], texts: list[str]) -> Match:
    """Ask a `vlm.Pair`, once for each picture and each text."""
    vision, bias = pair.config.vision, pair.model.logit_bias
    pool = _ClassToken(vision.encoder.depth - 1) if vision.class_token else _Pool()
    vectors, read = pair.images(images, tap=pool), pair.texts(texts)
    logits = pair.model.logits(vectors, read)
    framing = pair.framing
    return Match(
        cosines=(vectors @ read.T).cpu().numpy(),
        scale=pair.model.logit_scale.float().exp().item(),
        bias=None if bias is None else bias.float().item(),
        logits=logits.cpu().numpy(),
        sigmoid=logits.sigmoid().cpu().numpy(),
        softmax=logits.softmax(dim=-1).cpu().numpy(),
        looks=pool.looks.reshape(len(images), vision.grid, vision.grid),
        looker=pool.name,
        seen=[framing.seen(*i.size) if framing else (0, 0, 1, 1) for i in images],
    )


class _Pool(Tap):
    """Keeps where the pooling head looked, [I, patches], in one pass over images."""

    name = "the pooling head"
    towers = ("pool",)
    attention_only = True

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "pool":
            self.looks = weights(slice(None))[:, :, 0].mean(1).float().cpu().numpy()


class _ClassToken(Tap):
    """Keeps where the class token looked in the last layer, but at itself."""

    name = "the class token, in the last layer,"
    towers = ("vision",)
    attention_only = True

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "vision" and layer == self.layer:
            row = weights(slice(0, 1))[:, :, 0, 1:].mean(1).float().cpu().numpy()
            self.looks = row / row.sum(axis=-1, keepdims=True)


def pictures_of(files: Any) -> list[Image.Image]:
    """The pictures in the files that came through Gradio.

    Raises:
        ValueError: none or too many, or one that is no picture.
    """
    if not isinstance(files, list) or not files:
        raise ValueError("Add a picture first, or send a list of them.")
    if len(files) > MAX_PICTURES:
        raise ValueError(
            f"These are {len(files)} pictures; at most {MAX_PICTURES} are compared."
        )
    held = 0

    def read(file: Any) -> Image.Image:
        nonlocal held
        image = pictures.read(sent(file), held=held)
        # A pair sees some hundred pixels a side; whole photographs would add up.
        image = image.reduce(max(1, min(image.size) // KEPT_SIDE))
        held += pictures.bytes_of(image)
        return image

    return _each(files, "Picture", read)


def texts_of(texts: Any) -> list[str]:
    """The texts in one line each, without what nobody can see.

    Raises:
        ValueError: none or too many, or one that is empty, too long or no text.
    """
    if not isinstance(texts, list) or not texts:
        raise ValueError(
            "Write a text first, each on its line, or send a list of them."
        )
    if len(texts) > MAX_TEXTS:
        raise ValueError(f"These are {len(texts)} texts; at most {MAX_TEXTS}.")
    return _each(texts, "Text", _text)


def lines_of(text: str | None) -> list[str]:
    """What stands on each line that is not empty."""
    lines = (text or "").splitlines()
    return [line for line in lines if visible(line[: MAX_CHARACTERS + 1])]


def drawn(match: Match) -> dict[str, Any]:
    """What the page's script needs to draw a match; the arithmetic is left to it."""
    return {
        "logits": match.logits.tolist(),
        "scale": match.scale,
        "bias": match.bias,
        "looks": [
            {**_levels(look), "seen": seen}
            for look, seen in zip(match.looks, match.seen, strict=True)
        ],
        "looker": match.looker,
    }


def _levels(look: np.ndarray) -> dict[str, Any]:
    """A map in bytes, of which 255 is its peak."""
    levels = np.rint(look / look.max() * 255).astype(np.uint8)
    return {
        "rows": look.shape[0],
        "columns": look.shape[1],
        "peak": float(look.max()),
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError("It is no text.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"It has {len(text)} characters; at most {MAX_CHARACTERS}. Cut it."
        )
    if not (seen := visible(text)):
        raise ValueError("It is empty.")
    return seen


def _each(items: list, what: str, read: Callable[[Any], Any]) -> list:
    """What is read of each; what is wrong with one says which one it is."""
    values = []
    for number, item in enumerate(items, start=1):
        try:
            values.append(read(item))
        except ValueError as error:
            raise ValueError(f"{what} {number}: {error}") from error
    return values
