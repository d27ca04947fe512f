"""What the viewer fetches when it needs it: maps, bounded in bytes and in age."""

from __future__ import annotations

import secrets
import threading
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HOUR = 3600  # seconds; Gradio keeps pictures no longer
MAX_RUNS = 1000
LETTERS = np.frombuffer(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    b"!#$%&()*+-;<=>?@^_`{|}~",
    np.uint8,
)
POWERS = 85 ** np.arange(4, -1, -1, dtype=np.uint32)
CANDIDATE_BYTES = TOKEN_BYTES = 300  # what Python takes for the dict of one: measured


@dataclass(frozen=True)
class Entry:
    """What is known of a token: its maps (see `pack`), what it might have been.

    `bins` are the probabilities of all 1024 places, of a <loc> token.
    """

    maps: bytes
    candidates: list[dict] = field(default_factory=list)
    bins: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        bins = 0 if self.bins is None else self.bins.nbytes
        return len(self.maps) + bins + CANDIDATE_BYTES * len(self.candidates)


@dataclass
class Run:
    """What was asked, the tokens' entries by their keys, and at the end the view."""

    ask: Any
    entries: dict[str, Entry] = field(default_factory=dict)
    view: dict[str, Any] | None = None
    used: float = 0.0  # of the monotonic clock

    @property
    def nbytes(self) -> int:
        tokens = len(self.view["tokens"]) if self.view else 0
        kept = sum(entry.nbytes for entry in self.entries.values())
        return kept + TOKEN_BYTES * tokens


class Store:
    """The entries of the latest runs. The run looked at longest ago goes first.

    A run is named by an unguessable string, because anyone can call `read`.

    Args:
        limit: bytes of all runs.
        age: seconds; what nobody has looked at for so long is kept no more.
    """

    def __init__(self, limit: int, *, age: float = HOUR) -> None:
        self.limit = limit
        self.age = age
        self.size = 0
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, ask: Any) -> str:
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._runs[name] = Run(ask)
            self._used(name)
            self._bound()
        return name

    def add(self, run: str, key: str, entry: Entry) -> None:
        """Keep a token's entry; nothing happens if the run has been dropped."""
        with self._lock:
            if (kept := self._used(run)) is None:
                return
            before = kept.entries.get(key)
            kept.entries[key] = entry
            self.size += entry.nbytes - (before.nbytes if before else 0)
            self._bound()

    def finish(self, run: str, view: dict[str, Any]) -> None:
        """Keep the last view of a run, if the run is still kept."""
        with self._lock:
            if (kept := self._used(run)) is None:
                return
            self.size -= kept.nbytes
            kept.view = view
            self.size += kept.nbytes
            self._bound()

    def get(self, run: str) -> Run | None:
        """What is kept of a run; None if it is not."""
        with self._lock:
            self._bound()
            return self._used(run)

    def read(self, run: str, keys: list[str]) -> dict[str, dict] | None:
        """Those of the asked entries that are there; None: the run is not kept."""
        if (kept := self.get(run)) is None:
            return None
        found = {key: kept.entries[key] for key in keys if key in kept.entries}
        return {key: packed(entry) for key, entry in found.items()}

    def _used(self, run: str) -> Run | None:
        """A run that is kept; it is the last to go now."""
        kept = self._runs.get(run)
        if kept is not None:
            kept.used = time.monotonic()
            self._runs.move_to_end(run)
        return kept

    def _bound(self) -> None:
        """Drop what is too old, and the oldest of what is too much."""
        oldest = time.monotonic() - self.age
        while self._runs:
            name, run = next(iter(self._runs.items()))
            many = len(self._runs) > MAX_RUNS or self.size > self.limit
            if not many and run.used >= oldest:
                return
            del self._runs[name]
            self.size -= run.nbytes


def packed(entry: Entry) -> dict[str, Any]:
    """An entry as JSON, for the viewer: what is large is deflated, and then base 85."""
    told = {"maps": _deflated(entry.maps), "candidates": entry.candidates}
    if entry.bins is not None:
        told["bins"] = _deflated(_peaks_and_levels(entry.bins[None]))
    return told


def pack(attention: np.ndarray, shares: np.ndarray) -> bytes:
    """One token's maps as bytes: shares, peaks, then one byte for each patch.

    attention: float32 [layers, heads, rows, columns]; shares: [layers, heads, 4].
    A share and a peak's square root are float16, so a peak of 1e-8 is still there.
    A byte holds the square root of patch / peak, so faint patches keep two digits.
    """
    maps = attention.reshape(-1, attention.shape[2] * attention.shape[3])
    return shares.astype("<f2").tobytes() + _peaks_and_levels(maps)


def unpack(maps: bytes, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, ...]:
    """What `pack` was given, as near as the bytes tell.

    shape: layers, heads, rows, columns. Returns float32 attention and shares.
    """
    layers, heads, rows, columns = shape
    shares, peaks, levels = np.split(
        np.frombuffer(maps, np.uint8), np.array([8, 10]) * layers * heads
    )
    peaks = peaks.view("<f2").astype(np.float32).reshape(layers, heads, 1, 1) ** 2
    levels = levels.reshape(shape).astype(np.float32) / 255
    shares = shares.view("<f2").astype(np.float32).reshape(layers, heads, 4)
    return peaks * levels**2, shares


def _peaks_and_levels(values: np.ndarray) -> bytes:
    """[rows, values] as the float16 roots of peaks, then bytes: the roots of parts."""
    peaks = values.max(axis=1, keepdims=True)
    levels = np.rint(np.sqrt(values / np.maximum(peaks, 1e-30)) * 255)
    return np.sqrt(peaks).astype("<f2").tobytes() + levels.astype(np.uint8).tobytes()


def _deflated(data: bytes) -> str:
    # The fastest level; slower ones save a hundredth of these bytes.
    return base85(zlib.compress(data, 1))


def base85(data: bytes) -> str:
    """What `base64.b85encode` makes of it (RFC 1924's letters), several times as fast.

    Five letters for four bytes, where base 64 takes five and a third: what goes to the
    page for each token is little but this.
    """
    missing = -len(data) % 4
    words = np.frombuffer(data + bytes(missing), ">u4")
    digits = words[:, None] // POWERS % 85  # [words, 5]
    return LETTERS[digits].tobytes()[: 5 * len(words) - missing].decode()
