"""How good an embedded checkpoint is, on scenes that no training has drawn.

    python -m vlm.tiny.evaluate assets/tiny
    python -m vlm.tiny.evaluate assets/tiny --sprites FOLDER   # drawings never seen

Plain greedy decoding through the engine, as on the page; nothing is helped.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import vlm
from vlm.grounding import Object
from vlm.tiny.questions import TASKS, Question, ask, keywords
from vlm.tiny.scenes import Scene, Stock, Thing, compose
from vlm.tiny.sprites import ASSETS, load_sprites

SEED = 20_000_003  # scenes of training come from other seeds, see `batches.Lessons`
FIGURES = {
    "found": "asked thing is there: a box of it with IoU >= 0.5",
    "refused": "asked thing is absent: no box",
    "precision": "boxes that lie on such a thing with IoU >= 0.5",
    "pointing": "loc tokens whose most looked-at patch lies in their box (layer 2)",
    "exists": "is there a ...? right",
    "count": "how many ...? right",
    "color": "what color is the ...? right",
    "where": "where is the ...? right",
    "caption": "captions that name just the kinds that are there",
    "named": "of the kinds that are there, named in the caption",
    "describe": "descriptions that name just the kinds that are there",
}


def evaluate(
    engine: vlm.Engine, stock: Stock, *, scenes: int = 300
) -> dict[str, tuple[float, int]]:
    """Each of FIGURES: its mean, and over how many cases."""
    rng = np.random.default_rng(SEED)
    cases: dict[str, list[float]] = defaultdict(list)
    for _ in range(scenes):
        size = engine.config.vision.image_size
        scene = compose(rng, stock, size=size, masks=True)
        for task in TASKS:
            question = ask(rng, scene, task)
            if question is not None:
                for figure, value in grade(engine, scene, question):
                    cases[figure].append(float(value))
    return {
        name: (float(np.mean(cases[name])), len(cases[name]))
        for name in FIGURES
        if cases[name]
    }


def grade(
    engine: vlm.Engine, scene: Scene, question: Question
) -> Iterable[tuple[str, float]]:
    """Figures that one question's answer adds to, and what it adds."""
    trace = vlm.Trace()
    answer = engine.generate(scene.image, question.prefix, max_tokens=64, tap=trace)
    if question.task == "detect":
        yield from _grade_boxes(scene, question, answer.objects)
        yield from _grade_pointing(engine, question, answer.objects, trace)
    elif question.task in ("caption", "describe"):
        there = {thing.kind for thing in scene.things}
        named = keywords(answer.text)
        yield question.task, named == there
        if question.task == "caption":
            for kind in sorted(there):
                yield "named", kind in named
    else:
        yield question.task, answer.text.strip() == question.suffix


def _grade_boxes(
    scene: Scene, question: Question, objects: tuple[Object, ...]
) -> Iterable[tuple[str, float]]:
    boxed = [thing for thing in objects if thing.complete]
    for kind in question.prefix.removeprefix("detect ").split(" ; "):
        mine = [thing.box for thing in boxed if thing.label.strip() == kind]
        true = [thing.box for thing in scene.things if thing.kind == kind]
        if true:
            yield "found", any(overlap(a, b) >= 0.5 for a in mine for b in true)
        else:
            yield "refused", not mine
        for box in mine:
            yield "precision", any(overlap(box, other) >= 0.5 for other in true)


def _grade_pointing(
    engine: vlm.Engine,
    question: Question,
    objects: tuple[Object, ...],
    trace: vlm.Trace,
) -> Iterable[tuple[str, float]]:
    """Only boxes that are right: a wrong one has no place to be looked at."""
    grid, size = engine.config.vision.grid, engine.config.vision.image_size
    for thing in objects:
        for other in question.target if thing.complete else ():
            if overlap(thing.box, other.box) >= 0.5:
                for index in thing.tokens[:4]:
                    heat = vlm.probes.image_attention(trace, index, layer=2).mean(0)
                    row, column = divmod(int(heat.argmax()), grid)
                    yield "pointing", _inside(row, column, size / grid, other)


def _inside(row: int, column: int, side: float, thing: Thing) -> bool:
    x, y = (column + 0.5) * side, (row + 0.5) * side
    x1, y1, x2, y2 = thing.box
    return x1 <= x < x2 and y1 <= y < y2


def overlap(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.tiny.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default="assets/tiny")
    parser.add_argument("--sprites", type=Path, default=ASSETS)
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args()
    # Backgrounds are drawn from another seed than in training too.
    stock = Stock(load_sprites(options.sprites), seed=SEED)
    figures = evaluate(vlm.load(options.checkpoint), stock, scenes=options.scenes)
    for name, (mean, count) in figures.items():
        print(f"{name:10} {mean:6.1%}  of {count:4}  {FIGURES[name]}")


if __name__ == "__main__":
    main()
