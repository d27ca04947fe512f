"""Many questions at once: each pass is one over all of them, padded on the left.

    asked = [(image, "detect cat"), (image, "caption en"), (other, "detect dog")]
    for answer in vlm.answers(engine, asked):
        print(answer.text)

A step of one answer reads all weights for a single token; a step of many reads them
once for all. What comes out is what `Engine.generate` gives one by one, as far as
rounding goes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.answer import Answer, Step, Timing
from vlm.cache import KVCache
from vlm.engine import Engine
from vlm.grounding import objects
from vlm.image import pixels
from vlm.samplers import Sampler, finite, greedy
from vlm.tap import Tap, Weights

Question = tuple[Image.Image, str]


def answers(
    engine: Engine,
    questions: Sequence[Question],
    *,
    batch: int = 8,
    sampler: Sampler = greedy,
    max_tokens: int = 256,
    stop: Collection[int] | None = None,
) -> Iterator[Answer]:
    """Answers to pairs of an image and a prompt, in their order, `batch` at a time.

    An image that neighbouring questions share, the same object, is looked at once.
    Nothing is kept for a later question. An answer's timing counts from the start of
    its batch. Each has its `heat`.

    Args:
        batch: so many are answered together. More of them take more memory, and each
            waits for the longest answer among them.
        sampler, max_tokens, stop: for each answer, as in `Engine.stream`.
    Raises:
        ValueError: what is no image, an empty prompt, or a number below one.
    """
    for number, (image, prompt) in enumerate(questions):
        if not isinstance(image, Image.Image):
            kind = type(image).__name__
            raise ValueError(f"question {number} is about a {kind}; give a PIL image")
        if not prompt.strip():
            raise ValueError(f"the prompt of question {number} is empty")
    for name, value in (("batch", batch), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    ends = frozenset(engine.config.eos if stop is None else stop)
    return (
        answer
        for start in range(0, len(questions), batch)
        for answer in _together(
            engine, questions[start : start + batch], sampler, max_tokens, ends
        )
    )


@torch.no_grad()
def _together(
    engine: Engine,
    questions: Sequence[Question],
    sampler: Sampler,
    max_tokens: int,
    ends: frozenset[int],
) -> list[Answer]:
    start = time.perf_counter()
    model, patches = engine.model, engine.config.vision.patches
    prompts = [
        engine.tokenizer.prompt(prompt, patches=patches) for _, prompt in questions
    ]
    padding = padded(prompts, engine.config.pad)
    ids, valid = (part.to(engine.device) for part in padding)
    features = _features(engine, [image for image, _ in questions])
    cache = KVCache(engine.config.decoder.depth, ids.shape[1] + max_tokens - 1)
    gaze = Gaze(padding=(~valid).sum(dim=1), patches=patches)
    how = {"cache": cache, "tap": gaze, "last": 1}
    logits = model(ids, features, prefix=torch.ones_like(valid), valid=valid, **how)
    rows = [_Row(engine, image, sampler, start) for image, _ in questions]
    going = rows
    for index in range(max_tokens):
        seen = gaze.take()
        tokens = [row.pick(each) for row, each in zip(going, finite(logits[:, 0]))]
        left = [i for i, token in enumerate(tokens) if token not in ends]
        for i in left:
            going[i].add(index, tokens[i], logits[i, 0], seen[i])
        if not left or index + 1 == max_tokens:
            break
        if len(left) < len(going):  # who has ended is not computed any further
            cache.keep(left)
            gaze.keep(left)
            going = [going[i] for i in left]
        ids = torch.tensor([[tokens[i]] for i in left], device=engine.device)
        logits = model(ids, **how)
    return [row.answer() for row in rows]


def padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids, long [B, T], padded on the left; and bool [B, T], False for padding.

    All prompts end in the last column, so that each answer's first token is predicted
    there and all go on in the same columns:

        . . i i i i bos caption \\n
        i i i i bos detect a cat \\n
    """
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad)
    valid = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        valid[row, length - len(prompt) :] = True
    return ids, valid


class Gaze(Tap):
    """Of the attention that leads to each row's next token, that on each patch.

    Args:
        padding: long [B], columns before a row's first patch.
    """

    attention_only = True

    def __init__(self, padding: Tensor, patches: int) -> None:
        columns = torch.arange(patches, device=padding.device)
        self.places = padding[:, None] + columns  # [B, P]
        self.layers: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "decoder":
            rows = weights(slice(-1, None))[:, :, 0].mean(dim=1)  # [B, S]
            self.layers.append(rows.gather(1, self.places.to(rows.device)))

    def take(self) -> np.ndarray:
        """float32 [B, P] of the last pass, the mean over layers and heads."""
        first = self.layers[0].device
        mean = torch.stack([layer.to(first) for layer in self.layers]).mean(dim=0)
        self.layers.clear()
        return mean.cpu().numpy()

    def keep(self, rows: list[int]) -> None:
        """Of the coming passes there are only those rows."""
        self.places = self.places[rows]


class _Row:
    """One answer while it grows."""

    def __init__(
        self, engine: Engine, image: Image.Image, sampler: Sampler, start: float
    ) -> None:
        self.engine = engine
        self.size = image.size
        self.pick = sampler.start()
        self.text = engine.tokenizer.stream()
        self.steps: list[Step] = []
        self.heat = np.zeros(engine.config.vision.patches, np.float32)
        self.start = start
        self.times: list[float] = []

    def add(self, index: int, token: int, logits: Tensor, seen: np.ndarray) -> None:
        share, text = float(seen.sum()), self.text.add(token)
        self.steps.append(self.engine.step(index, token, text, logits, share))
        self.heat += seen
        self.times.append(time.perf_counter() - self.start)

    def answer(self) -> Answer:
        count, masks = len(self.steps), self.engine.masks
        now = time.perf_counter() - self.start
        first, last = (self.times[0], self.times[-1]) if self.times else (now, now)
        grid = self.engine.config.vision.grid
        return Answer(
            text=self.engine.tokenizer.decode(step.token for step in self.steps),
            steps=tuple(self.steps),
            objects=tuple(objects(self.steps, self.size, masks=masks)),
            timing=Timing(first_token=first, total=last, tokens=count),
            heat=self.heat.reshape(grid, grid) / max(1, count),
        )


def _features(engine: Engine, images: Sequence[Image.Image]) -> Tensor:
    """[B, P, D] of the images, each of which is looked at once."""
    config = engine.config.vision
    distinct = {id(image): image for image in images}
    x = [
        pixels(image, config.image_size, channels=config.channels)
        for image in distinct.values()
    ]
    seen = engine.model.look(torch.cat(x).to(engine.device, engine.dtype))
    place = {key: number for number, key in enumerate(distinct)}
    return seen[[place[id(image)] for image in images]]
