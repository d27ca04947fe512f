"""Sinks: patches that are looked at whatever they show.

Where they lie differs from checkpoint to checkpoint, so they are found, not known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.engine import Engine


@torch.no_grad()
def position_sinks(engine: Engine, *, factor: float = 3.0) -> Tensor:
    """Patches whose position embedding is longer than `factor` times the median one.

    Returns:
        bool [rows, columns].
    """
    vision = engine.config.vision
    order = torch.arange(vision.patches, device=engine.device)
    lengths = engine.model.vision.positions(order).float().norm(dim=-1).cpu()
    sinks = lengths > factor * lengths.median()
    return sinks.unflatten(0, (vision.grid, vision.grid))


def static_sinks(maps: Tensor, *, factor: float = 5.0) -> Tensor:
    """Patches that are hot whoever looks: more than `factor` times an even share of
    the median token's attention to the image.

    An even share, not the median patch: a model that looks sharply leaves most patches
    at nothing, and all others would be far above.

        tokens = range(trace.where.prompt)
        maps = torch.stack([prompt_attention(trace, token) for token in tokens])
        sinks = static_sinks(maps)

    All tokens of one prompt may rightly look at the one thing it names. Maps of
    several pictures, stacked, tell such a thing from a sink.

    Args:
        maps: [tokens, ..., rows, columns]; the mean is taken over what lies between.
    Returns:
        bool [rows, columns].
    """
    grid = maps.shape[-2:]
    heat = maps.reshape(len(maps), -1, grid.numel()).mean(1)  # [tokens, P]
    even = heat.mean(-1, keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return ((heat / even).median(0).values > factor).unflatten(0, grid)


def without_sinks(maps: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [..., rows, columns] with nothing at the sinks; the rest sums to one.

    A map that lies wholly on sinks becomes zero.

    Args:
        sinks: bool [rows, columns].
    Returns:
        the maps, and float32 [...]: the share of each one's mass that was removed.
    Raises:
        ValueError: maps and sinks of different shapes.
    """
    if maps.shape[-2:] != sinks.shape:
        shapes = f"{tuple(sinks.shape)} for maps of {tuple(maps.shape[-2:])}"
        raise ValueError(f"sinks are {shapes}")
    least = torch.finfo(maps.dtype).tiny  # 0 / 0 is to be 0
    rest = maps.masked_fill(sinks, 0)
    kept = rest.sum((-2, -1), keepdim=True)
    removed = maps.masked_fill(~sinks, 0).sum((-2, -1))
    whole = removed + kept[..., 0, 0]
    return rest / kept.clamp(min=least), removed / whole.clamp(min=least)
