"""Kept: what was computed for one question and may serve another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Kept:
    """Values by key, the least recently used dropped past `limit` bytes of them.

    A value is anything with `nbytes`, and must not be written to. One that is larger
    than the limit is not kept, and drives nothing out.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        if value.nbytes > self.limit:
            return
        with self.lock:
            self.kept[key] = value
            while sum(kept.nbytes for kept in self.kept.values()) > self.limit:
                self.kept.popitem(last=False)
