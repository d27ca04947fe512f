"""Would a map be the same if the model knew nothing? Then it explains nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vlm.engine import Engine
from vlm.probes.asked import Asked
from vlm.probes.methods import METHODS
from vlm.probes.news import News, Telling

MOST_BYTES = 1 << 30  # of a model that is copied while others are answered


def shuffling(asked: Asked, index: int) -> Iterator[News]:
    """Every way's map of answer token `index`, and that of the engine `shuffled`.

    Finds ways: of each its name and title, the two maps as rows, `own` and `shuffled`,
    and how much they are `alike`, by `rank_correlation`.

    Raises:
        ValueError: the answer has no such token, or the model is too large to have a
            copy beside it.
    """
    size = sum(each.nbytes for each in asked.engine.model.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(
            f"This needs a second copy of the model, of {size / 1e9:.1f} GB: here that "
            "is too much. Ask a smaller model, or call vlm.probes.shuffled yourself."
        )
    blind = replace(asked, engine=shuffled(asked.engine))
    found = {
        "ways": [
            dict(name=name, title=way.title, alike=None, own=None, shuffled=None)
            for name, way in METHODS.items()
        ]
    }
    telling = Telling(len(METHODS), found)
    for told, way in zip(found["ways"], METHODS.values()):
        own, other = (way.heat(each, [index]) for each in (asked, blind))
        told.update(own=own.tolist(), shuffled=other.tolist())
        told["alike"] = rank_correlation(own, other)
        yield telling.one_more()


@torch.no_grad()
def shuffled(engine: Engine, *, seed: int = 0) -> Engine:
    """The engine with the weights of the decoder's blocks shuffled, each among itself.

    Adebayo et al., arXiv:1810.03292: a map that stays what it is shows the picture, or
    the architecture, and not what was learnt. Their sizes stay as they were; the
    image tower, the embedding and norms are left alone. Takes the model's size again.
    """
    model = copy.deepcopy(engine.model)
    dice = torch.Generator().manual_seed(seed)
    # Not its parameters: weights in int8 are none.
    for weight in model.decoder.blocks.state_dict().values():
        if weight.dim() > 1:
            order = torch.randperm(weight.numel(), generator=dice).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return Engine(model, engine.tokenizer, name=f"{engine.name} (shuffled)")


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of two maps of one shape: 1 the same order, 0 none, -1 reversed.

    Equal values share their mean rank; a map that is even has no order and gives 0.
    """
    a, b = (_ranks(heat.flatten().double()) for heat in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    return (last - (count - 1) / 2)[place]
