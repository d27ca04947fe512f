"""Whether two short texts say the same, as VQA's evaluation sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBERS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
ANSWERS = 10  # that VQA's sets have for each question


def normal(text: str) -> str:
    """Small letters, digits for numbers up to ten, no articles, no punctuation.

    After the evaluation of VQA (Antol et al., arXiv:1505.00468). That puts apostrophes
    into words that lack them ("dont"); here they are left out of all.
    """
    text = re.sub(r"['’`]", "", text.lower())
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?!(?<=\d)\.(?=\d))[^\w\s]|_", " ", text)
    words = (DIGITS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)


def exact(said: str, given: Sequence[str]) -> bool:
    """Whether it is one of the given texts."""
    return normal(said) in map(normal, given)


def consensus(said: str, given: Sequence[str]) -> float:
    """VQA's accuracy: min(1, people who said so / 3), each one left out in turn."""
    same = [normal(said) == normal(text) for text in given]
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)
