"""Scenes and questions as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.caption import Captions
from vlm.masks import GRID as CELLS
from vlm.masks import Masks
from vlm.tiny.answering import IGNORE, Texts
from vlm.tiny.language import ENGLISH
from vlm.tiny.looking import DETAIL, LEVELS, Pictures
from vlm.tiny.questions import KINDS, SPOKEN, TASKS, Question, ask, keywords
from vlm.tiny.scenes import Scene, Stock, Thing, compose
from vlm.tokenizer import Tokenizer

COVERED = 1 / 8  # of a patch, for the patch to show a thing
LOOKED_AT = 1 / 4  # of a patch, for the thing to be looked for there
# Every word of the answer is about what is asked for.
SHORT = ("exists", "count", "color", "where", "larger", "beside", "region")


@dataclass(frozen=True)
class Part:
    """A stretch of a row; `labels` stand where they are predicted.

    `prompt` is the length of its prefix, `task` one more than the task's number, and
    `targets` bool [T, P] what each row should look at.
    """

    ids: list[int]
    labels: list[int]
    prompt: int
    task: int
    targets: Tensor


class Lessons:
    """An endless supply of scenes and questions, the same for the same seed.

    Args:
        masks: which codes stand for a mask, where masks are asked for.
        size, grid: of a picture, in pixels and in patches along a side.
    """

    def __init__(
        self,
        stock: Stock,
        tokenizer: Tokenizer,
        *,
        captions: Captions,
        masks: Masks | None,
        size: int,
        grid: int,
    ) -> None:
        self.stock = stock
        self.tokenizer = tokenizer
        self.captions = captions
        self.masks = masks
        self.size = size
        self.grid = grid
        self.seed(0)

    def seed(self, *numbers: int) -> None:
        """Begin anew; other numbers make other scenes and questions."""
        self.rng = np.random.default_rng(numbers)

    def scenes(self, count: int) -> list[Scene]:
        return [
            compose(self.rng, self.stock, size=self.size, masks=True)
            for _ in range(count)
        ]

    def questions(
        self,
        scene: Scene,
        chances: dict[str, float],
        count: int,
        *,
        foreign: float = 0.0,
    ) -> list[Question]:
        """`count` questions, each of a task drawn by its chance.

        One of the tasks must be such that any scene has an answer, as "caption".
        `foreign` is the chance that the language is drawn too, from those that the
        task is asked in.

        One may come twice: to leave out repetitions would leave out kinds that are
        there, which are few, more often than kinds that are not.
        """
        tasks, weights = list(chances), np.array(list(chances.values()))
        found: list[Question] = []
        while len(found) < count:
            task = str(self.rng.choice(tasks, p=weights / weights.sum()))
            language = ENGLISH
            if self.rng.random() < foreign:
                language = SPOKEN[task][int(self.rng.integers(len(SPOKEN[task])))]
            codes = self.masks and self.masks.encode
            question = ask(self.rng, scene, task, language=language, codes=codes)
            if question is not None:
                found.append(question)
        return found

    def pictures(self, scenes: list[Scene]) -> Pictures:
        pixels = np.stack([np.asarray(scene.image) for scene in scenes])
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        patches = zip(*(self._patches(scene) for scene in scenes))
        told = [ask(self.rng, scene, "caption").suffix for scene in scenes]
        captions = self.captions.ids(told)
        return Pictures(pixels, *(torch.stack(part) for part in patches), captions)

    def texts(
        self, scenes: list[Scene], asked: list[list[Question]], *, packed: bool
    ) -> Texts:
        """Questions behind their image's tokens: all of them in a row, or one.

        Packed, an image is read once for all its questions, which do not see each
        other; but then it cannot see what is asked either, as it does in an answer.
        """
        rows = []
        for number, (scene, questions) in enumerate(zip(scenes, asked)):
            cover = {id(thing): self._cover(thing) for thing in scene.things}
            parts = [self._part(question, scene, cover) for question in questions]
            for together in [parts] if packed else [[part] for part in parts]:
                rows.append((torch.tensor(number), *self._row(together, packed)))
        picture, valid, *columns = zip(*rows)
        padded = (pad_sequence(column, batch_first=True) for column in columns)
        ids, labels, prefix, segments, positions, first, targets = padded
        valid = pad_sequence(valid, batch_first=True)
        labels = labels.masked_fill(~valid, IGNORE)
        return Texts(
            ids=ids,
            labels=labels,
            prefix=prefix,
            segments=segments,
            valid=valid,
            positions=positions,
            picture=torch.stack(picture),
            targets=targets,
            first=first,
            coded=(labels >= self.tokenizer.first_seg) & valid,
            empty=(labels == self.tokenizer.eos) & (first > 0),
            tasks=TASKS,
        )

    def _row(self, parts: list[Part], packed: bool) -> tuple[Tensor, ...]:
        """The columns of `Texts` for image tokens and the parts behind them."""
        patches = self.grid**2
        image = Part(
            ids=[self.tokenizer.image_token] * patches,
            labels=[IGNORE] * patches,
            prompt=patches,
            task=0,
            targets=torch.zeros(0, patches, dtype=torch.bool),
        )
        line = [image, *parts]
        ids = torch.tensor([token for part in line for token in part.ids])
        labels = torch.tensor([label for part in line for label in part.labels])
        prefix = torch.cat([torch.arange(len(p.ids)) < p.prompt for p in line])
        number = [torch.full((len(p.ids),), i * packed) for i, p in enumerate(line)]
        start = [torch.arange(len(p.ids)) + patches * (p is not image) for p in line]
        first = [
            torch.where(torch.arange(len(p.ids)) == p.prompt - 1, p.task, 0)
            for p in line
        ]
        return (
            torch.ones_like(ids, dtype=torch.bool),
            ids,
            labels,
            prefix,
            torch.cat(number),
            torch.cat(start),
            torch.cat(first),
            torch.cat([part.targets for part in line]),
        )

    def _part(self, question: Question, scene: Scene, cover: dict[int, Tensor]) -> Part:
        """One question and its answer, and what each row should look at."""
        asked = self.tokenizer.text_ids(question.prefix)
        answer = self.tokenizer.answer_ids(question.suffix) + [self.tokenizer.eos]
        targets = torch.zeros(len(asked + answer), self.grid**2, dtype=torch.bool)
        for row, token in enumerate(asked):
            targets[row] = self._of_kind(token, scene, cover)
        edge = cell = 0
        for row, token in enumerate(answer, len(asked) - 1):
            if self.tokenizer.loc(token) is not None:
                targets[row] |= cover[id(question.target[edge // 4])]
                edge += 1
            elif self.tokenizer.seg(token) is not None:
                targets[row] |= self._around(
                    question.target[edge // 4 - 1], cell % CELLS**2
                )
                cell += 1
            elif keywords(self.tokenizer.piece(token)):
                targets[row] |= self._of_kind(token, scene, cover)
            elif question.task in SHORT and token != self.tokenizer.eos:
                for thing in question.target:
                    targets[row] |= cover[id(thing)]
        return Part(
            ids=asked + answer,
            labels=[IGNORE] * (len(asked) - 1) + answer + [IGNORE],
            prompt=len(asked),
            task=1 + TASKS.index(question.task),
            targets=targets,
        )

    def _of_kind(self, token: int, scene: Scene, cover: dict[int, Tensor]) -> Tensor:
        """Patches of the things that a word names, bool [P]."""
        named = keywords(self.tokenizer.piece(token))
        found = torch.zeros(self.grid**2, dtype=torch.bool)
        for thing in scene.things:
            if thing.kind in named:
                found |= cover[id(thing)]
        return found

    def _around(self, thing: Thing, cell: int) -> Tensor:
        """The patches under a cell of a thing's mask, bool [P]; at least one."""
        x1, y1, x2, y2 = (value * self.grid / self.size for value in thing.box)
        row, column = divmod(cell, CELLS)
        top, left = y1 + row / CELLS * (y2 - y1), x1 + column / CELLS * (x2 - x1)
        bottom, right = top + (y2 - y1) / CELLS, left + (x2 - x1) / CELLS
        found = torch.zeros(self.grid, self.grid, dtype=torch.bool)
        found[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
        return found.flatten()

    def _patches(self, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
        """What each patch shows: kinds [P], edges [P, 4] and shapes, see `Pictures`."""
        kinds = torch.full((self.grid**2,), len(KINDS))
        edges = torch.zeros(self.grid**2, 4, dtype=torch.long)
        shapes = torch.zeros(self.grid**2, DETAIL**2, dtype=torch.bool)
        best = np.full(self.grid**2, COVERED)
        for thing in scene.things:
            share = self._share(thing)
            shows = torch.from_numpy(share >= best)
            best = np.maximum(best, share)
            x1, y1, x2, y2 = thing.box
            box = torch.tensor([y1, x1, y2, x2]) * LEVELS / self.size
            kinds[shows] = KINDS.index(thing.kind)
            edges[shows] = box.long().clamp(max=LEVELS - 1)
            shapes[shows] = torch.from_numpy(self._cells(thing, DETAIL) > 0.5)[shows]
        return kinds, edges, shapes

    def _cover(self, thing: Thing) -> Tensor:
        """Patches where a thing is to be looked for, bool [P]; at least one."""
        share = self._share(thing)
        return torch.from_numpy(share >= min(LOOKED_AT, share.max()))

    def _share(self, thing: Thing) -> np.ndarray:
        return self._cells(thing, 1)[:, 0]

    def _cells(self, thing: Thing, parts: int) -> np.ndarray:
        """How much of each patch's parts x parts cells a thing fills, [P, parts^2]."""
        side = self.size // self.grid // parts
        shape = self.grid, parts, side, self.grid, parts, side
        cells = thing.mask.reshape(shape).mean((2, 5))  # [rows, parts, columns, parts]
        return cells.transpose(0, 2, 1, 3).reshape(self.grid**2, parts**2)
