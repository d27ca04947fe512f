"""What the endpoints answer: its types, which callers are shown, and its parts."""

import base64
import io
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from vlm.metrics import paste
from vlm.ui import view
from vlm.ui.pictures import MASK_EDGE

MAX_NUMBERS = 1_000_000  # sent at once: about 10 MB of JSON


class Token(TypedDict):
    text: str
    id: int
    probability: float
    image_share: float


class Thing(TypedDict):
    label: str
    box: list[float | None]
    confidence: float
    tokens: list[int]
    duplicate: int | None


class MaskedThing(Thing):
    mask: str | None


class Probed(TypedDict):
    text: str
    tokens: list[Token]
    objects: list[Thing]
    done: bool
    cut: bool
    timing: dict[str, float | None] | None


class Detected(TypedDict):
    objects: list[Thing]
    text: str
    cut: bool


class Segmented(TypedDict):
    objects: list[MaskedThing]
    text: str
    cut: bool


class MaskTokens(TypedDict):
    text: str
    box: list[float]
    iou: float


class Attended(TypedDict):
    tokens: list[Token]
    token: int
    grid: list[int]
    maps: list
    shares: list


class Explained(TypedDict):
    tokens: list[Token]
    token: int
    grid: list[int]
    map: list
    shows: str
    hides: str


class Tried(TypedDict):
    tokens: list[Token]
    token: int
    done: int
    of: int
    shows: str
    hides: str


class ReadByLayer(Tried):
    layers: list[int]
    probability: list[float]
    top: list[list[dict]]
    balance: list[list[float]]


class CutOff(Tried):
    probability: float
    cuts: list[dict]
    heads: list[list[float | None]]


class TakenAway(Tried):
    deletion: dict[str, dict | None]
    insertion: dict[str, dict | None]


class Patched(Tried):
    clean: float
    corrupt: float
    layers: list[int]
    image: list[float | None]
    last: list[float | None]
    layer: int
    positions: list[dict]


class Shuffled(Tried):
    ways: list[dict]


def thing(found: dict[str, Any]) -> Thing:
    return {key: found[key] for key in Thing.__annotations__}


def probed(now: view.View) -> Probed:
    told = {key: now[key] for key in Probed.__annotations__}
    return {**told, "objects": [thing(each) for each in now["objects"]]}


def whole_mask(found: dict[str, Any], size: tuple[int, int]) -> str | None:
    """The mask of a box as one of the picture of `size` (W, H), a data URL."""
    if found["mask"] is None:
        return None
    scale = min(1, MASK_EDGE / max(size))
    x1, y1, x2, y2 = box = [edge * scale for edge in found["box"]]
    if x1 >= x2 or y1 >= y2:
        return None  # the model swapped its edges
    coded = base64.b64decode(found["mask"].partition(",")[2])
    inside = np.asarray(Image.open(io.BytesIO(coded)), np.float32) / 255
    whole = paste(inside, box, tuple(round(side * scale) for side in size))
    return view.png(Image.fromarray(whole))


def numbers(values: np.ndarray) -> list:
    """Nested lists of numbers with six digits that count."""
    if values.size > MAX_NUMBERS:
        raise ValueError(
            f"That is {values.size} numbers; at most {MAX_NUMBERS} are sent at once. "
            "Ask for one layer or one head."
        )
    short = np.array([float(f"{value:.6g}") for value in values.flat])
    return short.reshape(values.shape).tolist()
