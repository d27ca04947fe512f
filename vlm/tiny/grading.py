"""What one answer adds to which figure of the evaluation.

    for mark in grade(engine, question):
        mark.figure, mark

A mark is one observation: an answer right or wrong, what was found of a kind that was
asked for, how many kinds a text names, a probability and whether it was deserved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

import vlm
from vlm.grounding import Object, overlap
from vlm.metrics import mask_overlap, match, paste
from vlm.tiny.answering import Coach
from vlm.tiny.language import ENGLISH, Language
from vlm.tiny.questions import Question, judge, keywords
from vlm.tiny.scenes import Thing

MAX_TOKENS = 160  # six things with a mask each need 138


@dataclass(frozen=True)
class Case:
    """One case of a figure that is a mean: 0, 1, or a share."""

    figure: str
    value: float


@dataclass(frozen=True)
class Search:
    """What an answer to `detect` found of one kind.

    Attributes:
        figure: "one" or "several", the number of kinds that were asked for.
        kind: that was asked for; or a label that was not, all of whose boxes are false.
        there: how many there are to be found.
        boxes: each box's confidence, and its overlap with the thing that it was
            matched with, 0 for a false one.
    """

    figure: str
    kind: str
    there: int
    boxes: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Naming:
    """How many kinds a text names, how many of them rightly, how many there are."""

    figure: str
    right: int
    said: int
    there: int


@dataclass(frozen=True)
class Belief:
    """A probability that the model gave to what it said, and whether it was right."""

    figure: str
    probability: float
    right: bool


Mark = Case | Search | Naming | Belief


def grade(engine: vlm.Engine, question: Question) -> Iterator[Mark]:
    """Ask one question, plain greedy, and say what its answer adds to the figures."""
    # Only these need a trace, and keeping attention takes time.
    trace = vlm.Trace(layers=Coach.LAYERS) if question.task == "detect" else None
    image = question.scene.image
    answer = engine.generate(image, question.prefix, max_tokens=MAX_TOKENS, tap=trace)
    if trace is not None:
        yield from _grade_search(question, answer.objects)
        yield from _grade_pointing(question, answer, trace)
    elif question.task == "segment":
        yield from _grade_masks(question, answer.objects)
    elif question.task in ("caption", "describe"):
        yield from _grade_text(question, answer.text)
    else:
        yield from _grade_words(question, answer)


def spoken(figure: str, language: Language) -> str:
    """The figure's name for one language: "count", "count de"."""
    return figure if language is ENGLISH else f"{figure} {language.code}"


def pair_up(
    objects: Sequence[Object], things: Sequence[Thing]
) -> Iterator[tuple[Object, Thing | None]]:
    """Each object and the thing it is: of its label's kind, and its box is right.

    None for an object that is false; one that was cut short always is.
    """
    for label in dict.fromkeys(item.label for item in objects):
        mine = [item for item in objects if item.label == label]
        true = [thing for thing in things if thing.kind == label]
        boxes = [None if None in item.box else item.box for item in mine]
        for item, j in zip(mine, match(boxes, [thing.box for thing in true])):
            yield item, None if j is None else true[j]


def _grade_search(question: Question, objects: Sequence[Object]) -> Iterator[Mark]:
    asked = question.prefix.removeprefix("detect ").split(" ; ")
    figure = "one" if len(asked) == 1 else "several"
    pairs = list(pair_up(objects, question.target))
    labels = [item.label for item in objects]
    for kind in dict.fromkeys([*asked, *labels]):
        there = sum(thing.kind == kind for thing in question.target)
        boxes = [
            (item.confidence, overlap(item.box, thing.box) if thing else 0.0)
            for item, thing in pairs
            if item.label == kind
        ]
        yield Search(figure, kind, there, tuple(boxes))
        if kind in asked and not there:
            # A box with a label that was not asked for is no refusal either.
            yield Case("refused", kind not in labels and set(labels) <= set(asked))
    for item, thing in pairs:
        yield Belief("box ece", item.confidence, thing is not None)


def _grade_pointing(
    question: Question, answer: vlm.Answer, trace: vlm.Trace
) -> Iterator[Mark]:
    """Only for boxes that are right: a wrong one has no place to be looked at."""
    for item, thing in pair_up(answer.objects, question.target):
        for index in item.tokens if thing else ():
            maps = vlm.probes.image_attention(trace, index)[:, Coach.HEADS]
            sort = "label" if answer.steps[index].loc is None else "loc"
            inside = _peaks_inside(
                maps.mean((0, 1)).numpy(), thing, question.scene.image.size
            )
            yield Case(f"pointing {sort}", inside)


def _peaks_inside(heat: np.ndarray, thing: Thing, size: tuple[int, int]) -> bool:
    """Whether the middle of the most looked-at patch lies in the thing's box."""
    rows, columns = heat.shape
    row, column = divmod(int(heat.argmax()), columns)
    x, y = (column + 0.5) * size[0] / columns, (row + 0.5) * size[1] / rows
    x1, y1, x2, y2 = thing.box
    return x1 <= x < x2 and y1 <= y < y2


def _grade_masks(question: Question, objects: Sequence[Object]) -> Iterator[Mark]:
    """Of boxes that are right: the mask, and the box filled for comparison."""
    for item, thing in pair_up(objects, question.target):
        if thing is not None:
            size = question.scene.image.size
            full = np.ones((1, 1))
            for figure, mask in (("mask", item.mask), ("mask filled", full)):
                # A mask whose codes were cut short is none.
                drawn = None if mask is None else paste(mask, item.box, size)
                share = 0.0 if drawn is None else mask_overlap(drawn, thing.mask)
                yield Case(figure, share)


def _grade_text(question: Question, text: str) -> Iterator[Mark]:
    task, language = question.task, question.language
    there = {thing.kind for thing in question.scene.things}
    named = keywords(text, language)
    figure = spoken(task, language)
    yield Naming(figure, len(named & there), len(named), len(there))
    yield Case(spoken(f"{task} exact", language), judge(question, text))


def _grade_words(question: Question, answer: vlm.Answer) -> Iterator[Mark]:
    task, language = question.task, question.language
    right = judge(question, answer.text)
    yield Case(spoken(task, language), right)
    if task == "exists":
        chance = prod(step.probability for step in answer.steps)
        yield Belief(spoken("exists ece", language), chance, right)
