"""The Inside tab: what the model gets, and how it goes on through the model.

The explanations stand in inside.html, the words for its figures come from figures.py,
and the script draws the rest of the value.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

import vlm
from vlm.anatomy import Part, Token
from vlm.image import pixels
from vlm.tokenizer import LOCS, SEGS
from vlm.ui import figures, pictures, zero
from vlm.ui.again import part, sent
from vlm.ui.asking import MAX_TOKENS, Ask
from vlm.ui.models import Models
from vlm.ui.probe import MODEL, Probe
from vlm.ui.refusing import refusing
from vlm.ui.scope import FOLDER, joined
from vlm.ui.store import Run
from vlm.ui.widget import Widget

SCRIPTS = (
    "nodes.js",
    "ramp.js",
    "inside_picture.js",
    "inside_tower.js",
    "inside_sequence.js",
    "inside_parts.js",
    "inside.js",
)
SEVERAL = "The question was about several pictures. Shown is the first, as if alone."
UNKNOWN = "This engine does not tell what it is made of. What is known of it is shown."


def build(engines: Models, tab: gr.Tab, probe: Probe, switched: Callable) -> None:
    """Lay out the tab in the Blocks that is open.

    It shows the question of the Probe tab when it is opened, and asks by itself when
    an answer ends while it is open. `switched` listens for another model.
    """
    inside = Inside(elem_id="inside")

    def engine_of(view: Any) -> Any:
        name = engines.asked(part(view, "model"))
        return refusing(engines.__getitem__, name)

    def show(path: str | None, prompt: str | None, view: Any) -> dict:
        run = probe.store.get(str(part(view, "run")))
        return shown(engine_of(view), path, prompt, run)

    asking = {"inputs": [probe.picture, probe.prompt, probe.scope], "outputs": inside}
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(show, **asking, **quiet)
    inside.look(show, **asking, **quiet)
    switched(show, **asking, **quiet)

    def within(path: str | None, view: Any, event: gr.EventData) -> dict:
        return gr.update(within=refusing(looked, engine_of(view), path, sent(event)))

    inside.enter(within, [probe.picture, probe.scope], inside, **MODEL, **quiet)


class Inside(Widget):
    """Shows what `shown` gives; a static template, in which only text is set.

    What `looked` gives comes as `within`.
    """

    def __init__(
        self, value: dict | None = None, *, within: dict | None = None, **options: Any
    ) -> None:
        super().__init__(
            value,
            within=within,
            html_template=(FOLDER / "inside.html").read_text("utf-8"),
            css_template=joined(["inside.css"]),
            js_on_load=joined(SCRIPTS),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def shown(engine: Any, path: str | None, prompt: str | None, run: Run | None) -> dict:
    """All that the tab shows, of an engine and of a question as far as there is one.

    An engine that is no `vlm.Engine` is shown as far as it describes itself. `run` is
    the last one; its answer is shown if it answers this very question.
    """
    about = engine.describe()
    known = isinstance(engine, vlm.Engine)
    value: dict[str, Any] = {"known": known, "notice": "" if known else UNKNOWN}
    facts = figures.of_engine(about)
    if known:
        parts = vlm.anatomy.parts(engine)
        facts |= figures.of_model(engine, parts)
        value |= {"parts": _parts(parts), "ids": _ids(engine)}
    try:
        ask = Ask(about["name"], path or "", prompt or "")
        image = pictures.read(ask.picture)
    except ValueError as error:
        return value | {"notice": str(error), "facts": facts}
    if run and run.ask.more:
        value["notice"] = value["notice"] or SEVERAL
    values = pixels(image, about["image_size"], channels=_channels(engine))
    values = values[0].permute(1, 2, 0).numpy()
    facts |= figures.of_picture(image.size, values)
    value["picture"] = _picture(engine, image, values)
    view = _answer(run, ask)
    value["box"] = worked_box(view)
    if known:
        answer = [token["id"] for token in view["tokens"]]
        tokens = vlm.anatomy.sequence(engine, ask.prompt, answer)
        masks = vlm.anatomy.masks(engine, tokens)
        facts |= figures.of_sequence(engine, tokens, masks)
        value |= _sequence(tokens) | {"cache": _cache(engine, tokens)}
        value["masks"] = _masks(engine, tokens, masks)
    return value | {"facts": facts}


def looked(engine: Any, path: str | None, data: Any) -> dict[str, Any]:
    """`data` is {patch}: where that patch looked, in every layer of the vision tower.

    Gives the patch, layers, heads, and `maps`: a byte for each patch that is looked
    at, 255 for the hottest one of its layer and head, in base64.

    Raises:
        ValueError: there is no picture or no such patch, or the engine has no tower.
    """
    patch = data.get("patch") if isinstance(data, dict) else None
    if not isinstance(engine, vlm.Engine):
        raise ValueError(UNKNOWN)
    if type(patch) is not int:
        raise ValueError("Choose a patch: where did it look?")
    if not path:
        raise ValueError("Choose a picture first.")
    image = pictures.read(path)
    levels = _levels(engine, image, patch)
    return {
        "patch": patch,
        "layers": levels.shape[0],
        "heads": levels.shape[1],
        "maps": base64.b64encode(levels.tobytes()).decode(),
    }


@zero.on_gpu(seconds=20)
def _levels(engine: vlm.Engine, image: Image.Image, patch: int) -> np.ndarray:
    """uint8 [layers, heads, rows, columns]."""
    maps = vlm.probes.patch_attention(engine, image, patch)
    levels = (255 * maps / maps.amax((-2, -1), keepdim=True)).round().byte()
    return levels.numpy()


def worked_box(view: dict[str, Any]) -> dict[str, Any] | None:
    """The first whole box of a view, and how its tokens became pixels."""
    whole = (thing for thing in view["objects"] if None not in thing["box"])
    thing = next(whole, None)
    if thing is None:
        return None
    pieces = [view["tokens"][index]["text"] for index in thing["tokens"]]
    x1, y1, x2, y2 = thing["box"]
    places = (("top", y1), ("left", x1), ("bottom", y2), ("right", x2))
    sides = (view["height"], view["width"]) * 2
    return {
        "label": thing["label"],
        "box": thing["box"],
        "mask": thing["mask"],
        "codes": [int(piece[4:7]) for piece in pieces if piece.startswith("<seg")],
        "rows": [
            [edge, piece, f"{int(piece[4:8])} / 1024 · {side}", f"{place:.1f}"]
            for (edge, place), piece, side in zip(places, pieces, sides)
        ],
    }


def condensed(mask: np.ndarray, image: int) -> list[str]:
    """A mask [T, T] with its first `image` rows and columns made one.

    A string for each row, a digit for each column: 0 if none may be looked at, 9 if
    all may, and what lies between for a part of them.
    """
    top, side = mask[:image, image:].mean(0), mask[image:, :image].mean(1)
    corner = mask[:image, :image].mean()
    seen = np.block([[corner, top], [side[:, None], mask[image:, image:]]])
    digits = np.where(seen == 1, 9, np.ceil(8 * seen)).astype(int)
    return ["".join(map(str, row)) for row in digits]


def _answer(run: Run | None, ask: Ask) -> dict[str, Any]:
    """The last view of a run that asked the same, or one without an answer."""
    asked = run and (run.ask.model, run.ask.pictures, run.ask.prompt)
    if run and run.view and asked == (ask.model, ask.pictures, ask.prompt):
        return run.view
    return {"tokens": [], "objects": []}


def _channels(engine: Any) -> int:
    return engine.config.vision.channels if isinstance(engine, vlm.Engine) else 3


def _picture(engine: Any, image: Image.Image, values: np.ndarray) -> dict[str, Any]:
    levels = np.rint((values + 1) * 127.5).astype(np.uint8)
    square = Image.fromarray(levels.squeeze())
    # Without loss: what is shown is what the model gets.
    path = pictures.kept(square, "png")
    about = engine.describe()
    return {
        "original": pictures.shown(image),
        "square": {"path": path, "meta": {"_type": "gradio.FileData"}},
        "width": image.width,
        "height": image.height,
        "size": about["image_size"],
        "grid": about["grid"][0],
    }


def _sequence(tokens: Sequence[Token]) -> dict[str, Any]:
    text = [token for token in tokens if token.kind != "image"]
    return {
        "images": len(tokens) - len(text),
        "tokens": [[token.id, token.piece, token.kind] for token in text],
    }


def _ids(engine: vlm.Engine) -> list[dict[str, Any]]:
    """What the ids of the vocabulary are, from the first to the last."""
    tokenizer = engine.tokenizer
    alphabets = {
        tokenizer.first_loc: ("<loc>", LOCS),
        tokenizer.first_seg: ("<seg>", SEGS),
        tokenizer.image_token: ("<image>", 1),
        tokenizer.size: ("", 0),
    }
    found, at = [], 0
    for first, (name, count) in sorted(alphabets.items()):
        if at < first:
            named = at < tokenizer.pieces.get_piece_size()
            found.append(("text" if named else "no name", at, first - at))
        found.append((name, first, count))
        at = first + count
    return [
        {"name": name, "first": first, "count": count}
        for name, first, count in found
        if count
    ]


def _masks(
    engine: vlm.Engine, tokens: Sequence[Token], masks: dict[int | None, np.ndarray]
) -> list[dict[str, Any]]:
    """Each mask that differs, with the layers that have it."""
    image = sum(token.kind == "image" for token in tokens)
    hiding = {w for w, mask in masks.items() if (mask != masks[None]).any()}
    layers: dict[int | None, list[int]] = {}
    for layer, window in enumerate(engine.config.decoder.windows):
        layers.setdefault(window if window in hiding else None, []).append(layer)
    return [
        {"layers": of_window, "rows": condensed(masks[window], image)}
        for window, of_window in layers.items()
    ]


def _cache(engine: vlm.Engine, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    row = engine.describe()["cache_bytes"]
    prefix = sum(token.kind != "answer" for token in tokens)
    # The last token of an answer is written and not read.
    lengths = {"so far": len(tokens), "at most": prefix + MAX_TOKENS - 1}
    return [
        {"name": name, "tokens": length, "size": figures.size(length * row)}
        for name, length in lengths.items()
    ]


def _parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    model = [part for part in parts if part.name != "mask autoencoder"]
    total = sum(part.parameters for part in model)
    return [
        {
            "parameters": part.parameters,
            "cells": [
                part.name,
                figures.count(part.parameters),
                figures.share(part.parameters, total) if part in model else "beside it",
                figures.size(part.bytes),
                ", ".join(part.dtypes),
                ", ".join(dict.fromkeys(map(zero.place, part.devices))),
            ],
        }
        for part in parts
    ]
