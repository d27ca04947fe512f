"""Every way to explain where a token of an answer came from, by name.

    asked = Asked(engine, image, "detect cat", ids)
    for name, method in METHODS.items():
        heat = method.heat(asked, [0, 1, 2, 3])  # the four sides of the first box

Each has a scale of its own, and tells what it shows and what it does not, in words for
the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.probes.asked import Asked
from vlm.probes.attention import image_attention, relative_attention, via_bos
from vlm.probes.lens import patch_lens
from vlm.probes.occlusion import occluding
from vlm.probes.positions import on_image
from vlm.probes.relevancy import gradient_attention, relevancy
from vlm.probes.rollout import rollout
from vlm.probes.tam import token_activation
from vlm.trace import Trace

GENERAL = "caption en"  # the question that relative attention compares with


@dataclass(frozen=True)
class Method:
    """A way to explain answer tokens by the picture.

    Attributes:
        title: its name, for people.
        shows, hides: what it tells, and what it does not.
        heat: of a question and indices of answer tokens, their mean map, float32
            [rows, columns], nothing in it below zero.
        grow: of a way that takes long, the part that is done and the map so far.
    """

    title: str
    shows: str
    hides: str
    heat: Callable[[Asked, Sequence[int]], Tensor]
    grow: Callable[[Asked, Sequence[int]], Iterator[tuple[float, Tensor]]] | None = None

    def growing(
        self, asked: Asked, tokens: Sequence[int]
    ) -> Iterator[tuple[float, Tensor]]:
        """The part that is done, and the map so far; in the end 1, and `heat`."""
        if self.grow is None:
            yield 1, self.heat(asked, tokens)
        else:
            yield from self.grow(asked, tokens)


def _mean_attention(asked: Asked, tokens: Sequence[int]) -> Tensor:
    trace = recorded(asked)
    maps = (image_attention(trace, t, image=asked.focus) for t in tokens)
    return _mean(each.mean((0, 1)) for each in maps)


def _relative(asked: Asked, tokens: Sequence[int]) -> Tensor:
    trace, general = recorded(asked), Trace()
    ask = asked.engine.stream(asked.image, GENERAL, max_tokens=1, stop=(), tap=general)
    list(ask)
    maps = (relative_attention(trace, general, t, image=asked.focus) for t in tokens)
    return _mean(each.mean(0) for each in maps)


def _via_bos(asked: Asked, tokens: Sequence[int]) -> Tensor:
    trace = recorded(asked)
    maps = (via_bos(trace, t, image=asked.focus) for t in tokens)
    return _mean(each.mean((0, 1)) for each in maps)


def _rollout(asked: Asked, tokens: Sequence[int]) -> Tensor:
    trace = recorded(asked)
    rows = (rollout(trace, t) for t in tokens)
    return _mean(on_image(row, trace.where, asked.focus) for row in rows)


def _relevancy(asked: Asked, tokens: Sequence[int]) -> Tensor:
    where = asked.layout(0)
    rows = (relevancy(asked, t) for t in tokens)
    return _mean(on_image(row, where, asked.focus) for row in rows)


def _gradient_attention(asked: Asked, tokens: Sequence[int]) -> Tensor:
    return _mean(gradient_attention(asked, t).mean((0, 1)) for t in tokens)


def _token_activation(asked: Asked, tokens: Sequence[int]) -> Tensor:
    return _mean(token_activation(asked, t) for t in tokens)


def _patch_lens(asked: Asked, tokens: Sequence[int]) -> Tensor:
    return _mean(patch_lens(asked, t).probability.amax(0) for t in tokens)


def _occlusion(asked: Asked, tokens: Sequence[int]) -> Tensor:
    *_, (_, heat) = _occluding(asked, tokens)
    return heat


def _occluding(asked: Asked, tokens: Sequence[int]) -> Iterator[tuple[float, Tensor]]:
    for part, heat in occluding(asked, list(tokens)):
        yield part, heat.clamp(min=0)


METHODS = {
    "attention": Method(
        "Attention",
        "Where the row that led to the token looked: the mean over layers and heads.",
        "Looking is not using: what was read there may not have mattered. Heads "
        "differ, and a mean hides it.",
        _mean_attention,
    ),
    "relative": Method(
        "Relative attention",
        "Attention divided by that under a general question. What is looked at "
        "whatever is asked cancels out.",
        "A quotient of small numbers: where neither question looked, it says little.",
        _relative,
    ),
    "via_bos": Method(
        "By way of ‹bos›",
        "Attention to ‹bos› times its own attention to the image: much of a "
        "PaliGemma's attention takes that way.",
        "It says where the detour would lead, not that anything was carried along it.",
        _via_bos,
    ),
    "rollout": Method(
        "Rollout",
        "Attention multiplied through all layers, half of it staying where it is.",
        "What is carried, and the MLPs, are left out. It spreads with each layer, and "
        "is the same whichever token was chosen there.",
        _rollout,
    ),
    "relevancy": Method(
        "Relevancy",
        "Attention weighted by the gradient of the chosen token's logit, multiplied "
        "through all layers: which of it pushed the token up.",
        "A gradient sees small changes only. What pushed the token down is cut off.",
        _relevancy,
    ),
    "gradient": Method(
        "Gradient × attention",
        "Attention of the last row where more of it would have made the token more "
        "likely.",
        "One layer at a time: the way from the patch to that layer is not followed.",
        _gradient_attention,
    ),
    "activation": Method(
        "Token activation map",
        "How strongly the last states at the patches say this token, less what earlier "
        "words explain.",
        "What a patch's state says is not what the answer read from it. In a PaliGemma "
        "the patches have read the prompt too.",
        _token_activation,
    ),
    "lens": Method(
        "Logit lens",
        "The probability of the token that the head reads at each patch, in the layer "
        "where it is highest.",
        "The head was never trained to read there: small probabilities are no denial. "
        "Patches have read the prompt: what it names may show anywhere.",
        _patch_lens,
    ),
    "occlusion": Method(
        "Occlusion",
        "How much less likely the token becomes when that part of the picture is grey: "
        "the answer itself is asked.",
        "A grey square is a thing the model never saw. Evidence that is there twice "
        "does not show.",
        _occlusion,
        grow=_occluding,
    ),
}


def recorded(asked: Asked) -> Trace:
    """The attention of a given answer, in one teacher-forced pass."""
    trace = Trace()
    how = {"answer": asked.answer, "max_tokens": 1, "stop": (), "tap": trace}
    list(asked.engine.stream(asked.image, asked.prompt, **how))
    return trace


def _mean(maps) -> Tensor:
    return torch.stack(list(maps)).mean(0)
