"""Scenes and questions as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.tiny.questions import KINDS, TASKS, Question, ask, keywords
from vlm.tiny.scenes import Scene, Stock, Thing, compose
from vlm.tiny.student import IGNORE, LEVELS, Pictures, Texts
from vlm.tokenizer import Tokenizer

COVERED = 1 / 8  # of a patch, for the patch to show a thing
LOOKED_AT = 1 / 4  # of a patch, for the thing to be looked for there
SHORT = ("exists", "count", "color", "where")  # every word of the answer is about it


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
    """An endless supply of scenes and questions, the same for the same seed."""

    def __init__(
        self, stock: Stock, tokenizer: Tokenizer, *, size: int, grid: int, seed: int = 0
    ) -> None:
        self.stock = stock
        self.tokenizer = tokenizer
        self.size = size
        self.grid = grid
        self.seed(seed)

    def seed(self, *numbers: int) -> None:
        """Begin anew; other numbers make other scenes and questions."""
        self.rng = np.random.default_rng(numbers)

    def scenes(self, count: int) -> list[Scene]:
        return [
            compose(self.rng, self.stock, size=self.size, masks=True)
            for _ in range(count)
        ]

    def questions(
        self, scene: Scene, chances: dict[str, float], count: int
    ) -> list[Question]:
        """`count` questions, each of a task drawn by its chance.

        One may come twice: to leave out repetitions would leave out kinds that are
        there, which are few, more often than kinds that are not.
        """
        tasks, weights = list(chances), np.array(list(chances.values()))
        found: list[Question] = []
        while len(found) < count:
            task = str(self.rng.choice(tasks, p=weights / weights.sum()))
            question = ask(self.rng, scene, task)
            if question is not None:
                found.append(question)
        return found

    def pictures(self, scenes: list[Scene]) -> Pictures:
        pixels = np.stack([np.asarray(scene.image) for scene in scenes])
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        kinds, edges = zip(*(self._patches(scene) for scene in scenes))
        return Pictures(pixels, torch.stack(kinds), torch.stack(edges))

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
        edge = 0
        for row, token in enumerate(answer, len(asked) - 1):
            if self.tokenizer.loc(token) is not None:
                targets[row] |= cover[id(question.target[edge // 4])]
                edge += 1
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

    def _patches(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """What each patch shows: kind [P] (last: nothing) and edges [P, 4]."""
        kinds = torch.full((self.grid**2,), len(KINDS))
        edges = torch.zeros(self.grid**2, 4, dtype=torch.long)
        best = np.full(self.grid**2, COVERED)
        for thing in scene.things:
            share = self._share(thing)
            shows = torch.from_numpy(share >= best)
            best = np.maximum(best, share)
            x1, y1, x2, y2 = thing.box
            box = torch.tensor([y1, x1, y2, x2]) * LEVELS / self.size
            kinds[shows] = KINDS.index(thing.kind)
            edges[shows] = box.long().clamp(max=LEVELS - 1)
        return kinds, edges

    def _cover(self, thing: Thing) -> Tensor:
        """Patches where a thing is to be looked for, bool [P]; at least one."""
        share = self._share(thing)
        return torch.from_numpy(share >= min(LOOKED_AT, share.max()))

    def _share(self, thing: Thing) -> np.ndarray:
        side = self.size // self.grid
        cells = thing.mask.reshape(self.grid, side, self.grid, side)
        return cells.mean((1, 3)).reshape(-1)
