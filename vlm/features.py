"""Features: what the vision tower saw in images, kept between questions."""

from __future__ import annotations

import threading
from collections import OrderedDict

from torch import Tensor


class Features:
    """Image features by key, the least recently used dropped past `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: OrderedDict[str, Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: str) -> Tensor | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        with self.lock:
            self.kept[key] = features
            while sum(kept.nbytes for kept in self.kept.values()) > self.limit:
                self.kept.popitem(last=False)
