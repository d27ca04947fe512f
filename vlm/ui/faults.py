"""Faults: what went wrong with one question, in one sentence for who asked it."""

from __future__ import annotations

import errno
import logging

MEMORY = (
    "The memory did not suffice for this question, and what it took is free again. "
    "Ask for fewer tokens, or try again in a moment."
)
DISK = "The disk of the server is full, so nothing was saved. Try again later."


def sentence(error: Exception) -> str:
    """A ValueError has words for who asked; of all else the log is told the rest."""
    if isinstance(error, ValueError):
        return str(error)
    logging.getLogger(__name__).error("a question failed", exc_info=error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK
    if is_of_memory(error):
        return MEMORY
    kind = type(error).__name__
    return f"This question failed on the server ({kind}). Others are not affected."


def is_of_memory(error: Exception) -> bool:
    """Whether memory was lacking, of whatever kind and by whatever name."""
    # torch says it with a RuntimeError: of CUDA, of MPS, of a CPU on two systems.
    words = ("out of memory", "can't allocate memory", "not enough memory")
    told = isinstance(error, RuntimeError) and any(
        each in str(error).lower() for each in words
    )
    return told or isinstance(error, MemoryError)
