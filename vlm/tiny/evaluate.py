"""How good an embedded checkpoint is, on scenes that no training has drawn.

    python -m vlm.tiny.evaluate assets/tiny
    python -m vlm.tiny.evaluate assets/tiny --sprites FOLDER   # drawings never seen
    python -m vlm.tiny.evaluate assets/tiny --sheet OUT.webp --json OUT.json

Plain greedy decoding through the engine, as on the page; nothing is helped. The
figures are the same for any number of processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vlm
from vlm.grounding import CODES
from vlm.tiny.figures import Figure, figures, table
from vlm.tiny.grading import MAX_TOKENS, Case, Mark, grade
from vlm.tiny.questions import SPOKEN, TASKS, Question, ask
from vlm.tiny.scenes import Stock, compose
from vlm.tiny.sheet import Cell, draw_sheet
from vlm.tiny.sprites import ASSETS, load_sprites

SEED = 50_000_017
SCENES = 1000
SHOWN = 20  # scenes of the sheet, the first ones
TEXTS = 20  # that a pair chooses from


def evaluate(
    checkpoint: Path,
    sprites: Path = ASSETS,
    *,
    scenes: int = SCENES,
    pair: Path | None = None,
    processes: int = 1,
    quantize: str = "auto",
) -> dict[str, Figure]:
    """Every figure of a checkpoint on that many scenes; each process asks of its own.

    `pair` is the folder of an image and a text tower, to be evaluated as well;
    `quantize` is as in `vlm.load`.
    """
    marks: list[Mark] = []
    start = time.monotonic()
    with ProcessPoolExecutor(
        processes,
        # A forked process would wait for threads that it has not got.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        share = partial(_examine_scene, checkpoint, quantize, sprites)
        for done, some in enumerate(pool.map(share, range(scenes), chunksize=4), 1):
            marks += some
            _tell(done, scenes, time.monotonic() - start)
    if pair is not None:
        marks += choose_texts(vlm.load_pair(pair), load_stock(sprites), scenes=scenes)
    return figures(marks)


def exam(number: int, stock: Stock, *, size: int) -> list[Question]:
    """What is asked about scene `number` of the evaluation.

    Two questions are to detect something, as most figures are about that.
    """
    rng = dice(number)
    scene = compose(rng, stock, size=size, masks=True)
    asked = [
        ask(rng, scene, task, language=language, codes=lambda mask: (0,) * CODES)
        for task in ("detect", *TASKS)
        for language in SPOKEN[task]
    ]
    return [question for question in asked if question is not None]


def examine(engine: vlm.Engine, questions: Iterable[Question]) -> list[Mark]:
    """Ask about a scene, whose image is looked at once for all questions.

    A checkpoint that has no masks is not asked to segment.
    """
    able = engine.masks is not None
    asked = [q for q in questions if able or q.task != "segment"]
    return [mark for question in asked for mark in grade(engine, question)]


def dice(number: int) -> np.random.Generator:
    """The random numbers of scene `number`.

    A spawned sequence differs from that of any plain numbers, which training's are,
    so that none of its seeds makes these scenes.
    """
    return np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(number,)))


def choose_texts(pair: vlm.Pair, stock: Stock, *, scenes: int) -> Iterator[Case]:
    """Whether a pair finds a scene's caption among those of 19 others.

    The others are the next ones, each with other things in it than all before; where
    there are not so many, there is no case.
    """
    size = pair.config.vision.image_size
    shown = [compose(dice(number), stock, size=size) for number in range(scenes)]
    captions = [ask(dice(0), scene, "caption").suffix for scene in shown]
    # Ranked by softmax, since the sigmoid of two texts can be rounded to the same 1.
    scores = pair.scores([scene.image for scene in shown], captions, loss="softmax")
    things = [tuple(sorted(thing.kind for thing in scene.things)) for scene in shown]
    for i, row in enumerate(scores):
        first: dict[tuple[str, ...], int] = {}
        for j in (*range(i, scenes), *range(i)):
            first.setdefault(things[j], j)
        own, *others = list(first.values())[:TEXTS]
        if len(others) == TEXTS - 1:
            yield Case("pair", bool(row[own] > row[others].max()))


def show(engine: vlm.Engine, stock: Stock) -> Image.Image:
    """The first scenes, each with its first question and what was answered."""
    cells = []
    for number in range(SHOWN):
        first = exam(number, stock, size=side_of(engine))[0]
        image = first.scene.image
        answer = engine.generate(image, first.prefix, max_tokens=MAX_TOKENS)
        cells.append(Cell(first, answer.text, answer.objects))
    return draw_sheet(cells)


def side_of(engine: vlm.Engine) -> int:
    return engine.config.vision.image_size


@cache
def load_stock(sprites: Path) -> Stock:
    """Its backgrounds are drawn from another seed than in training too."""
    return Stock(load_sprites(sprites), seed=SEED)


@cache
def load_engine(checkpoint: Path, quantize: str = "auto") -> vlm.Engine:
    return vlm.load(checkpoint, quantize=quantize)


def _examine_scene(
    checkpoint: Path, quantize: str, sprites: Path, number: int
) -> list[Mark]:
    """A part of one process's work; it keeps what it has loaded for the next."""
    engine = load_engine(checkpoint, quantize)
    questions = exam(number, load_stock(sprites), size=side_of(engine))
    return examine(engine, questions)


def _tell(done: int, scenes: int, seconds: float) -> None:
    left = seconds / done * (scenes - done)
    line = f"\r{done} of {scenes} scenes, {left / 60:.1f} minutes left "
    print(line, end="\n" if done == scenes else "", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.tiny.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", default=Path("assets/tiny"))
    add("--sprites", type=Path, default=ASSETS, help="a folder of drawings")
    add("--scenes", type=int, default=SCENES)
    add("--pair", type=Path, help="default: CHECKPOINT-pair, if it is there")
    add("--quantize", default="auto", help="auto, none or int8, as in vlm.load")
    add("--processes", type=int, default=os.cpu_count())
    add("--sheet", type=Path, help=f"draw the first {SHOWN} scenes into this picture")
    add("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    beside = options.checkpoint.with_name(f"{options.checkpoint.name}-pair")
    pair = options.pair or (beside if beside.exists() else None)
    asked = f"{options.checkpoint}{f' and {pair}' if pair else ''}"
    print(f"{asked}, plain greedy decoding, {options.scenes} scenes of seed {SEED},")
    print(f"drawings of {options.sprites}\n", flush=True)
    found = evaluate(
        options.checkpoint,
        options.sprites,
        scenes=options.scenes,
        pair=pair,
        processes=options.processes,
        quantize=options.quantize,
    )
    print(table(found))
    if options.json:
        kept = {"checkpoint": str(options.checkpoint), "sprites": str(options.sprites)}
        kept |= {"quantize": options.quantize, "seed": SEED, "scenes": options.scenes}
        kept |= {"figures": {name: asdict(figure) for name, figure in found.items()}}
        options.json.write_text(json.dumps(kept, indent=1) + "\n")
    if options.sheet:
        engine = load_engine(options.checkpoint, options.quantize)
        show(engine, load_stock(options.sprites)).save(options.sheet, quality=85)


if __name__ == "__main__":
    main()
