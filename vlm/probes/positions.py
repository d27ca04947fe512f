"""Positions of a sequence that belong together, and marks on the grid of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.tap import Layout

# "image" (all of them), ("image", 1), "bos", ("prompt", 2), ("answer", 0), or patches
# of one image: bool [rows, columns].
Group = str | tuple[str, int] | Tensor


def on_image(row: Tensor, layout: Layout, image: int = 0) -> Tensor:
    """One image's part of rows over all positions.

    Args:
        row: [..., S].
    Returns:
        [..., rows, columns].
    Raises:
        ValueError: there is no such image.
    """
    patches = row[..., layout.patches(image)]
    return patches.unflatten(-1, (layout.grid, layout.grid))


def mask_of(where: Layout, group: Group, image: int = 0) -> Tensor:
    """Which positions a group is, bool [S]; patches are those of `image`."""
    mask = torch.zeros(where.prefix + where.forced, dtype=torch.bool)
    if isinstance(group, Tensor):
        check_grid(group, where.grid)
        mask[where.patches(image)] = group.flatten()
    elif group == "image":
        mask[: where.image] = True
    elif isinstance(group, tuple) and group[0] == "image":
        mask[where.patches(group[1])] = True
    else:
        mask[_position(where, ("prompt", 0) if group == "bos" else group)] = True
    return mask


def _position(where: Layout, group: tuple[str, int]) -> int:
    starts = {"prompt": where.image, "answer": where.prefix}
    counts = {"prompt": where.prompt, "answer": where.forced}
    if not isinstance(group, tuple) or group[0] not in starts:
        raise ValueError(f"{group!r} is no group of positions")
    kind, number = group
    if not 0 <= number < counts[kind]:
        raise ValueError(f"{kind} token {number} of {counts[kind]} was asked for")
    return starts[kind] + number


def check_grid(mask: Tensor, grid: int) -> None:
    """Raises ValueError unless it is a mark for each patch."""
    if mask.shape != (grid, grid) or mask.dtype != torch.bool:
        shape = " x ".join(map(str, mask.shape))
        raise ValueError(
            f"{mask.dtype} of {shape} patches; bool {grid} x {grid} needed"
        )
