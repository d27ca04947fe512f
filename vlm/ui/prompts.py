"""The prompts PaliGemma was trained on: one chip for each kind of question."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CHARACTERS = 512


@dataclass(frozen=True)
class Task:
    name: str
    opening: str
    example: str
    help: str


TASKS = (
    Task("Caption", "caption en", "", "One short sentence about the whole picture."),
    Task("Describe", "describe en", "", "A longer text: what is there, and where."),
    Task(
        "Ask", "answer en", "how many animals are there?", "A question, a short answer."
    ),
    Task(
        "Detect", "detect", "cat ; dog", "A box for each thing. Put “ ; ” between them."
    ),
    Task("Segment", "segment", "cat", "A box and a mask for each thing that you name."),
    Task("Read text", "ocr", "", "The text in the picture, from top to bottom."),
)


def named(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


def of(prompt: str) -> Task | None:
    """The task that a prompt begins with."""
    begins = (task for task in TASKS if (prompt + " ").startswith(task.opening + " "))
    return next(begins, None)


def advice(task: Task | None, learnt: Sequence[str]) -> str:
    """A line of help, which says so where the checkpoint never learnt this task.

    `learnt` holds the first words of the prompts that it was trained on; a checkpoint
    that says nothing may have learnt any.
    """
    if task is None:
        return ""
    if learnt and task.opening.split()[0] not in learnt:
        return f"{task.help} This model was not trained for it: expect nonsense."
    return task.help


def rephrased(prompt: str, task: Task) -> str:
    """The prompt for another task; things named for boxes are kept for masks."""
    if not task.example:
        return task.opening
    before = of(prompt)
    if before and {before.name, task.name} <= {"Detect", "Segment"}:
        return task.opening + prompt.removeprefix(before.opening)
    return f"{task.opening} {task.example}"


def cleaned(prompt: object) -> str:
    """What the model is asked. ValueError says what to do about a bad prompt."""
    text = unicodedata.normalize("NFC", prompt if isinstance(prompt, str) else "")
    # Line breaks and the like become spaces; what nobody can see is taken out.
    text = " ".join(text.split())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    if not text:
        raise ValueError("Write a prompt first, or choose one of the tasks above it.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"The prompt has {len(text)} characters; at most {MAX_CHARACTERS}. Cut it."
        )
    return text
