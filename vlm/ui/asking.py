"""Asking: one question with all that it is asked with, and the views of its answer.

    ask = Ask(engine.name, "cat.jpg", "detect cat", settings=Settings(style="Top-p"))
    for view in views(engine, store, ask):
        ...  # the last one has "done"

Every way to ask goes through here: the tabs of the page and the named endpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import vlm
from vlm.ui import pictures, prompts, view
from vlm.ui.answering import Said, answered, scored
from vlm.ui.patience import awaited
from vlm.ui.store import Store

MAX_TOKENS = 512
MAX_TRIES = 8
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
        _within("Top-k", self.top_k, 1, 1000, whole=True)
        _within("Seed", self.seed, 0, 2**31 - 1, whole=True)
        _within("Best of", self.tries, 1, MAX_TRIES, whole=True)
        _within("Maximum tokens", self.max_tokens, 1, MAX_TOKENS, whole=True)

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
        start: a forced start of the answer, as text, which is cleaned too, or as ids.
        more: files of further pictures, read behind the first in this order.

    Raises:
        ValueError: there is no picture or there are too many, or the prompt or the
            start cannot be asked.
    """

    model: str
    picture: str
    prompt: str
    start: str | tuple[int, ...] = ""
    settings: Settings = field(default_factory=Settings)
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.picture:
            raise ValueError("Choose a picture first: drop, paste or photograph one.")
        if (count := len(self.pictures)) > pictures.MAX_PICTURES:
            most = pictures.MAX_PICTURES
            raise ValueError(f"These are {count} pictures; at most {most} are asked.")
        object.__setattr__(self, "prompt", prompts.cleaned(self.prompt))
        if len(self.start) > MAX_TOKENS:
            raise ValueError(
                f"The start of the answer is {len(self.start)} long; "
                f"at most {MAX_TOKENS}. Cut it."
            )
        if isinstance(self.start, str):
            object.__setattr__(self, "start", prompts.unhidden(self.start))

    @property
    def pictures(self) -> tuple[str, ...]:
        return self.picture, *self.more

    def told(self) -> dict[str, Any]:
        """What the viewer is told of it. The file's place is nobody's business."""
        return {
            "model": self.model,
            "question": self.prompt,
            "start": self.start if isinstance(self.start, str) else list(self.start),
            "settings": asdict(self.settings),
        }


def asked_for(
    model: str, picture: str, prompt: str, *how: Any, more: tuple[str, ...] = ()
) -> Ask:
    """From the page's controls: the fields of `Settings`, then the answer's start."""
    *values, start = how
    return Ask(model, picture, prompt, start or "", Settings(*values), more)


def views(
    engine: Any,
    store: Store,
    ask: Ask,
    old: view.View | None = None,
    *,
    mask_iou: float | None = None,
) -> Iterator[view.View]:
    """A view at the start, views as tokens come, and one when all is done.

    When the caller stops, or the answer fails, what was said is kept as a stopped
    answer's last view.
    Of several tries, the one whose tokens are most probable on average is shown last;
    the last view of each is kept in the store. With the last view of an `old` answer,
    these tell what the model thinks of that answer now. `mask_iou` is told in each, of
    an answer that begins with a mask.

    Raises:
        ValueError: the picture cannot be read, the model cannot be asked, or nobody
            waits any more; see `awaited`.
    """
    image = pictures.read_all(ask.pictures)
    begun = {
        **view.empty(engine.describe(), image),
        **ask.told(),
        "prompt": view.prompt_tokens(engine, ask.prompt),
        "before": old and _rescored(engine, image, ask.prompt, old),
        "mask_iou": mask_iou,
    }
    tries, told = [], []
    with contextlib.closing(awaited(answered(engine, image, ask))) as news:
        for number in range(ask.settings.draws):
            now = {**begun, "run": store.open(ask), "tries": told, "try": number}
            score = None
            try:
                yield now
                while score is None:
                    said = _shown(store, now["run"], news)
                    now, score = {**now, **said.told}, said.score
                    yield now
            except (GeneratorExit, Exception):  # what was said can still be taken away
                _finish(store, [*tries, {**now, "stopped": True}], told)
                raise
            tries.append(now)
            told = [*told, {"run": now["run"], "text": now["text"], "score": score}]
    ends = _finish(store, tries, told)
    yield max(ends, key=lambda end: told[end["try"]]["score"])


def _finish(store: Store, tries: list[view.View], told: list[dict]) -> list[view.View]:
    ends = [
        {**one, "tries": told, "try": number, "done": True}
        for number, one in enumerate(tries)
    ]
    for end in ends:
        store.finish(end["run"], end)
    return ends


def _shown(store: Store, run: str, news: Iterator[Said]) -> Said:
    """The next that is to be shown; the entries until then are kept."""
    for said in news:
        for key, entry in said.entries.items():
            store.add(run, key, entry)
        if said.told:
            return said
    raise RuntimeError("the answer has no end")


def _rescored(engine: Any, image: Any, prompt: str, old: view.View) -> dict[str, Any]:
    """An earlier answer: its run, its tokens, and how probable each is `now`."""
    steps = scored(engine, image, prompt, [token["id"] for token in old["tokens"]])
    fields = ("text", "id", "probability")
    return {
        "run": old["run"],
        "text": old["text"],
        "tokens": [{key: token[key] for key in fields} for token in old["tokens"]],
        # What was sure may have become a millionth.
        "now": [{"probability": float(f"{step.probability:.3g}")} for step in steps],
    }


def _within(
    name: str, number: Any, low: float, high: float, *, whole: bool = False
) -> None:
    given = isinstance(number, (int, float)) and low <= number <= high
    if not given or (whole and number != int(number)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is {number}; give a {kind} from {low} to {high}.")
