"""The value of the viewer: one plain dict, which is also the JSON of `/probe`."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vlm.ui import pictures

View = dict[str, Any]


def empty(engine: Any, image: Image.Image | None = None) -> View:
    """A picture, or none yet, and no answer."""
    about = engine.describe()
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
        "grid": list(about["grid"]),
        "layers": about["layers"],
        "heads": about["heads"],
        "timing": None,
        "cut": False,
    }


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
    """Boxes as x1, y1, x2, y2 in pixels; an edge that is not decoded yet is None."""
    return [
        {
            "label": thing.label,
            "box": [
                None if edge is None else round(float(edge), 1) for edge in thing.box
            ],
            "confidence": round(float(thing.confidence), 4),
            "tokens": [int(index) for index in thing.tokens],
            "mask": None if thing.mask is None else _png(np.asarray(thing.mask)),
        }
        for thing in found
    ]


def _png(mask: np.ndarray) -> str:
    # 16 grey levels look the same over a picture and take a third of the bytes.
    grey = (np.rint(mask.clip(0, 1) * 15) * 17).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
