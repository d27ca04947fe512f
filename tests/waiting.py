"""Waiting for what is to happen by itself, as long as a shared machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(so: Callable[[], object], what: str = "that", *, seconds: float = 20) -> None:
    """Return at the first look at which it is so; a second may find it otherwise."""
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.02)
