"""How far ways to explain can be trusted, on scenes that no training has drawn.

    python -m vlm.tiny.attributions assets/tiny

The model is asked to detect a thing that is there once, and finds it. Each way to
explain then gives a map of the four location tokens, which is held against the box of
the thing; against the model itself, whose answer must suffer when the hottest patches
go; and against a model of shuffled weights, whose map must differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import vlm
from vlm.probes import (
    METHODS,
    Asked,
    deletion,
    insertion,
    mass_in_box,
    pointing,
    random_order,
    rank_correlation,
    shuffled,
)
from vlm.tiny.evaluate import dice, load_engine, load_stock, side_of
from vlm.tiny.grading import pair_up
from vlm.tiny.scenes import compose
from vlm.tiny.sprites import ASSETS

FIRST = 5_000_000  # the evaluation's scenes are numbered from 0
PROMPTS = 300
SIDES = (0, 1, 2, 3)  # tokens of the first box
STEPS = 8
COLUMNS = {
    "pointing": "peak in the box",
    "mass": "mass in the box",
    "deletion": "deletion",
    "insertion": "insertion",
    "shuffled": "alike when shuffled",
}


@dataclass(frozen=True)
class Found:
    """A thing that was asked for and found; its box in shares of the picture."""

    number: int
    asked: Asked
    box: tuple[float, float, float, float]


def scores(found: Found) -> dict[str, dict[str, float]]:
    """Every way's figures, by its name; random order and the middle among them."""
    asked = found.asked
    blind = replace(asked, engine=_shuffled(asked.engine))
    rows = {}
    for name, heat in maps(found).items():
        row = {
            "pointing": float(pointing(heat, found.box)),
            "mass": float(mass_in_box(heat, found.box)),
            "deletion": deletion(asked, SIDES, heat, steps=STEPS).area,
            "insertion": insertion(asked, SIDES, heat, steps=STEPS).area,
        }
        if name in METHODS:
            other = METHODS[name].heat(blind, SIDES)
            row["shuffled"] = rank_correlation(heat, other)
        rows[name] = row
    return rows


def maps(found: Found) -> dict[str, Tensor]:
    grid = found.asked.engine.config.vision.grid
    middle = torch.linspace(-1, 1, grid).square()
    return {
        "random": random_order(grid, seed=found.number),
        "centre": 2 - middle[:, None] - middle,
        **{name: way.heat(found.asked, SIDES) for name, way in METHODS.items()},
    }


def search(engine: vlm.Engine, numbers: Iterator[int]) -> Iterator[Found]:
    """Of each scene the first kind that is there once, where its box is found."""
    for number in numbers:
        size = side_of(engine)
        scene = compose(dice(number), load_stock(ASSETS), size=size)
        kinds = [thing.kind for thing in scene.things]
        once = [thing for thing in scene.things if kinds.count(thing.kind) == 1]
        if not once:
            continue
        prompt = f"detect {once[0].kind}"
        answer = engine.generate(scene.image, prompt, max_tokens=40)
        pairs = list(pair_up(answer.objects, once[:1]))
        if len(pairs) == 1 and pairs[0][1] is not None:
            tokens = tuple(step.token for step in answer.steps)
            box = tuple(edge / size for edge in once[0].box)
            yield Found(number, Asked(engine, scene.image, prompt, tokens), box)


def evaluate(
    checkpoint: Path, *, prompts: int = PROMPTS, processes: int = 1
) -> dict[str, dict[str, float]]:
    """The mean of all figures over that many prompts, by the way's name."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    start = time.monotonic()
    found = islice(search(load_engine(checkpoint), count(FIRST)), prompts)
    numbers = [each.number for each in found]
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        share = partial(_score_scene, checkpoint)
        for done, rows in enumerate(pool.map(share, numbers), 1):
            for name, row in rows.items():
                for figure, value in row.items():
                    sums[name][figure].append(value)
            left = (time.monotonic() - start) / done * (prompts - done) / 60
            line = f"\r{done} of {prompts} prompts, {left:.1f} minutes left "
            print(line, end="", file=sys.stderr, flush=True)
    return {
        name: {figure: mean(values) for figure, values in row.items()}
        for name, row in sums.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown, a row for each way."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * 6 + "|"]
    for name, row in found.items():
        title = METHODS[name].title if name in METHODS else name.capitalize()
        cells = [_cell(figure, row.get(figure)) for figure in COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if figure in ("pointing", "mass") else f"{value:.3f}"


def _score_scene(checkpoint: Path, number: int) -> dict[str, dict[str, float]]:
    return scores(next(search(load_engine(checkpoint), iter([number]))))


@cache
def _shuffled(engine: vlm.Engine) -> vlm.Engine:
    return shuffled(engine)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.tiny.attributions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("assets/tiny"))
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    how = {"prompts": options.prompts, "processes": options.processes}
    print(f"{options.checkpoint}, {options.prompts} things that were found\n")
    print(table(evaluate(options.checkpoint, **how)))


if __name__ == "__main__":
    main()
