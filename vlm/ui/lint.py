"""Lint: what is likely to go wrong with a prompt, and how to write it instead.

    lint("Detect cat, dog", about)  # small letters first, then " ; " between things

None of it keeps a prompt from being asked: transfer checkpoints have prompts of their
own, and to see what a model makes of a strange prompt is what the page is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vlm.ui import prompts
from vlm.ui.prompts import DETECT, LANGUAGES, SEGMENT, TASKS, of, parted

WORDS = tuple(dict.fromkeys(task.word for task in TASKS))
QUESTIONS = "what which who whose where when why how is are was do does did can".split()
# Words of two letters that begin a question rather than name a language.
SHORT = frozenset("am an as at by do he if in is it me my of on or so to up we".split())
BETWEEN = re.compile(r"\s*(?:,\s*and\b|,|;|\band\b)\s*", re.IGNORECASE)
CONTROL = re.compile(r"<(?:image|bos|eos|pad)>")
PLACE = re.compile(r"<loc[^>]*>?")


@dataclass(frozen=True)
class Advice:
    """One sentence, and the whole prompt as it should be, where that can be told."""

    message: str
    repair: str | None = None


def lint(prompt: str, about: dict[str, Any]) -> list[Advice]:
    """What to tell of a prompt while it is typed, the most important first.

    `about` is what the engine says of itself (`Engine.describe`): its name, and its
    `tasks`, the first words that it was trained on; empty if any may be known to it.
    """
    if len(prompt) > prompts.MAX_CHARACTERS:
        return [Advice(prompts.too_long(prompt))]
    if not prompt.strip():
        return []
    found = (rule(prompt, about) for rule in RULES)
    return [advice for advice in found if advice]


def _hidden(prompt: str, about: dict[str, Any]) -> Advice | None:
    words = prompts.notice(prompt)
    return Advice(words, prompts.visible(prompt)) if words else None


def _control_token(prompt: str, about: dict[str, Any]) -> Advice | None:
    if not (token := CONTROL.search(prompt)):
        return None
    without = " ".join(CONTROL.sub(" ", prompt).split())
    return Advice(f"Typed, {token[0]} is only characters. Leave it out.", without)


def _capitals(prompt: str, about: dict[str, Any]) -> Advice | None:
    word, rest = parted(prompt)
    if word in WORDS or word.lower() not in WORDS:
        return None
    small = f"{word.lower()} {rest}".strip()
    return Advice("Task words are learnt in small letters.", small)


def _no_task(prompt: str, about: dict[str, Any]) -> Advice | None:
    word, _ = parted(prompt.lower())
    if word in WORDS or _is_half(prompt.lower(), WORDS):
        return None
    repair = _with_task(prompt.strip())
    if "-pt-" in about["name"]:
        words = "A pt checkpoint is made to be fine-tuned: it knows tasks, not chat."
        return Advice(words, repair)
    words = "No task word in front: fine if this model has prompts of its own."
    return Advice(words, repair)


def _untrained(prompt: str, about: dict[str, Any]) -> Advice | None:
    word, _ = parted(prompt)
    if word not in WORDS or not about["tasks"] or word in about["tasks"]:
        return None
    return Advice("This model was not trained for it: expect nonsense.")


def _language(prompt: str, about: dict[str, Any]) -> Advice | None:
    task, (word, rest) = of(prompt), parted(prompt)
    code, behind = parted(rest)
    if not task or not task.spoken or code in LANGUAGES:
        return None
    if code.lower() in LANGUAGES:
        small = f"{word} {code.lower()} {behind}".strip()
        return Advice("Languages are written in small letters.", small)
    if _is_half(prompt, WORDS) or _is_half(rest, (*LANGUAGES, "<loc")):
        return None
    if re.fullmatch("[a-z]{2}", code) and code not in SHORT:
        english = f"{word} en {behind}".strip()
        return Advice(f"PaliGemma has learnt no language “{code}”.", english)
    return Advice(
        "The language is missing, such as “en” for English.",
        f"{word} en {rest}".strip(),
    )


def _nothing_named(prompt: str, about: dict[str, Any]) -> Advice | None:
    task, (word, rest) = of(prompt), parted(prompt)
    if not task or not task.example:
        return None
    if task.spoken:
        code, rest = parted(rest)
        if code not in LANGUAGES:
            return None
        word = f"{word} {code}"
    if rest:
        return None
    return Advice(f"Go on, for example: {word} {task.example}")


def _places(prompt: str, about: dict[str, Any]) -> Advice | None:
    found = PLACE.findall(prompt)
    if parted(prompt)[0] not in ("caption", "cap") or not found:
        return None
    if found[-1][-1] != ">":  # half typed
        return None
    if not all(re.fullmatch(r"<loc(0\d|10)\d\d>", each) for each in found) or any(
        int(each[4:8]) > 1023 for each in found
    ):
        return Advice("Places are written <loc0000> to <loc1023>.")
    if len(found) != 4:
        return Advice(
            f"A region has 4 places: top, left, bottom, right. Here are {len(found)}."
        )
    top, left, bottom, right = found
    if top < bottom and left < right:
        return None
    words = "Top and left come first, and are smaller than bottom and right."
    if top == bottom or left == right:
        return Advice(words)
    turned = (min(top, bottom), min(left, right), max(top, bottom), max(left, right))
    rest = PLACE.sub("", prompt).strip()
    return Advice(words, f"{rest} {''.join(turned)}")


def _separator(prompt: str, about: dict[str, Any]) -> Advice | None:
    if of(prompt) not in (DETECT, SEGMENT):
        return None
    word, rest = parted(prompt)
    if re.search(r",|\band\b", rest, re.IGNORECASE):
        things = " ; ".join(filter(None, BETWEEN.split(rest)))
        return Advice(
            "Put “ ; ” between things, or they are read as one.", f"{word} {things}"
        )
    if re.search(r"\S;|;\S", rest):
        things = " ; ".join(filter(None, re.split(r"\s*;\s*", rest)))
        return Advice("Put a space on both sides of “;”.", f"{word} {things}")
    return None


def _ending(prompt: str, about: dict[str, Any]) -> Advice | None:
    bare = prompt.strip()
    if prompt.rstrip(" ").endswith("\n"):
        return Advice("The line break at the end is added for you.", bare)
    if of(prompt) and re.search(r"(?<!\.)(?<!\.\w)\.$", bare):
        return Advice("Prompts end without a full stop.", bare[:-1])
    return None


RULES: tuple[Callable[[str, dict[str, Any]], Advice | None], ...] = (
    _hidden,
    _control_token,
    _capitals,
    _no_task,
    _untrained,
    _language,
    _nothing_named,
    _places,
    _separator,
    _ending,
)


def _with_task(prompt: str) -> str | None:
    """The same with a task word, where it is plain which one is meant."""
    first, rest = parted(prompt.lower())
    if PLACE.match(prompt):
        return f"caption {prompt}"
    if prompt.endswith("?") or first in QUESTIONS:
        return f"answer en {prompt}"
    if len(prompt.split()) <= 3 or ";" in prompt:
        return f"detect {prompt}"
    return None


def _is_half(text: str, words: Iterable[str]) -> bool:
    """Whether it may be the beginning of one of the words, and more is to come."""
    return bool(text) and any(word.startswith(text) and word != text for word in words)
