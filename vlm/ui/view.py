"""The value of the viewer: one plain dict, which is also the JSON of `/probe`."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from vlm.grounding import duplicates
from vlm.ui import pictures

View = dict[str, Any]


def empty(
    about: dict[str, Any], image: Image.Image | list[Image.Image] | None = None
) -> View:
    """A picture, or none yet, and no answer of an engine that describes itself so.

    The first is told as if it were alone, the others under `more`.
    """
    image, *more = image if isinstance(image, list) else [image]
    return {
        "text": "",
        "tokens": [],
        "objects": [],
        "done": False,
        "run": "",
        "prompt": [],
        "image": pictures.shown(image) if image else None,
        "width": image.width if image else 0,
        "height": image.height if image else 0,
        "more": [
            {"image": pictures.shown(each), "width": each.width, "height": each.height}
            for each in more
        ],
        "grid": list(about["grid"]),
        "image_size": about["image_size"],
        "layers": about["layers"],
        "heads": about["heads"],
        "timing": None,
        "memory": 0,
        "cut": False,
        "stopped": False,
        "forced": 0,
        "tries": [],
        "try": 0,
        "model": about["name"],
        "question": "",
        "start": "",
        "settings": None,
        "before": None,
        "mask_iou": None,
    }


def timing(first: float, seconds: float, count: int) -> dict[str, float | None]:
    """Seconds to the first token; tokens per second after it."""
    rate = (count - 1) / (seconds - first) if count > 1 and seconds > first else None
    return {"first": round(first, 3), "rate": rate and round(rate, 1)}


def memory(engine: Any, count: int, images: int = 1) -> int:
    """Bytes of keys and values of the pictures, <bos>, and `count` tokens behind."""
    about = engine.describe()
    rows, columns = about["grid"]
    return (images * rows * columns + 1 + count) * about["cache_bytes"]


def prompt_tokens(engine: Any, prompt: str) -> list[dict]:
    """The prompt as the model reads it, without <bos>."""
    return [
        {"text": engine.tokenizer.piece(id), "id": int(id)}
        for id in engine.ids(prompt)[1:]
    ]


def token(engine: Any, step: Any) -> dict:
    # Gradio walks the whole value on every update, so a token is four fields, flat.
    return {
        "text": engine.tokenizer.piece(step.token),
        "id": int(step.token),
        "probability": round(float(step.probability), 4),
        "image_share": round(float(step.image_share), 4),
    }


def candidates(step: Any) -> list[dict]:
    """What else a token might have been, the most probable first."""
    return [
        {
            "text": candidate.text,
            "id": int(candidate.token),
            "probability": round(float(candidate.probability), 4),
        }
        for candidate in step.candidates
    ]


def objects(found: list) -> list[dict]:
    """Boxes as x1, y1, x2, y2 in pixels; an edge that is not decoded yet is None.

    `duplicate` is the number of an earlier object that is the same once more.
    """
    return [
        {
            "label": thing.label,
            "box": [
                None if edge is None else round(float(edge), 1) for edge in thing.box
            ],
            "confidence": round(float(thing.confidence), 4),
            "tokens": [int(index) for index in thing.tokens],
            "duplicate": same,
            "mask": None if thing.mask is None else _grey(np.asarray(thing.mask)),
        }
        for thing, same in zip(found, duplicates(found))
    ]


def png(image: Image.Image) -> str:
    """As a data URL."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _grey(mask: np.ndarray) -> str:
    # 16 grey levels look the same over a picture and take a third of the bytes.
    grey = (np.rint(mask.clip(0, 1) * 15) * 17).astype(np.uint8)
    return _kept(grey.tobytes(), grey.shape)


@lru_cache(maxsize=128)
def _kept(grey: bytes, shape: tuple[int, int]) -> str:
    # Each view of a growing answer has all of its masks again.
    return png(Image.fromarray(np.frombuffer(grey, np.uint8).reshape(shape)))
