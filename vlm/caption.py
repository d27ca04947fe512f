"""Captions: texts as SigLIP's text tower takes them, all of one length.

The text tower never saw a mask: padding is part of what it reads, so the length and
the id of the padding matter. Which of the two ways a pair was trained in is told by
the name of its vocabulary:

    tokenizer.model   SigLIP 2, Gemma's pieces: lower case; text, eos, then pad
    spiece.model      SigLIP, T5's pieces: lower case, without ASCII punctuation,
                      single spaces; text, then eos to the end
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from vlm.hub import VOCABULARIES
from vlm.pair_config import TextConfig

GEMMA, T5 = VOCABULARIES
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Captions:
    """Texts to ids [T, length]; what is too long is cut, and ends in eos all the same.

    Args:
        bare: texts lose their punctuation, and eos is the padding too.
    Raises:
        ValueError: the text tower has fewer rows than there are pieces.
    """

    def __init__(
        self, pieces: SentencePieceProcessor, config: TextConfig, *, bare: bool = False
    ) -> None:
        if len(pieces) > config.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(pieces)} pieces, the text tower rows for "
                f"{config.vocabulary}; is it of another checkpoint?"
            )
        self.pieces = pieces
        self.length = config.length
        self.bare = bare
        self.pad = pieces.eos_id() if bare else pieces.pad_id()

    @classmethod
    def load(cls, folders: Sequence[Path], config: TextConfig) -> Captions:
        """Read the vocabulary in the first of the folders that has one.

        Raises:
            ValueError: none has, or it is damaged or of another checkpoint.
        """
        paths = [folder / name for folder in folders for name in (GEMMA, T5)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            places = " or ".join(map(str, folders))
            raise ValueError(f"there is no {GEMMA} and no {T5} in {places}; add it")
        pieces = SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no sentencepiece model ({error})") from error
        return cls(pieces, config, bare=path.name == T5)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """int64 [T, length]."""
        return torch.tensor([self._row(text) for text in texts])

    def _row(self, text: str) -> list[int]:
        # A lone surrogate (half a character, as from a bad paste) has no UTF-8.
        text = text.encode("utf-8", "replace").decode().lower()
        if self.bare:
            text = " ".join(text.translate(NO_PUNCTUATION).split())
        ids = self.pieces.encode(text)[: self.length - 1] + [self.pieces.eos_id()]
        return ids + [self.pad] * (self.length - len(ids))
