"""Tokenizer: text to ids and back, on sentencepiece alone.

PaliGemma's vocabulary is Gemma's with two alphabets behind it and a placeholder:

    0 .. 255999        Gemma's pieces; 0-3 are pad, eos, bos, unk
    256000 .. 257023   <loc0000> .. <loc1023>   a coordinate, in 1/1024 of a side
    257024 .. 257151   <seg000> .. <seg127>     a code of the mask autoencoder
    257152             <image>                  stands where a patch's features go
    257153 .. 257215   rows of the embedding without a name

PaliGemma's own `tokenizer.model` holds loc and seg; Gemma's does not, and then they
stand behind its last piece. `<image>` is in neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

LOCS = 1024
SEGS = 128
GROUNDING = re.compile("<(?:loc([0-9]{4})|seg([0-9]{3}))>")


class Tokenizer:
    """Ids of prompts and answers, text of ids.

    Attributes:
        bos, eos, pad: ids of the control pieces; pad is None if the file has none.
        image_token: id of `<image>`.
        first_loc, first_seg: ids of `<loc0000>` and `<seg000>`.
        size: ids are 0 .. size - 1, which may be more than have a name.
    """

    def __init__(
        self, pieces: SentencePieceProcessor, image_token: int, *, size: int | None
    ) -> None:
        self.pieces = pieces
        self.image_token = image_token
        self.bos = self._control("<bos>", pieces.bos_id())
        self.eos = self._control("<eos>", pieces.eos_id())
        self.pad = pieces.pad_id() if pieces.pad_id() >= 0 else None
        count = pieces.get_piece_size()
        self.first_loc = self._alphabet("<loc0000>", "<loc1023>", LOCS, count)
        behind = max(count, self.first_loc + LOCS)
        self.first_seg = self._alphabet("<seg000>", "<seg127>", SEGS, behind)
        end = max(count, self.first_loc + LOCS, self.first_seg + SEGS, image_token + 1)
        self.size = end if size is None else size
        if self.size < end:
            raise ValueError(
                f"tokenizer.model, <loc>, <seg> and <image> need {end} ids, the "
                f"embedding has {self.size}; is tokenizer.model of another checkpoint?"
            )
        taken = self.loc(image_token), self.seg(image_token)
        if taken != (None, None) or image_token < 0:
            raise ValueError(
                f"config.json says that <image> is {image_token}, which is "
                f"{self.piece(image_token) if image_token >= 0 else 'no id'} here; "
                "use the tokenizer.model that the checkpoint was trained with"
            )
        # A file may list <image> as a piece that is found in text; see `_encode`.
        self._placeholder = None
        if image_token < count and not pieces.is_control(image_token):
            self._placeholder = pieces.id_to_piece(image_token)

    @classmethod
    def load(
        cls, folder: str | Path, image_token: int, *, size: int | None = None
    ) -> Tokenizer:
        """Read `tokenizer.model` in a checkpoint's folder.

        `image_token` is the id of `<image>` by config.json, `size` the number of rows
        of the embedding.

        Raises:
            ValueError: the file is missing, unreadable or of another checkpoint.
        """
        path = Path(folder) / "tokenizer.model"
        if not path.is_file():
            has_json = (path.parent / "tokenizer.json").is_file()
            there = "there is only tokenizer.json. " if has_json else ""
            raise ValueError(
                f"{path} is missing: {there}Add tokenizer.model from the checkpoint's "
                "repository; all PaliGemmas share one, and "
                "google/paligemma-3b-pt-224 has it."
            )
        pieces = SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path} is not a sentencepiece model ({error}). If it came from git, "
                "it may be a Git LFS pointer: `git lfs pull` fetches the file itself."
            ) from error
        return cls(pieces, image_token, size=size)

    def prompt(self, text: str, images: int = 1, *, patches: int = 256) -> list[int]:
        """What the model reads: `patches` placeholders per image, bos, text, newline.

        With 4 patches, "detect cat" is
        `<image> <image> <image> <image> <bos> detect ▁cat \\n`.
        """
        return [self.image_token] * (images * patches) + self.text_ids(text)

    def text_ids(self, text: str) -> list[int]:
        """The part of a prompt after the image tokens: bos, text, newline.

        Text and newline are tokenised together, as transformers does. big_vision
        tokenises them apart; the two differ only where a prompt ends in a newline,
        since Gemma has pieces for runs of newlines.

        Only `<locNNNN>` and `<segNNN>` become tokens when typed. Other names of tokens
        (`<image>`, `<eos>`) stay the characters they are.
        """
        return [self.bos, *self._encode(text + "\n")]

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer's start: neither bos nor newline nor eos."""
        return self._encode(text)

    def piece(self, token: int) -> str:
        """One token for display, "▁cat" as " cat", a single byte as "<0xE2>".

        Raises:
            ValueError: the vocabulary has no such id.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"token {token} is not in a vocabulary of {self.size}")
        if (loc := self.loc(token)) is not None:
            return f"<loc{loc:04d}>"
        if (seg := self.seg(token)) is not None:
            return f"<seg{seg:03d}>"
        if token == self.image_token:
            return "<image>"
        if token < self.pieces.get_piece_size():
            return self.pieces.id_to_piece(token).replace("▁", " ")
        return f"<unnamed{token}>"

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of `tokens`: see `Stream` for what becomes of which token."""
        stream = self.stream()
        return "".join([*map(stream.add, tokens), stream.finish()])

    def stream(self) -> Stream:
        """A detokeniser that is fed token by token."""
        return Stream(self)

    def loc(self, token: int) -> int | None:
        """The bin 0..1023 if `token` is a coordinate."""
        bin = token - self.first_loc
        return bin if 0 <= bin < LOCS else None

    def seg(self, token: int) -> int | None:
        """The code 0..127 if `token` is a part of a mask."""
        code = token - self.first_seg
        return code if 0 <= code < SEGS else None

    def _encode(self, text: str) -> list[int]:
        """Ids of what a user typed.

        The text is cut at `<locNNNN>` and `<segNNN>`, which are never merged with
        their neighbours, so the parts can be tokenised one by one; this holds too
        where the file has these pieces, since they are matched before all else.
        """
        # A lone surrogate (half a character, as from a bad paste) has no UTF-8.
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        start = 0
        for match in GROUNDING.finditer(text):
            loc, seg = match.groups()
            if int(loc or seg) >= (LOCS if loc else SEGS):
                continue  # <loc9999> is no token
            ids += self._encode_plain(text[start : match.start()])
            ids.append(self.first_loc + int(loc) if loc else self.first_seg + int(seg))
            start = match.end()
        return ids + self._encode_plain(text[start:])

    def _encode_plain(self, text: str) -> list[int]:
        """sentencepiece does not find control pieces in text; <image> may be no such.

        Then the text is cut behind its "<", and no part holds the whole name.
        """
        if self._placeholder is None:
            return self.pieces.encode(text)
        first, rest = map(re.escape, (self._placeholder[0], self._placeholder[1:]))
        parts = re.split(f"(?<={first})(?={rest})", text)
        return [token for part in parts for token in self.pieces.encode(part)]

    def _control(self, name: str, found: int) -> int:
        if found < 0:
            raise ValueError(
                f"tokenizer.model has no {name}; use the file of a PaliGemma or Gemma"
            )
        return found

    def _alphabet(self, first: str, last: str, count: int, behind: int) -> int:
        """Id of `first`: by the file if it has the alphabet, else `behind`."""
        start = self.pieces.piece_to_id(first)
        if start == self.pieces.unk_id():
            return behind
        end = self.pieces.piece_to_id(last)
        if end - start != count - 1:
            raise ValueError(
                f"tokenizer.model has {first} at {start} and {last} at {end}; "
                f"they belong {count - 1} apart"
            )
        return start


class Stream:
    """Token by token to text, in whole characters, at a constant cost per token.

    A character without a piece of its own arrives as several byte tokens, and is held
    back until its last byte is there. A byte that cannot belong to a character becomes
    U+FFFD, one for each byte, as in sentencepiece. loc, seg and all other tokens with
    a name are given by it (`<loc0123>`), except control tokens (pad, eos, bos), which
    are "". What `add` and `finish` gave, joined, is `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = b""

    def add(self, token: int) -> str:
        """The text that is whole now that `token` is there; may be empty."""
        pieces = self._tokenizer.pieces
        if token < pieces.get_piece_size():
            if pieces.is_byte(token):
                self._bytes += bytes.fromhex(pieces.id_to_piece(token)[3:5])
                return self._whole()
            if pieces.is_control(token) and token != self._tokenizer.image_token:
                return self.finish()
        return self.finish() + self._tokenizer.piece(token)

    def finish(self) -> str:
        """What was held back, which no further byte will complete."""
        held, self._bytes = self._bytes, b""
        return "\ufffd" * len(held)

    def _whole(self) -> str:
        """Take whole characters, and bytes that no character starts with, off."""
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode()
                self._bytes = b""
            except UnicodeDecodeError as error:
                if error.start == 0 and error.reason == "unexpected end of data":
                    break
                valid = self._bytes[: error.start].decode()
                bad = "" if valid else "\ufffd"
                text += valid + bad
                self._bytes = self._bytes[error.start or 1 :]
        return text
