"""A run: the questions that are not answered yet, batch by batch, on every process.

The questions are cut into batches once, so that each is always answered beside the
same others, wherever a run was interrupted and on however many processes: rounding
within a batch is then the same too, and so is the table.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image

import vlm
from vlm.batch.questions import Question
from vlm.batch.rows import answered, failed
from vlm.batch.table import Key, Row, Table
from vlm.picture_file import read

Batch = Sequence[Question]
PATIENCE = timedelta(days=30)  # for the slowest process, at the end


@dataclass(frozen=True)
class How:
    """What of a run decides how its rows look."""

    batch: int = 8
    max_tokens: int = 256
    masks: bool = False
    attention: bool = False


def run(
    load: Callable[[], vlm.Engine],
    questions: Sequence[Question],
    table: Table,
    how: How,
    *,
    state: PartialState,
) -> list[Row]:
    """Answer what is open; the rows of all questions, in their order, on each process.

    Raises:
        ValueError: the table has another prompt where one of these is asked.
    """
    here = table.rows()
    for question in questions:
        if (row := here.get(question.key)) and row["prompt"] != question.prompt:
            raise ValueError(
                f"{table.folder} has an answer about {question.image} to "
                f"{row['prompt']!r}, not to {question.prompt!r}: take another --out"
            )
    # All processes are to cut the same work, also where not all see the same disk.
    done = set(gather_object(list(here)))
    cut = range(0, len(questions), how.batch)
    batches = [questions[start : start + how.batch] for start in cut]
    batches = [each for each in batches if any(q.key not in done for q in each)]
    if batches:
        # By one process first, so that what has to be fetched is fetched once.
        with state.local_main_process_first():
            engine = load()
        with state.split_between_processes(batches) as mine:
            _work(engine, mine, done, table, how, state)
    state.wait_for_everyone()
    mine = list(table.rows().items()) if state.is_local_main_process else []
    found = dict(gather_object(mine))
    return [found[question.key] for question in questions]


def processes(device: str = "auto") -> PartialState:
    """What `accelerate launch` (or torchrun) has started; a single process without."""
    cpu = device == "cpu" or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def _work(
    engine: vlm.Engine,
    batches: Sequence[Batch],
    done: set[Key],
    table: Table,
    how: How,
    state: PartialState,
) -> None:
    progress = Progress(sum(map(len, batches)), state)
    side = engine.config.vision.image_size
    with table.part(state.process_index) as part:
        for batch, pictures in _ahead(batches, side):
            rows = _answer(engine, batch, pictures, how)
            part.append(
                row for q, row in zip(batch, rows, strict=True) if q.key not in done
            )
            progress.add(len(batch))


def _answer(
    engine: vlm.Engine, batch: Batch, pictures: Pictures, how: How
) -> list[Row]:
    able = [q for q in batch if isinstance(pictures[q.image], Picture)]
    asked = [(pictures[q.image].square, q.prompt) for q in able]
    found = vlm.answers(engine, asked, batch=how.batch, max_tokens=how.max_tokens)
    given = {q.key: answer for q, answer in zip(able, found, strict=True)}
    rows = []
    for question in batch:
        picture = pictures[question.image]
        if isinstance(picture, str):
            rows.append(failed(question, picture, attention=how.attention))
        else:
            answer = given[question.key]
            objects = vlm.objects(answer.steps, picture.size, masks=engine.masks)
            parts = {"masks": how.masks, "attention": how.attention}
            rows.append(answered(question, answer, objects, picture.size, **parts))
    return rows


@dataclass(frozen=True)
class Picture:
    """What is kept of a picture while it waits: its size, and what the model sees."""

    size: tuple[int, int]
    square: Image.Image


Pictures = dict[str, Picture | str]
"""By name; or what is wrong with the file."""


def _ahead(batches: Sequence[Batch], side: int) -> Iterator[tuple[Batch, Pictures]]:
    """Each batch with its pictures; the next one's are read while one is answered."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[Batch, Future[Pictures]]] = deque()
        for batch in batches:
            waiting.append((batch, reader.submit(_open, batch, side)))
            if len(waiting) > 1:
                first, pictures = waiting.popleft()
                yield first, pictures.result()
        for batch, pictures in waiting:
            yield batch, pictures.result()


def _open(batch: Batch, side: int) -> Pictures:
    opened: Pictures = {}
    for question in batch:
        if question.image not in opened:
            try:
                image = read(question.path)
                # As small as the model takes it: a batch of photographs would fill
                # the memory. To be squeezed once more changes nothing.
                square = image.resize((side, side), Image.Resampling.BICUBIC)
                opened[question.image] = Picture(image.size, square)
            except FileNotFoundError:
                opened[question.image] = "There is no such file."
            except ValueError as error:
                opened[question.image] = str(error)
    return opened


class Progress:
    """Tells how far the first process is with its share."""

    PAUSE = 10.0  # seconds between lines, where they cannot be written over

    def __init__(self, count: int, state: PartialState) -> None:
        self.count = count
        self.done = 0
        self.start = self.told = time.monotonic()
        self.silent = not state.is_main_process
        many = state.num_processes
        self.whose = f" (the first of {many} processes)" if many > 1 else ""

    def add(self, rows: int) -> None:
        self.done += rows
        now, last = time.monotonic(), self.done == self.count
        terminal = sys.stderr.isatty()
        if self.silent or not (terminal or last or now - self.told > self.PAUSE):
            return
        self.told = now
        rate = self.done / (now - self.start)
        left = (self.count - self.done) / rate / 60
        line = f"{self.done} of {self.count} rows{self.whose}, {rate:.2f} a second"
        line += "" if last else f", {left:.1f} minutes left"
        end = "\n" if last or not terminal else ""
        begin = "\r\033[K" if terminal else ""
        print(f"{begin}{line}", end=end, file=sys.stderr, flush=True)
