"""Occlusion: cover a part of the picture, and ask again.

A map costs many passes, so it comes as an iterator too: a page can show it as it grows,
and stop it by closing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from vlm.image import to_rgb
from vlm.probes.asked import Asked
from vlm.probes.positions import check_grid

GREY = (128, 128, 128)


def occlusion(
    asked: Asked,
    index: int | Sequence[int],
    *,
    size: int | None = None,
    stride: int | None = None,
) -> Tensor:
    """How much log p of answer token `index` falls where the picture is covered.

    Zeiler and Fergus, arXiv:1311.2901: a grey square slides over the picture. A patch
    gets the mean over the squares that covered it.

    Args:
        index: one token, or several, whose mean is taken.
        size: side of the square in patches; None for a quarter of the grid.
        stride: patches from one square to the next; None for half of the size.
    Returns:
        float32 [rows, columns]; above zero where the picture speaks for the token.
    Raises:
        ValueError: the answer has no such token, or the squares do not cover the grid.
    """
    *_, (_, heat) = occluding(asked, index, size=size, stride=stride)
    return heat


def occluding(
    asked: Asked,
    index: int | Sequence[int],
    *,
    size: int | None = None,
    stride: int | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """`occlusion` square by square: the part that is done, and the map so far.

    A patch that no square has covered yet is nan.

    Raises:
        ValueError: see `occlusion`.
    """
    grid = asked.engine.config.vision.grid
    size = max(1, grid // 4) if size is None else size
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= size <= grid:
        raise ValueError(f"a square of {size} patches on a grid of {grid}")
    if not 1 <= stride <= size:
        raise ValueError(f"squares of {size} patches, {stride} apart, leave gaps")
    # The last one ends at the edge, whatever the stride.
    starts = sorted({*range(0, grid - size, stride), grid - size})
    squares = [(row, column) for row in starts for column in starts]
    return _slide(asked, index, squares, size)


def covered(asked: Asked, index: int | Sequence[int], mask: Tensor) -> float:
    """How much log p of answer token `index` falls with those patches painted grey.

    Args:
        mask: bool [rows, columns].
    Raises:
        ValueError: the answer has no such token, or the mask is not the grid's.
    """
    return float(asked.log_probability(index) - _covered(asked, index, mask))


def _slide(
    asked: Asked, index: int | Sequence[int], squares: list[tuple[int, int]], size: int
) -> Iterator[tuple[float, Tensor]]:
    grid = asked.engine.config.vision.grid
    total, count = torch.zeros(grid, grid), torch.zeros(grid, grid)
    before = asked.log_probability(index)
    for done, (row, column) in enumerate(squares, start=1):
        square = torch.zeros(grid, grid, dtype=torch.bool)
        square[row : row + size, column : column + size] = True
        total[square] += float(before - _covered(asked, index, square))
        count[square] += 1
        yield done / len(squares), total / count


def _covered(asked: Asked, index: int, mask: Tensor) -> Tensor:
    """log p of answer token `index` for the picture painted in part.

    Painted as the model sees it, a square of its own size: a patch is covered to its
    edge and no further.
    """
    config = asked.engine.config.vision
    check_grid(mask, config.grid)
    sides = (config.image_size, config.image_size)
    square = to_rgb(asked.images[asked.focus]).resize(sides, Image.Resampling.BICUBIC)
    patch = config.patch_size
    for row, column in mask.nonzero().tolist():
        x, y = column * patch, row * patch
        square.paste(GREY, (x, y, x + patch, y + patch))
    return asked.of(square).log_probability(index, keep=False)
