"""Models: the engines that the page asks, and the loading of others.

    models = Models(vlm.load, ["assets/tiny"], switching=True)
    models["tiny"]  # waits until it is there
    models.choose("google/paligemma2-3b-mix-224")
    models.news()  # what is being loaded, and how far it is

One thread loads, one checkpoint after the other. What answers goes on answering until
the next is ready. It is freed when the last request that holds it has ended, and no
other is loaded before that: two engines at most are in memory.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Thread
from typing import Any

Load = Callable[..., Any]  # (source, *, progress) -> engine; ValueError: a sentence
PAUSE = 0.2  # seconds between two looks whether an engine is free


@dataclass(frozen=True, eq=False)  # each one is itself, however alike
class Choice:
    """What is to be loaded: names, each with its source."""

    sources: dict[str, str]

    def __str__(self) -> str:
        return " and ".join(self.sources)


class OvertakenError(Exception):
    """Something else was chosen meanwhile."""


class Models:
    """Engines in their order, each under a name of its own."""

    def __init__(
        self, load: Load, sources: Iterable[str], *, switching: bool = False
    ) -> None:
        """Loading begins at once.

        Args:
            switching: whether another checkpoint may be chosen. It takes the place of
                the only one; where there are several, they stay.
        """
        first = named(sources)
        self.switching = switching and len(first) == 1
        self._load = load
        self._engines: dict[str, Any] = {}
        self._replaced: list[weakref.ref] = []
        self._sources = dict(first)  # by each name that was ever given
        self._choice: Choice | None = None
        self._words = self._error = ""
        self._version = 0
        self._working = False
        self._changed = Condition()
        if first:
            self._begin(Choice(first))

    @classmethod
    def of(cls, engines: Any) -> Models:
        """An engine that is there already, or several; they stay."""
        engines = list(engines) if isinstance(engines, Sequence) else [engines]
        models = cls(lambda source: None, [])
        models._engines = {engine.describe()["name"]: engine for engine in engines}
        return models

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that answer, or will when the first loading is done."""
        return tuple(self._engines or self._sources)

    @property
    def choices(self) -> tuple[str, ...]:
        """What a control may choose among: names, or "" for the one that answers.

        So a page that has only one needs no word when another takes its place.
        """
        return self.names if len(self.names) > 1 else ("",)

    def __getitem__(self, name: str) -> Any:
        """The engine of that name, once the first loading is done.

        Raises:
            ValueError: it does not answer here, or could not be loaded.
        """
        self.wait()
        engines = self._engines
        if name not in engines:
            here = " and ".join(engines)
            raise ValueError(
                f"{name} is no longer loaded, {here} answers here now. Press Run first."
            )
        return engines[name]

    def __iter__(self) -> Iterator[Any]:
        """The engines, once they are there."""
        self.wait()
        yield from self._engines.values()

    def wait(self, seconds: float | None = None) -> None:
        """Until the first loading is done, or for so long at most.

        Raises:
            ValueError: why nothing answers.
        """
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._engines or not self._choice, seconds
            )
            if done and not self._engines:
                raise ValueError(self._error)

    def asked(self, name: str | None = None) -> str:
        """Whom to ask who asks for `name`: the first if that does not answer here."""
        names = self.names
        return name if name in names else names[0]

    def about(self, name: str | None = None) -> dict[str, Any]:
        """What the engine to ask says of itself; little while it is not there yet."""
        name, engines = self.asked(name), self._engines
        if name not in engines:
            return {**UNKNOWN, "name": name}
        return engines[name].describe()

    def choose(self, source: str) -> None:
        """Load another in the background; it takes the place of what answers now.

        What is chosen last wins: a loading under way ends at its next word of
        progress, and what it brings is dropped. To choose what answers now, or "",
        only ends it.

        Raises:
            ValueError: nothing may be chosen here.
        """
        if not self.switching:
            raise ValueError(
                "Models cannot be switched here: start app.py with --menu, and with "
                "one model."
            )
        source = place(source.strip())
        with self._changed:
            name = self._name(source)
            self._error, self._choice = "", None
            if source and name not in self._engines:
                self._sources[name] = source
                self._begin(Choice({name: source}))
            self._changed.notify_all()

    def news(self) -> dict[str, Any]:
        """What answers, in what `version`, what is being loaded, and what went wrong.

        `loading` is a name, or empty; `words` tell how far that is.
        """
        with self._changed:
            return {
                "version": self._version,
                "names": list(self.names),
                "loading": str(self._choice or ""),
                "words": self._words if self._choice else "",
                "error": self._error,
            }

    def _begin(self, choice: Choice) -> None:
        self._choice, self._words = choice, f"Looking for {choice}"
        if not self._working:
            self._working = True
            Thread(target=self._work, name="load models", daemon=True).start()

    def _work(self) -> None:
        """Load what is chosen, until nothing is left to."""
        while True:
            with self._changed:
                choice = self._choice
                if choice is None:
                    self._working = False
                    return
            engines, error = self._loaded(choice)
            self._end(choice, engines, error)
            del engines
            gc.collect()  # the replaced one, unless a request still holds it

    def _loaded(self, choice: Choice) -> tuple[dict[str, Any], str]:
        """The engines of a choice, or what went wrong, or neither: it was overtaken."""
        engines = {}
        try:
            self._make_room(choice)
            for name, source in choice.sources.items():
                engine = self._load(source, progress=partial(self._tell, choice))
                engine.name = name
                engines[name] = engine
        except OvertakenError:
            return {}, ""
        except (ValueError, OSError) as error:
            return {}, str(error)
        except Exception as error:  # a mistake of ours; but nobody is to wait for ever
            logging.getLogger(__name__).exception("%s cannot be loaded", choice)
            return {}, f"{choice} cannot be loaded ({error or type(error).__name__})"
        return engines, ""

    def _make_room(self, choice: Choice) -> None:
        """Wait until the engine before the present one has ended its last answer."""
        while any(replaced() is not None for replaced in self._replaced):
            self._tell(choice, "Waiting for the last answer of the model before")
            with self._changed:
                self._changed.wait(PAUSE)
            gc.collect()
        self._replaced.clear()

    def _tell(self, choice: Choice, words: str) -> None:
        """Take a word of progress; a loading that was overtaken ends here."""
        with self._changed:
            if self._choice is not choice:
                raise OvertakenError
            self._words = words

    def _end(self, choice: Choice, engines: dict[str, Any], error: str) -> None:
        with self._changed:
            if self._choice is not choice:
                return
            self._choice, self._error = None, error
            if engines:
                self._replaced += map(weakref.ref, self._engines.values())
                self._engines = engines
                self._version += 1
            self._changed.notify_all()

    def _name(self, source: str) -> str:
        """What no other source has ever been called here."""
        name = short(source)
        return name if self._sources.get(name, source) == source else source


def named(sources: Iterable[str]) -> dict[str, str]:
    """Each source once, by its short name; those of equal names by their places."""
    sources = list(dict.fromkeys(map(place, sources)))
    names = [short(source) for source in sources]
    return {
        name if names.count(name) == 1 else source: source
        for name, source in zip(names, sources)
    }


def place(source: str) -> str:
    """A folder's whole path, so that one folder is one source; a Hub name as it is."""
    found = folder(source)
    return str(found.resolve()) if found else source


def short(source: str) -> str:
    """A folder's own name; a Hub name as it is."""
    found = folder(source)
    return found.name if found else source


def folder(source: str) -> Path | None:
    """The folder that a source names, if it is there."""
    try:
        path = Path(source).expanduser()
        return path if source and path.is_dir() else None
    except (OSError, RuntimeError):  # too long for a name, or nobody's home
        return None


UNKNOWN = {
    "device": "",
    "dtype": "",
    "arithmetic": "",
    "parameters": 0,
    "layers": 1,
    "heads": 1,
    "grid": [1, 1],
    "image_size": 1,
    "tasks": [],
    "note": "",
    "cache_bytes": 0,
}
