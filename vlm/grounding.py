"""Token ids to objects: boxes, masks, labels and how sure the model was of them.

And a mask to the tokens that say it.

    <loc0128><loc0256><loc0512><loc0768> cat ; <loc...
     y1       x1       y2       x2       label  next object

Between box and label, `segment` puts 16 `<segNNN>`, the codes of a mask. Objects are
read from tokens and not from text: a `<loc0128>` that was spelled out as characters is
a label like any other, and each object knows its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np

from vlm.masks import resize

BINS = 1024
CODES = 16

Masks = Callable[[tuple[int, ...]], np.ndarray]
"""16 codes 0..127 -> float32 [64, 64], the mask inside its box."""

Encode = Callable[[np.ndarray], Sequence[int]]
"""A mask [H, W] that is cropped to its box -> its 16 codes."""

Box = tuple[float | None, float | None, float | None, float | None]


def objects(
    steps: Iterable[GroundedStep],
    size: tuple[int, int],
    *,
    masks: Masks | None = None,
    parts: int = BINS,
) -> list[Object]:
    """What an answer, finished or still growing, says is where.

    `size` is (W, H) of the original image in pixels; `masks` decodes masks, such as
    `engine.masks`. It is asked on every call, so let it remember what it decoded.
    A coordinate is its bin divided by `parts`, of the side: 1024 as in Google's demo,
    or 1023 as in big_vision's evaluators and in what wrote the training boxes. The
    two differ by at most 0.1 % of the side.

    An answer may be cut or malformed anywhere, and nothing of it raises:

    - an object starts with its first loc token; text before that belongs to none
    - a box that is cut short stays incomplete; a fifth loc starts another object
    - a ";" ends the object; what follows it without a box belongs to none
    - codes count only right behind the box, up to 16; others belong to no object
    - inverted and empty boxes are kept and not `valid`

    More steps of the same answer never change a coordinate that is known, and only
    add to the list.
    """
    width, height = size
    bins = (width / parts, height / parts)
    return [draft.object(bins, masks) for draft in _drafts(steps)]


@dataclass(frozen=True)
class Object:
    """Something that the model located.

    Attributes:
        label: as far as known.
        box: x1, y1, x2, y2 in pixels of the original image; None where not yet known.
        mask: float32 [64, 64] inside the box, if all codes are there and were decoded.
        confidence: geometric mean of the coordinates' probabilities (each among the
            1024 bins) times the probabilities of the label's tokens, of what is known.
            A score of the model, not a calibrated probability.
        tokens: the `index` of each step that is part of the object.
        codes: of the mask; all 16, or fewer if the mask is cut short.
    """

    label: str
    box: Box
    # The codes stand for the mask when objects are compared.
    mask: np.ndarray | None = field(compare=False, repr=False)
    confidence: float
    tokens: tuple[int, ...]
    codes: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """All four coordinates are known, and all codes of the mask if it has one."""
        return None not in self.box and len(self.codes) in (0, CODES)

    @property
    def valid(self) -> bool:
        """The box is known and has an area."""
        x1, y1, x2, y2 = self.box
        return None not in self.box and x1 < x2 and y1 < y2


def duplicates(found: Sequence[Object], *, above: float = 0.9) -> list[int | None]:
    """For each object the first earlier one that it repeats, or None.

    The same label, and boxes whose intersection over union is greater than `above`:
    a model that does not know how to end says the same thing again.
    """
    return [
        next(
            (
                j
                for j, other in enumerate(found[:i])
                if other.label == thing.label
                and other.valid
                and thing.valid
                and overlap(other.box, thing.box) > above
            ),
            None,
        )
        for i, thing in enumerate(found)
    ]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two whole boxes; an inverted one has no area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def mask_tokens(
    mask: np.ndarray, encode: Encode, *, parts: int = BINS, band: int = 1
) -> str:
    """What PaliGemma would write for a region, without its label: the way back.

    The text holds four locs, the mask's bounding box, and sixteen segs. It can be the
    start of an answer, such as `engine.stream(..., "segment cat", answer=text)`.

    Args:
        mask: bool [H, W] over the whole image.
        encode: such as `engine.masks.encode`.
        parts: as in `objects`, which gives back the box when it is given the same. An
            edge is told by the nearest bin; with 1023, big_vision's own rounding. With
            1024 the last bin ends short of the right and lower side, by 0.1 %.
        band: tell each edge by the middle of a band of so many bins, for a model that
            has learnt no others. The codes stand for what is in the box that is told.

    Raises:
        ValueError: it is no such mask, or nothing is in it.
    """
    x1, y1, x2, y2 = tight = _bounds(mask)
    height, width = mask.shape
    left, right = _edges(x1 / width, x2 / width, parts, band)
    top, bottom = _edges(y1 / height, y2 / height, parts, band)
    told = (
        left * width / parts,
        top * height / parts,
        right * width / parts,
        bottom * height / parts,
    )
    inside = resize(mask, told)
    if inside.max() < 0.5:  # a sliver may lie beside the nearest box that can be told
        inside = resize(mask, tight)
    codes = encode(inside)
    locs = "".join(f"<loc{bin:04d}>" for bin in (top, left, bottom, right))
    return locs + "".join(f"<seg{code:03d}>" for code in codes)


def bin_of(share: float, *, parts: int = BINS, band: int = 1) -> int:
    """The bin for a share of a side; see `mask_tokens`."""
    bin = min(max(round(share * parts), 0), BINS - 1)
    return bin // band * band + band // 2


class GroundedStep(Protocol):
    """What is read of an `engine.Step`."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def loc(self) -> int | None:
        """Bin 0..1023 if the token is a coordinate."""

    @property
    def seg(self) -> int | None:
        """Code 0..127 if the token is a part of a mask."""

    @property
    def bin_probability(self) -> float | None:
        """Of `loc`, among the 1024 bins."""


def _drafts(steps: Iterable[GroundedStep]) -> list[_Draft]:
    drafts: list[_Draft] = []
    draft: _Draft | None = None  # the object that tokens belong to, if any
    for step in steps:
        if step.loc is not None:
            if draft is None or not draft.wants_loc:
                draft = _Draft()
                drafts.append(draft)
            draft.locs.append(step)
        elif draft is None:
            continue
        elif step.seg is not None:
            draft.cut = True
            if draft.wants_seg:
                draft.segs.append(step)
        else:
            draft.cut = True
            text, separator, _ = step.text.partition(";")
            if text.strip() or not separator:
                draft.words.append((step, text))
            if separator:
                draft = None
    return drafts


class _Draft:
    """An object while its tokens come in."""

    def __init__(self) -> None:
        self.locs: list[GroundedStep] = []
        self.segs: list[GroundedStep] = []
        self.words: list[tuple[GroundedStep, str]] = []
        self.cut = False  # something else than loc came, so the box gets no more

    @property
    def wants_loc(self) -> bool:
        return not self.cut and len(self.locs) < 4

    @property
    def wants_seg(self) -> bool:
        return len(self.locs) == 4 and not self.words and len(self.segs) < CODES

    def object(self, bins: tuple[float, float], masks: Masks | None) -> Object:
        """`bins` are a bin's width and height in pixels."""
        known = [step.loc for step in self.locs] + [None] * (4 - len(self.locs))
        y1, x1, y2, x2 = known
        wide, high = bins
        codes = tuple(step.seg for step in self.segs)
        tokens = [*self.locs, *self.segs, *(step for step, _ in self.words)]
        return Object(
            label="".join(text for _, text in self.words).strip(),
            box=(
                _pixels(x1, wide),
                _pixels(y1, high),
                _pixels(x2, wide),
                _pixels(y2, high),
            ),
            mask=masks(codes) if masks and len(codes) == CODES else None,
            confidence=self._confidence(),
            tokens=tuple(step.index for step in tokens),
            codes=codes,
        )

    def _confidence(self) -> float:
        bins = [
            step.probability if step.bin_probability is None else step.bin_probability
            for step in self.locs
        ]
        label = prod(step.probability for step, _ in self.words)
        return prod(bins) ** (1 / len(bins)) * label


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of what is in a mask, in pixels."""
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(
            f"a mask is bool [H, W], not {mask.dtype} {list(mask.shape)}; "
            "write `mask > 0.5` for one of numbers"
        )
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    if not len(rows):
        raise ValueError("nothing is in the mask, so it has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _edges(low: float, high: float, parts: int, band: int) -> tuple[int, int]:
    """Two bins that are not the same, of shares of a side."""
    first, last = (bin_of(share, parts=parts, band=band) for share in (low, high))
    if first < last:
        return first, last
    return (first, last + band) if last + band < BINS else (first - band, last)


def _pixels(bin: int | None, size: float) -> float | None:
    return None if bin is None else bin * size
