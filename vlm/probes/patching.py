"""Activation patching: put back a part of what was known, and see what it mends."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vlm.edit import Edit
from vlm.probes.asked import Asked
from vlm.probes.positions import Group, mask_of
from vlm.tap import Layout


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the image features, `scale` times their standard deviation.

    Meng et al., arXiv:2202.05262, take 3 times (there of the embeddings of words).
    """

    scale: float = 3.0
    seed: int = 0

    def on(self, features: Tensor) -> Tensor:
        dice = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(features.shape, generator=dice).to(features)
        return features + self.scale * features.float().std().to(features) * noise


def activation_patching(
    clean: Asked,
    corrupt: Asked | Noise,
    index: int,
    *,
    axis: Literal["position", "layer"],
    at: int | Group,
    groups: Sequence[Group] | None = None,
) -> Iterator[tuple[int | Group, float]]:
    """How much of the answer one part of the clean residual stream brings back.

    Meng et al., arXiv:2202.05262; Zhang and Nanda, arXiv:2309.16042. The corrupted
    pass runs with the clean stream put in after one layer, at one group of positions:
    what follows from it is computed anew. Layer -1 is the embedding. The score is

        (LD patched - LD corrupt) / |LD clean - LD corrupt|

    where LD is the logit of the clean token less that of the one which the corrupted
    picture makes most probable beside it; with noise, the logit of the clean token
    alone. 1 is all of it back, and 0 none; where it is the corrupted picture that
    speaks for the token more, all of it back is -1.

    Args:
        corrupt: the same question and answer about another picture, or noise on this.
        axis: "position": every group at layer `at`; "layer": every layer from -1 on
            at the group `at`.
        groups: those of axis "position"; None for the image, bos, and each token of
            the prompt and of the answer before the token.
    Returns:
        an iterator over (group or layer, score), one pass each. The clean streams
        [S, D] of the layers in question are held until its end.
    Raises:
        ValueError: the questions differ, there is no such token, layer or group, or
            the corrupted pass is as good as the clean one.
    """
    where, token = clean.layout(index), clean.token(index)
    sites = _sites(where, axis, at, groups, clean.focus)
    streams = _Streams({layer for _, layer, _ in sites})
    if isinstance(corrupt, Noise):
        features = corrupt.on(clean.engine.look(clean.image))
        run = partial(clean.logits, index, features=features)
    else:
        _check_same_question(clean, corrupt)
        run = partial(corrupt.logits, index)
    best, worst = clean.logits(index, edit=streams), run()
    others = worst.clone()
    others[token] = -torch.inf
    other = None if isinstance(corrupt, Noise) else int(others.argmax())

    def difference(logits: Tensor) -> float:
        return float(logits[token] - (0 if other is None else logits[other]))

    whole, base = difference(best), difference(worst)
    if whole == base:
        raise ValueError(
            f"The clean pass and the corrupted one both score {whole:.4g}: what was "
            "corrupted makes no difference to this token, so nothing can bring it back."
        )

    def score(layer: int, places: Tensor) -> float:
        edit = _Restore(layer, places, streams.kept[layer])
        return (difference(run(edit=edit)) - base) / abs(whole - base)

    return ((key, score(layer, places)) for key, layer, places in sites)


def _check_same_question(clean: Asked, corrupt: Asked) -> None:
    if corrupt.engine is not clean.engine:
        raise ValueError(
            f"engines {clean.engine.name} and {corrupt.engine.name} differ"
        )
    if len(clean.images) != len(corrupt.images):
        counts = f"{len(clean.images)} and {len(corrupt.images)}"
        raise ValueError(f"the questions are about {counts} images")
    for what in ("prompt", "answer"):
        ours, theirs = getattr(clean, what), getattr(corrupt, what)
        if ours != theirs:
            raise ValueError(f"the {what} is {ours!r} and {theirs!r}; it must be one")


def _sites(
    where: Layout,
    axis: Literal["position", "layer"],
    at: int | Group,
    groups: Sequence[Group] | None,
    image: int,
) -> list[tuple[int | Group, int, Tensor]]:
    """What is restored in each pass: its name, the layer, and bool [S]."""
    if axis == "layer":
        places = mask_of(where, at, image)
        return [(layer, layer, places) for layer in range(-1, where.layers)]
    if axis != "position":
        raise ValueError(f"the axis is {axis!r}; it may be position or layer")
    if not -1 <= at < where.layers:
        raise ValueError(f"layer {at} of {where.layers} was asked for")
    if groups is None:
        prompt = [("prompt", token) for token in range(1, where.prompt)]
        answer = [("answer", token) for token in range(where.forced)]
        groups = ["image", "bos", *prompt, *answer]
    return [(group, at, mask_of(where, group, image)) for group in groups]


class _Streams(Edit):
    """Keeps streams and leaves them as they are: a tap is not shown the embedding."""

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = layers
        self.kept: dict[int, Tensor] = {}

    def residual(self, layer: int, x: Tensor) -> Tensor:
        if layer in self.layers:
            self.kept[layer] = x
        return x


class _Restore(Edit):
    def __init__(self, layer: int, places: Tensor, stream: Tensor) -> None:
        self.layer, self.places, self.stream = layer, places, stream

    def residual(self, layer: int, x: Tensor) -> Tensor:
        if layer != self.layer:
            return x
        return torch.where(self.places.to(x.device)[:, None], self.stream.to(x), x)
