"""Anatomy: what an engine is made of, and how a question lies before the model.

    for part in vlm.anatomy.parts(engine):
        print(part.name, part.parameters, part.devices)
    tokens = vlm.anatomy.sequence(engine, "detect cat")
    vlm.anatomy.masks(engine, tokens)[None]  # who may look at whom

Facts only: nothing is computed with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlm.engine import Engine
from vlm.hub import EMBEDDING, HEAD
from vlm.paligemma import prefix_mask

Kind = Literal["image", "bos", "prompt", "newline", "answer"]

# What the names of a part's tensors begin with, in the order in which data passes.
PARTS = {
    "vision tower": ("vision.",),
    "projector": ("projector.",),
    "embedding": ("decoder.embedding.",),
    "decoder": ("decoder.blocks.", "decoder.norm."),
    "head": ("decoder.head.",),
}


@dataclass(frozen=True)
class Part:
    """A part of the model, or the mask autoencoder beside it.

    Attributes:
        parameters: numbers that were learnt.
        bytes: that they take where they lie.
        dtypes, devices: names; more than one if the part is mixed or spread.
    """

    name: str
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Token:
    """One position of the sequence that the decoder reads."""

    position: int
    id: int
    piece: str
    kind: Kind


def parts(engine: Engine) -> tuple[Part, ...]:
    """What the weights belong to. A tied head has none of its own and is left out.

    Where it is a copy of the embedding in int8, it takes room, but nothing of it was
    learnt.
    """
    state = engine.model.state_dict()
    tied = engine.config.decoder.tied_head
    head = state.pop(HEAD) if tied else None
    found = []
    for name, begins in PARTS.items():
        own = {key: t for key, t in state.items() if key.startswith(begins)}
        if own:
            found.append(_part(name, own, engine.model))
    if tied and head.dtype != state[EMBEDDING].dtype:
        found.append(replace(_part("head", {HEAD: head}, engine.model), parameters=0))
    if engine.masks:
        autoencoder = engine.masks.autoencoder
        found.append(_part("mask autoencoder", autoencoder.state_dict(), autoencoder))
    return tuple(found)


def sequence(
    engine: Engine, prompt: str, answer: str | Sequence[int] = "", *, images: int = 1
) -> tuple[Token, ...]:
    """All that the decoder reads, by position: image tokens, prompt, answer so far."""
    image = images * engine.config.vision.patches
    prefix = image + len(engine.ids(prompt))
    ids = [engine.config.image_token] * image + engine.ids(prompt, answer)

    def kind(position: int) -> Kind:
        if position < image:
            return "image"
        if position >= prefix:
            return "answer"
        ends: dict[int, Kind] = {image: "bos", prefix - 1: "newline"}
        return ends.get(position, "prompt")

    return tuple(
        Token(position, id, engine.tokenizer.piece(id), kind(position))
        for position, id in enumerate(ids)
    )


def masks(engine: Engine, tokens: Sequence[Token]) -> dict[int | None, np.ndarray]:
    """May row t look at column s? bool [T, T] for each window that a layer has.

    The mask without a window (None) is the first, whether a layer has it or not.
    """
    prefix = torch.tensor([[token.kind != "answer" for token in tokens]])
    valid, rows = torch.ones_like(prefix), torch.arange(len(tokens))
    return {
        window: prefix_mask(prefix, valid, rows, window)[0, 0].numpy()
        for window in dict.fromkeys((None, *engine.config.decoder.windows))
    }


def _part(name: str, own: dict[str, Tensor], model: nn.Module) -> Part:
    dtypes = (str(t.dtype).removeprefix("torch.") for t in own.values())
    return Part(
        name=name,
        parameters=sum(t.numel() for t in own.values()),
        bytes=sum(t.nbytes for t in own.values()),
        dtypes=tuple(dict.fromkeys(dtypes)),
        devices=tuple(dict.fromkeys(_device(model, *item) for item in own.items())),
    )


def _device(model: nn.Module, name: str, tensor: Tensor) -> str:
    # Of a model that is spread, what waits on the CPU is on "meta" between its uses.
    for begin, place in getattr(model, "hf_device_map", {}).items():
        if not begin or name.startswith(f"{begin}."):
            return f"cuda:{place}" if isinstance(place, int) else str(place)
    return str(tensor.device)
