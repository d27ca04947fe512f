"""What the viewer fetches when it needs it: attention maps, bounded in bytes."""

from __future__ import annotations

import base64
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Entry:
    """What is known of a token: its maps (see `pack`), what it might have been."""

    maps: bytes
    candidates: list[dict] = field(default_factory=list)


class Store:
    """The entries of the latest runs. The run looked at longest ago goes first.

    A run is named by an unguessable string, because anyone can call `read`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._runs: OrderedDict[str, dict[str, Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> str:
        run = secrets.token_urlsafe(16)
        with self._lock:
            self._runs[run] = {}
            while len(self._runs) > 1000:
                self._drop(next(iter(self._runs)))
        return run

    def add(self, run: str, key: str, entry: Entry) -> None:
        """Keep a token's entry; nothing happens if the run has been dropped."""
        with self._lock:
            if run not in self._runs:
                return
            self._runs[run][key] = entry
            self._runs.move_to_end(run)
            self.size += len(entry.maps)
            while self.size > self.limit:
                self._drop(next(iter(self._runs)))

    def read(self, run: str, keys: list[str]) -> dict[str, dict] | None:
        """Those of the asked entries that are there; None: the run is not kept."""
        with self._lock:
            entries = self._runs.get(run)
            if entries is None:
                return None
            self._runs.move_to_end(run)
            found = {key: entries[key] for key in keys if key in entries}
        return {
            key: {
                "maps": base64.b64encode(entry.maps).decode(),
                "candidates": entry.candidates,
            }
            for key, entry in found.items()
        }

    def _drop(self, run: str) -> None:
        self.size -= sum(len(entry.maps) for entry in self._runs.pop(run).values())


def pack(attention: np.ndarray, shares: np.ndarray) -> bytes:
    """One token's maps as bytes: peaks, shares, then one byte for each patch.

    attention: float32 [layers, heads, rows, columns]; shares: [layers, heads, 4].
    A byte holds the square root of patch / peak, so faint patches keep two digits.
    """
    peaks = attention.max(axis=(2, 3))
    relative = attention / np.maximum(peaks, 1e-30)[:, :, None, None]
    levels = np.rint(np.sqrt(relative) * 255).astype(np.uint8)
    return b"".join(
        [
            peaks.astype("<f4").tobytes(),
            shares.astype("<f4").tobytes(),
            levels.tobytes(),
        ]
    )
