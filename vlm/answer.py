"""Answer: what a question was answered with, and each step on the way there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlm.grounding import Object


@dataclass(frozen=True)
class Candidate:
    """A token that could have stood here, and the model's probability of it."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Step:
    """One token of an answer.

    Attributes:
        index: position in the answer, a forced start included.
        text: whole characters only; a token that ends inside one has less or none.
        probability: the model's own, before temperature, final soft-cap applied.
        candidates: the most probable tokens, best first.
        image_share: of the attention that led here, how much lay on the image; mean
            over layers and heads.
        loc, seg: bin 0..1023 or mask code 0..127, for a token that is one.
        bin_probability: of a loc token among the 1024 of them.
        bins: float32 [1024], the probabilities of all of them; of a loc token only.
    """

    index: int
    token: int
    text: str
    probability: float
    candidates: tuple[Candidate, ...]
    image_share: float
    loc: int | None = None
    seg: int | None = None
    bin_probability: float | None = None
    bins: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Timing:
    """Seconds to the first token and in all, and the number of tokens."""

    first_token: float
    total: float
    tokens: int


@dataclass(frozen=True)
class Answer:
    """All of an answer.

    Attributes:
        heat: float32 [rows, columns], the attention on each patch of the image, mean
            over the answer's tokens, layers and heads; of `vlm.answers` only.
    """

    text: str
    steps: tuple[Step, ...]
    objects: tuple[Object, ...]
    timing: Timing
    heat: np.ndarray | None = field(default=None, compare=False, repr=False)
