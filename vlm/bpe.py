"""Byte pairs: texts as CLIP's text tower takes them.

A word is a row of bytes, each written as a letter; neighbours are joined in the order
in which training joined them (Sennrich et al., arXiv:1508.07909), and what ends a word
has `</w>` in its name. The ids are those of transformers' CLIPTokenizer; OpenAI's own
code mends broken characters and HTML first, which nothing that was typed needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vlm.hub import BYTE_PAIRS
from vlm.pair_config import TextConfig
from vlm.weights import read_json

START, END, CLOSE = "<|startoftext|>", "<|endoftext|>", "</w>"


class BytePairs:
    """Texts to ids [T, longest]; what is too long is cut, and ends all the same.

    Args:
        ids: of the pieces.
        merges: pairs of pieces, those that are joined first at the front.
    Raises:
        ValueError: the pieces do not go with the text tower.
    """

    def __init__(
        self, ids: dict[str, int], merges: Sequence[Sequence[str]], config: TextConfig
    ) -> None:
        if absent := [name for name in (START, END) if name not in ids]:
            raise ValueError(f"the vocabulary has no {' and no '.join(absent)}")
        if (last := max(ids.values())) >= config.vocabulary:
            raise ValueError(
                f"the vocabulary has ids up to {last}, the text tower rows for "
                f"{config.vocabulary}; is it of another checkpoint?"
            )
        self.start, self.end = ids[START], ids[END]
        if config.end not in (None, self.end):
            raise ValueError(
                f"config.json says that texts end in id {config.end}, the vocabulary "
                f"in {self.end}; is it of another checkpoint?"
            )
        self.pieces = ids
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self.length = config.length
        self.word = lru_cache(10_000)(self._word)

    @classmethod
    def load(cls, folder: Path, config: TextConfig) -> BytePairs:
        """Read tokenizer.json, or vocab.json and merges.txt.

        Raises:
            ValueError: they are not there, damaged or of another checkpoint.
        """
        whole, vocabulary, merges = (folder / name for name in BYTE_PAIRS)
        try:
            if whole.is_file():
                raw = read_json(whole)
                more = {each["content"]: each["id"] for each in raw["added_tokens"]}
                pairs = raw["model"]["merges"]
                if pairs and isinstance(pairs[0], str):  # as older files have them
                    pairs = [pair.split(" ") for pair in pairs]
                return cls(raw["model"]["vocab"] | more, pairs, config)
            if not (vocabulary.is_file() and merges.is_file()):
                raise ValueError(
                    f"there is no {BYTE_PAIRS[0]} in {folder}, and not both of "
                    f"{' and '.join(BYTE_PAIRS[1:])}; add it"
                )
            lines = merges.read_text(encoding="utf-8").split("\n")
            lines = [line for line in lines if line and not line.startswith("#version")]
            return cls(read_json(vocabulary), [x.split(" ") for x in lines], config)
        except (AttributeError, LookupError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the vocabulary in {folder} is no CLIP's, or damaged ({error!r})"
            ) from error

    def ids(self, texts: Sequence[str]) -> Tensor:
        """int64 [T, longest], padded with the end, behind which nothing is seen."""
        rows = [
            [self.start, *self.encode(text)[: self.length - 2], self.end]
            for text in texts
        ]
        longest = max(map(len, rows))
        return torch.tensor([r + [self.end] * (longest - len(r)) for r in rows])

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without start and end."""
        # A lone surrogate (half a character, as from a bad paste) has no UTF-8.
        text = text.encode("utf-8", "replace").decode()
        ids = []
        for part in MARKS.split(text):
            if part in (START, END):
                ids.append(self.pieces[part])
                continue
            for word in words(part):
                ids += self.word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        pieces = [LETTERS[byte] for byte in word.encode()]
        pieces[-1] += CLOSE
        while len(pieces) > 1:
            pairs = zip(pieces, pieces[1:])
            first = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            pieces = list(_joined(pieces, first))
        return [self.pieces.get(piece, self.end) for piece in pieces]


def words(text: str) -> Iterator[str]:
    """Lower-cased words: a contraction's end, letters, a digit, or anything else.

    In CLIP's pattern, `'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^\\s\\p{L}\\p{N}]+`,
    are classes that the standard library lacks: it matches the text's kinds.
    """
    # Letter by letter: at the end of a whole word Python has another sigma.
    text = "".join(map(str.lower, unicodedata.normalize("NFC", text)))
    kinds, place = "".join(map(_kind, text)), 0
    while place < len(text):
        found = CONTRACTION.match(text, place) or RUN.match(kinds, place)
        if found[0] != " ":
            yield text[place : found.end()]
        place = found.end()


MARKS = re.compile(f"({re.escape(START)}|{re.escape(END)})")
CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
RUN = re.compile("L+|N|P+| ")
SPACES = "\t\n\v\f\r\x85"


def _kind(character: str) -> str:
    kind = unicodedata.category(character)[0]
    if kind == "Z" or character in SPACES:
        return " "
    return kind if kind in "LN" else "P"


def _joined(pieces: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    """The pieces, each such pair of neighbours as one, from the left."""
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            yield "".join(pair)
            place += 2
        else:
            yield pieces[place]
            place += 1


def _letters() -> list[str]:
    """A visible letter for each byte, as GPT-2 has them."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in seen else next(rest)) for byte in range(256)]


LETTERS = _letters()
