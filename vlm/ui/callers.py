"""What callers of the endpoints send, which may be anything, and asking it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gradio_client.utils import is_file_obj_with_meta

import vlm
from vlm.probes import METHODS
from vlm.ui import pictures, prompts, view
from vlm.ui.answering import scored
from vlm.ui.asking import Ask, Settings, views
from vlm.ui.models import Models
from vlm.ui.refusing import warn
from vlm.ui.store import Store


class Caller:
    """Asks engines what came through an endpoint, and keeps nothing."""

    def __init__(self, engines: Models) -> None:
        self._engines = engines
        self._store = Store(0)  # keeps nothing: there is no viewer to look into it

    def _views(self, *asked: Any, **how: Any) -> Iterator[view.View]:
        ask = self._ask(*asked, **how)
        yield from views(self._engines[ask.model], self._store, ask)

    def _ask(
        self,
        image: Any,
        prompt: str,
        model: str,
        *,
        start: str = "",
        images: Any = None,
        **settings: Any,
    ) -> Ask:
        if not isinstance(start, str):
            raise ValueError("An answer, or the start of one, is given as text.")
        name = named(self._engines, model)
        warn(prompts.notice(prompt))
        how = Settings(**settings)
        return Ask(name, sent(image), prompt, start, how, sent_all(images))

    def _given(
        self, image: Any, prompt: str, model: str, answer: str
    ) -> tuple[Ask, tuple[vlm.Step, ...]]:
        """A given answer's tokens, or those of the model's own greedy one."""
        ask = self._ask(image, prompt, model, start=answer)
        if not ask.start:
            said = last(self._views(image, prompt, model))["tokens"]
            ask = replace(ask, start=tuple(each["id"] for each in said))
        engine, image = self._engines[ask.model], pictures.read_all(ask.pictures)
        steps = scored(engine, image, ask.prompt, ask.start)
        if not steps:
            raise ValueError("The answer has no token to look at. Give an answer.")
        return ask, steps


def last(seen: Iterator[view.View]) -> view.View:
    return deque(seen, maxlen=1).pop()


def named(engines: Models, model: str) -> str:
    """The model to ask: the first one if none is named."""
    if model and model not in engines.names:
        here = ", ".join(engines.names)
        raise ValueError(f"There is no model {model!r}, only {here}.")
    return engines.asked(model)


def sent(image: Any) -> str:
    """Where a picture that was sent lies, in Gradio's cache.

    Gradio has seen to that if it knows the value for a file. Any other string or dict
    comes here as it was sent, and may name whatever file of this machine.
    """
    if image is None:
        return ""
    if not is_file_obj_with_meta(image):
        raise ValueError("Send the picture as a file: handle_file(its path).")
    return image["path"]


def sent_all(images: Any) -> tuple[str, ...]:
    """Where further pictures lie; each is checked as `sent` does."""
    if images is None:
        return ()
    if not isinstance(images, list) or not all(images):
        raise ValueError("Send further pictures as a list of files.")
    return tuple(map(sent, images))


def way(method: Any) -> str:
    """The name of a way to explain."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"There is no {method!r}, only {', '.join(METHODS)}.")
    return method


def position(token: Any, count: int) -> int:
    """Which one of an answer's tokens is meant, from 0."""
    if token is None:
        raise ValueError(f"token is null; give one from 0 to {count - 1}, or -1.")
    return range(count)[place("token", token, count)]


def place(name: str, number: int | None, count: int) -> int | slice:
    """What to index an axis of `count` with; all of it if no number is asked for."""
    if number is None:
        return slice(None)
    if not isinstance(number, int) or not -count <= number < count:
        raise ValueError(f"{name} is {number}; give one from 0 to {count - 1}, or -1.")
    return number
