"""An engine without a model: says what it is told, and looks where the thing is.

It talks to the tap as the model does, so a real `vlm.Trace` and real probes see it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
import torch

from vlm.engine import Candidate, Step
from vlm.tap import Layout, Tap, Weights

# name -> x1, y1, x2, y2 in shares of the picture
THINGS = {
    "cat": (0.12, 0.50, 0.33, 0.84),
    "dog": (0.39, 0.50, 0.65, 0.86),
    "ball": (0.68, 0.74, 0.79, 0.90),
}
SENTENCE = "A cat, a dog and a ball in the grass under a tree."


class Words:
    """Words and <loc> are tokens, numbered as they come."""

    def __init__(self) -> None:
        self.known = ["<pad>", "<eos>", "<bos>"]

    @property
    def size(self) -> int:
        return len(self.known)

    def id(self, text: str) -> int:
        if text not in self.known:
            self.known.append(text)
        return self.known.index(text)

    def piece(self, token: int) -> str:
        return self.known[token]


class FakeEngine:
    """`live` counts the answers in the making, `whole` those that came to their end.

    `delay` is in seconds per token. Where there is one, an answer that goes on
    "forever" takes its time, so that it still runs when a slow machine looks at it.
    """

    def __init__(
        self,
        *,
        layers: int = 4,
        heads: int = 4,
        grid: int = 8,
        delay: float = 0.03,
        name: str = "fake",
    ) -> None:
        self.name = name
        self.layers, self.heads, self.grid = layers, heads, grid
        self.delay = delay
        self.live = self.whole = 0
        self.masks = None
        self.tokenizer = Words()

    def describe(self) -> dict:
        return {
            "name": self.name,
            "device": "cpu",
            "dtype": "float32",
            "arithmetic": "float32",
            "parameters": 0,
            "layers": self.layers,
            "heads": self.heads,
            "grid": [self.grid, self.grid],
            "image_size": 16 * self.grid,
            "tasks": ["caption", "detect", "segment"],
            "note": "Knows <b>nothing</b>.",
            "cache_bytes": 1000,
        }

    def ids(self, prompt: str, answer: str | Sequence[int] = "") -> list[int]:
        words = re.findall(r" ?<loc\d{4}>| ?[^ ]+", prompt)
        ids = [self.tokenizer.id(word) for word in ["<bos>", *words, "\n"]]
        return ids + self._answer_ids(answer)

    def stream(
        self,
        image,
        prompt,
        *,
        answer="",
        sampler=None,
        max_tokens=256,
        tap=None,
        echo=False,
    ) -> Iterator[Step]:
        """A forced start replaces what would have been said up to its end."""
        self.live += 1
        try:
            forced = self._answer_ids(answer)
            images = len(image) if isinstance(image, list) else 1
            steps = self._stream(prompt, forced, max_tokens, tap or Tap(), images)
            yield from steps if echo else islice(steps, len(forced), None)
            self.whole += 1
        finally:
            self.live -= 1

    def score(self, image, prompt, answer, *, tap=None) -> tuple[Step, ...]:
        count = len(self._answer_ids(answer))
        steps = self.stream(image, prompt, answer=answer, tap=tap, echo=True)
        with contextlib.closing(steps):
            return tuple(islice(steps, count))

    def _answer_ids(self, answer: str | Sequence[int]) -> list[int]:
        if not isinstance(answer, str):
            return list(answer)
        words = re.findall(r" ?<loc\d{4}>| ?[^ ]+", answer)
        return [self.tokenizer.id(word) for word in words]

    def _stream(
        self, prompt: str, forced: list[int], max_tokens: int, tap: Tap, images: int
    ) -> Iterator[Step]:
        length, count = len(self.ids(prompt)), len(forced)
        patches = images * self.grid**2
        tap.layout(
            Layout(
                layers=self.layers,
                images=images,
                grid=self.grid,
                prompt=length,
                forced=count,
            )
        )
        start = [(self.tokenizer.piece(token), (0.5, 0.5)) for token in forced]
        said = start + self._answer(prompt)[count : count + max_tokens]
        places = [place for _, place in said] or [(0.5, 0.5)]
        first = [places[0]] * (patches + length - 1) + places[: count + 1]
        self._tell(tap, first, patches + length + count, images)
        delay = 0.1 if self.delay and "forever" in prompt else self.delay
        for index, (text, _) in enumerate(said):
            if index >= count:
                time.sleep(delay)
            yield self._step(index, text)
            if count <= index and index + 1 < len(said):
                keys = patches + length + index + 1
                self._tell(tap, [places[index + 1]], keys, images)

    def _answer(self, prompt: str) -> list[tuple[str, tuple[float, float]]]:
        """Tokens, each with the place it looks at. A prompt may ask for a failure."""
        if "nothing" in prompt:
            return []
        if "broken" in prompt:
            raise ValueError("The model is broken. Load another.")
        if "forever" in prompt:
            return [(f" word{i % 7}", (0.5, 0.5)) for i in range(512)]
        if "markup" in prompt:
            return [(f" {text}", (0.5, 0.5)) for text in prompt.split()[1:]]
        if not prompt.startswith(("detect", "segment")):
            return [(word, (0.4, 0.6)) for word in re.findall(r" ?[^ ]+", SENTENCE)]
        tokens = []
        for name, (x1, y1, x2, y2) in THINGS.items():
            middle = (x1 + x2) / 2, (y1 + y2) / 2
            locs = [f"<loc{int(1024 * edge):04d}>" for edge in (y1, x1, y2, x2)]
            tokens += [(text, middle) for text in (*locs, f" {name}", " ;")]
        return tokens[:-1]

    def _step(self, index: int, text: str) -> Step:
        sure = (0.96, 0.88, 0.74, 0.93, 0.41)[index % 5]
        loc = re.fullmatch(r"<loc(\d{4})>", text)
        loc = loc if loc and int(loc[1]) < 1024 else None
        bin = int(loc[1]) if loc else None
        others = (
            [f"<loc{(bin + d) % 1024:04d}>" for d in (-3, 2, 5, -8)] if loc else None
        )
        others = others or [" a", " the", " pup", "<eos>"]
        shares = [(1 - sure) * part for part in (0.5, 0.25, 0.12, 0.06)]
        return Step(
            index=index,
            token=self.tokenizer.id(text),
            text=text,
            probability=sure,
            candidates=tuple(
                Candidate(self.tokenizer.id(other), other, share)
                for other, share in zip([text, *others], [sure, *shares], strict=True)
            ),
            image_share=0.4,
            loc=bin,
            bin_probability=sure if loc else None,
            bins=_bins(bin, sure) if loc else None,
        )

    def _tell(
        self, tap: Tap, places: list[tuple[float, float]], keys: int, images: int
    ) -> None:
        for layer in range(self.layers):
            weights = self._weights(layer, places, keys, images)
            tap.attention("decoder", layer, weights)

    def _weights(
        self, layer: int, places: list[tuple[float, float]], keys: int, images: int
    ):
        def rule(_q: torch.Tensor, _k: torch.Tensor, rows: slice) -> torch.Tensor:
            one = keys - (images - 1) * self.grid**2
            picked = [
                _over(self._row(layer, place, one), self.grid**2, images)
                for place in places[rows]
            ]
            return torch.stack(picked, dim=1)[None]

        q, k = (torch.empty(1, 1, count, 0) for count in (len(places), keys))
        return Weights(rule, q, k)

    def _row(self, layer: int, place: tuple[float, float], keys: int) -> torch.Tensor:
        """One query's attention, [heads, keys]: the place, and evenly over the text."""
        spot = _spot(self.heads, self.grid, layer, place)
        words = keys - spot.shape[1]
        rest = (1 - spot.sum(-1, keepdim=True)) / words
        return torch.cat([spot, rest.expand(-1, words)], -1)


@lru_cache(maxsize=512)  # the same few places are looked at again and again
def _spot(
    heads: int, grid: int, layer: int, place: tuple[float, float]
) -> torch.Tensor:
    """What looks at a place of the picture, [heads, patches]: later heads do more."""
    centers = (torch.arange(grid) + 0.5) / grid
    x, y = (torch.exp(-(((centers - at) / 0.12) ** 2)) for at in place)
    spot = torch.outer(y, x).flatten()
    noise = torch.rand(len(spot), generator=torch.Generator().manual_seed(layer))
    later = torch.arange(heads)[:, None] / heads
    image = spot * (later + 1 / heads) + 0.1 * noise
    return (0.2 + 0.5 * later) * image / image.sum(-1, keepdim=True)


def _over(row: torch.Tensor, patches: int, images: int) -> torch.Tensor:
    """A row about one image as one about several: the second is looked at twice as
    much, with each place turned about the middle, the third thrice as much, and so on.
    """
    spot, text = row[:, :patches], row[:, patches:]
    looks = [(n + 1) * (spot.flip(-1) if n % 2 else spot) for n in range(images)]
    share = 1 / sum(range(images + 1))
    return torch.cat([share * torch.cat(looks, -1), text], -1)


def _bins(bin: int, sure: float) -> np.ndarray:
    """All 1024 probabilities: `sure` on one, the rest about it."""
    rest = np.exp(-np.abs(np.arange(1024) - bin) / 20.0)
    rest[bin] = 0
    rest *= (1 - sure) / rest.sum()
    rest[bin] = sure
    return rest.astype(np.float32)


class Parrot(FakeEngine):
    """Finds one thing, which is named as it was asked for, whatever that is."""

    def _answer(self, prompt: str) -> list[tuple[str, tuple[float, float]]]:
        task, _, name = prompt.partition(" ")
        if task not in ("detect", "segment") or not name:
            return super()._answer(prompt)
        locs = ("<loc0100>", "<loc0200>", "<loc0500>", "<loc0600>")
        return [(text, (0.4, 0.3)) for text in (*locs, f" {name}")]
