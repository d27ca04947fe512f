"""Asked: a question and the answer to it, for probes that run the model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from vlm.engine import Engine
from vlm.tap import Layout


@dataclass(frozen=True)
class Asked:
    """An image or several, a prompt, and an answer, given or made: its token ids.

        steps = list(engine.stream(image, "detect cat"))
        asked = Asked(engine, image, "detect cat", tuple(s.token for s in steps))
        heat = relevancy(asked, 0)  # why this first token?

    A probe of answer token `index` runs one teacher-forced pass over the image, the
    prompt and the tokens before it.

    Attributes:
        focus: which of several images is asked about: maps on patches are of it, and
            what is covered, cut or noted as a patch is so in it alone.
    Raises:
        ValueError: there is no such image.
    """

    engine: Engine
    image: Image.Image | Sequence[Image.Image]
    prompt: str
    answer: tuple[int, ...]
    focus: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.focus < (count := len(self.images)):
            raise ValueError(f"image {self.focus} of {count} was asked for")

    @property
    def images(self) -> tuple[Image.Image, ...]:
        one = isinstance(self.image, Image.Image)
        return (self.image,) if one else tuple(self.image)

    def logits(self, index: int, **how: Any) -> Tensor:
        """float32 [V] at the row that leads to answer token `index`.

        `how` is features, tap, edit and keep, as `Engine.logits` takes them. An index
        of `len(answer)` is the row behind the answer.

        Raises:
            ValueError: the answer has no such token.
        """
        if not 0 <= index <= len(self.answer):
            raise ValueError(f"token {index} of {len(self.answer)} was asked for")
        before = self.answer[:index]
        return self.engine.logits(self.image, self.prompt, before, **how)[-1]

    def log_probability(self, index: int | Sequence[int], **how: Any) -> Tensor:
        """The natural logarithm of the probability of answer token `index`, float32.

        Of several tokens, the mean; one pass is enough for them.

        Raises:
            ValueError: the answer has no such token.
        """
        if isinstance(index, int):
            return self.logits(index, **how).log_softmax(-1)[self.token(index)]
        tokens = [self.token(each) for each in index]
        logits = self.engine.logits(self.image, self.prompt, self.answer, **how)
        start = len(logits) - len(self.answer) - 1  # the row that leads to the first
        rows = logits[[start + each for each in index]].log_softmax(-1)
        return rows[range(len(tokens)), tokens].mean()

    def token(self, index: int) -> int:
        if not 0 <= index < len(self.answer):
            raise ValueError(f"token {index} of {len(self.answer)} was asked for")
        return self.answer[index]

    def layout(self, index: int) -> Layout:
        """How the sequence lies in the pass for answer token `index`."""
        config = self.engine.config
        return Layout(
            layers=config.decoder.depth,
            images=len(self.images),
            grid=config.vision.grid,
            prompt=len(self.engine.ids(self.prompt)),
            forced=index,
        )

    def of(self, image: Image.Image) -> Asked:
        """The same, asked about another image in place of the one in focus."""
        if isinstance(self.image, Image.Image):
            return replace(self, image=image)
        before, after = self.images[: self.focus], self.images[self.focus + 1 :]
        return replace(self, image=(*before, image, *after))
