"""ZeroGPU: a Space that has a GPU only while the model works, in a process of its own.

    @on_gpu(seconds=20)
    def scored(engine, image, prompt, answer): ...

Elsewhere the function is simply called. On ZeroGPU `app.py` opens a `Room`, and from
then on it is called there: in a fork, made by `spaces.GPU`, that has the GPU for at
most so many seconds. All that a model computes for the page goes through such
functions. See https://huggingface.co/docs/hub/spaces-zerogpu.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlm.ui.faults import sentence

LEAST, MOST = 10, 120  # seconds to ask for; who asks for fewer waits less

Seconds = int | Callable[..., float]  # or what tells them, of the same arguments


class Room:
    """The forks with a GPU, and what may go into them and come out.

    What is `shared` (engines, a pair) is in each fork from the start, since it was
    loaded before; it crosses as its number. All else crosses as a copy. Nothing of
    torch does: a tensor there lies on a GPU that is not here.
    """

    def __init__(self, gpu: Callable[..., Callable], shared: Sequence[Any]) -> None:
        """`gpu` is `spaces.GPU`, or something that does the same."""
        self._shared = list(shared)
        self._home = os.getpid()
        self._work = gpu(duration=lambda seconds, call: seconds)(self._working)

    @property
    def within(self) -> bool:
        """Whether this is a fork, which has the GPU already."""
        return os.getpid() != self._home

    def run(
        self, function: Callable, seconds: int, arguments: tuple, named: dict
    ) -> Iterator[Any]:
        """What a function that `on_gpu` made yields there, or the one value it gives.

        Closing the iterator ends the work.

        Raises:
            ValueError: what the function raised, in a sentence. That a fork has come
                to its end before its time `spaces` tells by a `gr.Error`.
            TypeError: something of torch was to cross.
        """
        call = self.packed((function, arguments, named))
        with contextlib.closing(self._work(seconds, call)) as news:
            for each in news:
                refused, value = self.unpacked(each)
                if refused:
                    raise ValueError(value)
                yield value

    def packed(self, value: Any) -> bytes:
        file = io.BytesIO()
        _Packer(file, self._shared).dump(value)
        return file.getvalue()

    def unpacked(self, data: bytes) -> Any:
        return _Unpacker(io.BytesIO(data), self._shared).load()

    def _working(self, seconds: int, call: bytes) -> Iterator[bytes]:
        function, arguments, named = self.unpacked(call)
        try:
            with contextlib.closing(_values(function, arguments, named)) as values:
                for value in values:
                    yield self.packed((False, value))
        except Exception as error:  # `spaces` would lose its words
            yield self.packed((True, sentence(error)))


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: list) -> None:
        super().__init__(file)
        self._numbers = {id(each): number for number, each in enumerate(shared)}

    def persistent_id(self, thing: Any) -> int | None:
        number = self._numbers.get(id(thing))
        if number is None and type(thing).__module__.split(".")[0] == "torch":
            raise TypeError(f"a {type(thing).__name__} cannot leave its process")
        return number


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, number: int) -> Any:
        return self._shared[number]


_room: Room | None = None


def open_room(gpu: Callable[..., Callable], shared: Sequence[Any]) -> None:
    """From now on models work in a `Room` of these. To be called before the launch."""
    global _room
    _room = Room(gpu, shared)


def place(device: str) -> str:
    """What to call a model's device: where there is a `Room`, it is not here."""
    return "ZeroGPU" if _room else device


def on_gpu(seconds: Seconds) -> Callable[[Callable], Callable]:
    """Where there is a `Room`, call the function there, for so long at most.

    It is one of a module, and a generator or not. Its arguments and what it gives are
    plain values, numpy's arrays, PIL's images, and what is shared.
    """

    def lent(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            if _room is None or _room.within:
                return function(*arguments, **named)
            wanted = seconds(*arguments, **named) if callable(seconds) else seconds
            bounded = round(min(max(wanted, LEAST), MOST))
            news = _room.run(called, bounded, arguments, named)
            if inspect.isgeneratorfunction(function):
                return news
            (value,) = news
            return value

        return called

    return lent


def _values(function: Callable, arguments: tuple, named: dict) -> Iterator[Any]:
    """As `on_gpu` called it: `function` is what that has made of it."""
    if inspect.isgeneratorfunction(function.__wrapped__):
        yield from function.__wrapped__(*arguments, **named)
    else:
        yield function.__wrapped__(*arguments, **named)
