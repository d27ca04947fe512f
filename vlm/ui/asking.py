"""Asking: one question with all that it is asked with, and the views of its answer.

    ask = Ask(engine.name, "cat.jpg", "detect cat", settings=Settings(style="Top-p"))
    for view in views(engine, store, ask):
        ...  # the last one has "done"

Every way to ask goes through here: the tabs of the page and the named endpoints.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import log
from typing import Any

import vlm
from vlm.ui import pictures, prompts, view
from vlm.ui.store import Entry, Store, pack

MAX_TOKENS = 512
MAX_TRIES = 8
PAUSE = 0.08  # seconds between two views; a slow browser could not follow more
STYLES = ("Greedy", "Temperature", "Top-p", "Top-k")


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn, and how many.

    Raises:
        ValueError: what is out of its range, and the range.
    """

    style: str = STYLES[0]
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 40
    seed: int = 0
    tries: int = 1
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"Draw by one of {', '.join(STYLES)}; not {self.style!r}.")
        _within("Temperature", self.temperature, 0.05, 5)
        _within("Top-p", self.top_p, 0.01, 1)
        _within("Top-k", self.top_k, 1, 1000)
        _within("Seed", self.seed, 0, 2**31 - 1)
        _within("Best of", self.tries, 1, MAX_TRIES)
        _within("Maximum tokens", self.max_tokens, 1, MAX_TOKENS)

    def sampler(self, number: int = 0) -> Any:
        """Of try `number`; each try has a seed of its own."""
        seed, heat = int(self.seed) + number, float(self.temperature)
        return {
            "Greedy": lambda: vlm.greedy,
            "Temperature": lambda: vlm.Temperature(heat, seed=seed),
            "Top-p": lambda: vlm.TopP(float(self.top_p), heat, seed=seed),
            "Top-k": lambda: vlm.TopK(int(self.top_k), heat, seed=seed),
        }[self.style]()

    @property
    def draws(self) -> int:
        """Greedy gives the same answer each time, so it is tried once."""
        return 1 if self.style == "Greedy" else int(self.tries)


@dataclass(frozen=True)
class Ask:
    """A picture's file, a prompt, and what they are asked with.

    Attributes:
        model: the engine's name.
        prompt: as it was typed; it is cleaned here.
        start: a forced start of the answer, as text or as ids.

    Raises:
        ValueError: there is no picture, or the prompt or the start cannot be asked.
    """

    model: str
    picture: str
    prompt: str
    start: str | tuple[int, ...] = ""
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not self.picture:
            raise ValueError("Choose a picture first: drop, paste or photograph one.")
        object.__setattr__(self, "prompt", prompts.cleaned(self.prompt))
        if len(self.start) > MAX_TOKENS:
            raise ValueError(
                f"The start of the answer is {len(self.start)} long; "
                f"at most {MAX_TOKENS}. Cut it."
            )

    def told(self) -> dict[str, Any]:
        """What the viewer is told of it. The file's place is nobody's business."""
        return {
            "model": self.model,
            "question": self.prompt,
            "start": self.start if isinstance(self.start, str) else list(self.start),
            "settings": asdict(self.settings),
        }


def asked_for(model: str, picture: str, prompt: str, *how: Any) -> Ask:
    """From the page's controls: the fields of `Settings`, then the answer's start."""
    *values, start = how
    return Ask(model, picture, prompt, start or "", Settings(*values))


def views(engine: Any, store: Store, ask: Ask) -> Iterator[view.View]:
    """A view at the start, views as tokens come, and one when all is done.

    Of several tries, the one whose tokens are most probable on average is shown last.

    Raises:
        ValueError: the picture cannot be read, or the model cannot be asked.
    """
    image = pictures.read(ask.picture)
    begun = {
        **view.empty(engine, image),
        **ask.told(),
        "prompt": view.prompt_tokens(engine, ask.prompt),
    }
    tries: list[view.View] = []
    for number in range(ask.settings.draws):
        for now in _try(engine, store, ask, image, begun, number):
            told = [_told_try(one) for one in tries]
            yield {**now, "tries": told, "try": len(tries), "done": False}
        tries.append(now)
    best = max(range(len(tries)), key=lambda i: _mean_log(tries[i]))
    end = {
        **tries[best],
        "tries": [_told_try(one) for one in tries],
        "try": best,
        "done": True,
    }
    store.finish(end["run"], end)
    yield end


def _try(
    engine: Any, store: Store, ask: Ask, image: Any, begun: view.View, number: int
) -> Iterator[view.View]:
    run, trace, steps = store.open(ask), vlm.Trace(), []
    now = {**begun, "run": run}
    yield now

    began = shown = time.perf_counter()
    limit = ask.settings.max_tokens
    stream = engine.stream(
        image,
        ask.prompt,
        answer=ask.start,
        echo=True,
        sampler=ask.settings.sampler(number),
        max_tokens=limit,
        tap=trace,
    )
    first = None
    with contextlib.closing(stream):
        for step in stream:
            clock = time.perf_counter()
            first = first or clock - began
            steps.append(step)
            store.add(run, f"a{step.index}", _entry(trace, step))
            found = vlm.objects(steps, image.size, masks=engine.masks)
            now = {
                **now,
                "text": now["text"] + step.text,
                "tokens": [*now["tokens"], view.token(engine, step)],
                "objects": view.objects(found),
                "timing": view.timing(first, clock - began, len(steps)),
                "memory": view.memory(engine, now, len(steps)),
            }
            if len(steps) == 1 or clock - shown >= PAUSE:
                yield now
                shown = time.perf_counter()
            if len(steps) == 1:
                _keep_prompt(store, run, trace, len(now["prompt"]))
        if not steps:
            _keep_prompt(store, run, trace, len(now["prompt"]))
    forced = trace.where.forced
    yield {**now, "forced": forced, "cut": len(steps) - forced == limit}


def _entry(trace: Any, step: Any) -> Entry:
    attention = vlm.probes.image_attention(trace, step.index).numpy()
    shares = vlm.probes.attention_shares(trace, step.index).numpy()
    return Entry(pack(attention, shares), view.candidates(step), step.bins)


def _keep_prompt(store: Store, run: str, trace: Any, count: int) -> None:
    # After the first token, so that it does not make the first token late.
    for position in range(1, count + 1):  # 0 is <bos>
        attention = vlm.probes.prompt_attention(trace, position).numpy()
        shares = vlm.probes.prompt_shares(trace, position).numpy()
        store.add(run, f"p{position}", Entry(pack(attention, shares)))


def _mean_log(one: view.View) -> float:
    chances = [token["probability"] for token in one["tokens"]]
    return sum(log(max(p, 1e-9)) for p in chances) / len(chances) if chances else 0.0


def _told_try(one: view.View) -> dict[str, Any]:
    return {"run": one["run"], "text": one["text"], "score": round(_mean_log(one), 3)}


def _within(name: str, number: Any, low: float, high: float) -> None:
    if not isinstance(number, (int, float)) or not low <= number <= high:
        raise ValueError(f"{name} is {number}; give a number from {low} to {high}.")
