"""Answering: what a model computes for the page when it is asked something.

    for said in answered(engine, image, ask):
        ...  # of each token its maps, and from time to time what is to be shown

On ZeroGPU this is what runs where the GPU is; `vlm.ui.asking` makes views of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
from PIL import Image

import vlm
from vlm.probes.attention import shares
from vlm.tap import Layout
from vlm.ui import view
from vlm.ui.store import Entry, pack
from vlm.ui.zero import on_gpu

Pictures = Image.Image | list[Image.Image]

PAUSE = 0.08  # seconds between two views; a slow browser could not follow more
BLOCK = 16  # tokens of a prompt whose maps are in memory at a time


def listed(image: Pictures) -> list[Image.Image]:
    return [image] if isinstance(image, Image.Image) else image


def _seconds(engine: Any, image: Pictures, ask: Any) -> float:
    """How long the answers take at most, with a 3B model on ZeroGPU: an estimate.

    To read the pictures and the prompt, and then each token.
    """
    rows, columns = engine.describe()["grid"]
    each = len(listed(image)) * rows * columns / 1000 + 0.06 * ask.settings.max_tokens
    return 10 + ask.settings.draws * each


@on_gpu(seconds=_seconds)
def answered(engine: Any, image: Pictures, ask: Any) -> Iterator[Said]:
    """All tries of a `vlm.ui.asking.Ask`, one after the other.

    Something is yielded with each token, as only then it can be ended.
    """
    for number in range(ask.settings.draws):
        yield from _try(engine, image, ask, _Heard(ask.settings.sampler(number)))


@on_gpu(seconds=20)
def scored(
    engine: Any, image: Pictures, prompt: str, answer: str | Sequence[int]
) -> tuple[vlm.Step, ...]:
    """What `Engine.score` gives."""
    return engine.score(image, prompt, answer)


@on_gpu(seconds=20)
def attended(
    engine: Any, image: Pictures, prompt: str, answer: Sequence[int], index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where one token of an answer looked.

    float32 [layers, heads, rows, columns], several pictures' rows under each other,
    and, as shares, [layers, heads, 4]; see `vlm.probes.image_attention` and
    `attention_shares`.
    """
    trace = vlm.Trace()
    engine.score(image, prompt, answer, tap=trace)
    return _attention(trace, index)


@dataclass(frozen=True)
class Said:
    """What has become known: `entries` for the store, and changes of the view.

    `told` is empty while there is nothing to be shown. The last of a try has its
    `score`.
    """

    entries: dict[str, Entry]
    told: dict[str, Any] = field(default_factory=dict)
    score: float | None = None


def _try(engine: Any, image: Pictures, ask: Any, sampler: _Heard) -> Iterator[Said]:
    trace, steps, tokens = vlm.Trace(), [], []
    count, first_size = len(listed(image)), listed(image)[0].size
    prompt = len(engine.ids(ask.prompt)) - 1  # without <bos>
    began = clock = shown = time.perf_counter()
    limit = int(ask.settings.max_tokens)
    stream = engine.stream(
        image,
        ask.prompt,
        answer=ask.start,
        echo=True,
        sampler=sampler,
        max_tokens=limit,
        tap=trace,
    )
    first = None

    def so_far() -> dict[str, Any]:
        said = {
            "text": "".join(step.text for step in steps),
            "tokens": [*tokens],
            "forced": trace.where.forced,
        }
        if not steps:
            return said
        # An answer does not say in which picture: its boxes lie on the first.
        found = vlm.objects(steps, first_size, masks=engine.masks)
        # Those of the forced start cost nothing.
        done = len(steps) - trace.where.forced
        return said | {
            "objects": view.objects(found),
            "timing": first and view.timing(first, clock - began, done),
            "memory": view.memory(engine, prompt + len(steps), count),
        }

    with contextlib.closing(stream):
        for step in stream:
            clock = time.perf_counter()
            steps.append(step)
            tokens.append(view.token(engine, step))
            if len(steps) == trace.where.forced + 1:
                first = clock - began
            due = len(steps) == 1 or clock - shown >= PAUSE
            yield Said({f"a{step.index}": _entry(trace, step)}, so_far() if due else {})
            if due:
                shown = time.perf_counter()
            if len(steps) == 1:
                yield from _of_prompt(trace, prompt)
        if not steps:
            yield from _of_prompt(trace, prompt)
    now = so_far()
    now["cut"] = len(steps) - trace.where.forced == limit
    yield Said({}, now, round(_mean_log(now, sampler), 3))


def _entry(trace: Any, step: Any) -> Entry:
    packed = pack(*_attention(trace, step.index))
    return Entry(packed, view.candidates(step), step.bins)


def _attention(trace: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    return _looks(trace.answer_row(index), trace.where)


def _of_prompt(trace: Any, count: int) -> Iterator[Said]:
    # After the first token, so that it does not make the first token late.
    for first in range(1, count + 1, BLOCK):  # 0 is <bos>
        block = range(first, min(first + BLOCK, count + 1))
        maps, parts = _looks(trace.prompt_rows(block), trace.where)
        packed = map(pack, maps, parts)
        yield Said({f"p{at}": Entry(each) for at, each in zip(block, packed)})


def _looks(rows: Any, where: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Rows [..., S] as maps [..., images * rows, columns] and as shares [..., 4]."""
    maps = rows[..., : where.image].unflatten(-1, (-1, where.grid))
    return maps.numpy(), shares(rows, where).numpy()


class _Heard:
    """A sampler that remembers what it chose last.

    Where an answer ended by itself, that is its end, which is no step.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._last: tuple[Any, int] | None = None

    def start(self) -> Any:
        pick = self._sampler.start()

        def heard(logits: Any) -> int:
            token = pick(logits)
            self._last = logits, token
            return token

        return heard

    def last(self) -> list[float]:
        """The probability of that choice; none if there was no choice yet."""
        if self._last is None:
            return []
        logits, token = self._last
        return [float(logits.softmax(-1)[token])]


def _mean_log(one: dict[str, Any], heard: _Heard) -> float:
    """Mean log-probability of what was said, the end of the answer included.

    Without the end, saying nothing would be compared with nothing.
    """
    said = [token["probability"] for token in one["tokens"][one["forced"] :]]
    chances = said if one["cut"] else said + heard.last()
    return sum(log(max(p, 1e-9)) for p in chances) / len(chances) if chances else 0.0
