"""One method for each task: draw a question about a scene that has a clear answer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlm.tiny import facts
from vlm.tiny.answers import right_answer
from vlm.tiny.language import Language
from vlm.tiny.scenes import Scene, Thing

BAND = 16  # a location is told as the middle of a band of so many of the 1024
FEW = 2  # masks have many codes: kinds with more things than this are segmented less
PARTED = " ; "  # what stands between two classes, and between two objects

Codes = Callable[[np.ndarray], Sequence[int]]
"""A mask cut to its box, bool [H, W], to the 16 codes 0 to 127 that stand for it."""
Answer = tuple[str, str, Iterable[Thing]]
"""Prefix, suffix, and the things that the answer is about."""
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Asker:
    """Draws questions of every task about one scene."""

    rng: np.random.Generator
    scene: Scene
    kinds: Sequence[str]
    language: Language
    codes: Codes | None

    def detect(self) -> Answer | None:
        present = facts.kinds_of(self.scene)
        wanted = self._classes(present, two=0.5)
        if wanted is None:
            return None
        target = self._things(wanted)
        side = self.scene.image.size
        boxes = (f"{locations(thing.box, side)} {thing.kind}" for thing in target)
        return f"detect {PARTED.join(wanted)}", PARTED.join(boxes), target

    def segment(self) -> Answer | None:
        if self.codes is None:
            raise ValueError("'segment' needs `codes`, which turns a mask into 16")
        present = facts.kinds_of(self.scene)
        few = [kind for kind in present if len(self._things([kind])) <= FEW]
        wanted = self._classes(few or present, two=0.2)
        if wanted is None:
            return None
        target = self._things(wanted)
        side = self.scene.image.size
        outlines = (
            f"{locations(thing.box, side)}{_segments(thing, self.codes)} {thing.kind}"
            for thing in target
        )
        return f"segment {PARTED.join(wanted)}", PARTED.join(outlines), target

    def region(self) -> Answer | None:
        """Caption what is in a box, which is drawn a little off."""
        apart = [t for t in self.scene.things if facts.is_set_apart(t, self.scene)]
        if not apart:
            return None
        thing = self._pick(apart)
        width, height = side = self.scene.image.size
        level = np.array([width, height] * 2) * BAND / 1024
        box = np.array(thing.box) + self.rng.integers(-1, 2, 4) * level
        box = np.clip(box, 0, [width, height] * 2)
        text = self.language.a(thing.kind, facts.color_of(thing))
        return f"caption {locations(box.tolist(), side)}", text, [thing]

    def caption(self) -> Answer:
        language = self.language
        groups = [
            language.group(kind, len(self._things([kind])))
            for kind in facts.kinds_of(self.scene)
        ]
        text = language.enumerate(groups) or language.nothing
        return f"caption {language.code}", text, facts.left_to_right(self.scene)

    def describe(self) -> Answer:
        language, things = self.language, facts.left_to_right(self.scene)
        parts = (
            f"{language.a(thing.kind, facts.color_of(thing))} "
            f"{language.at(*facts.place_of(thing, self.scene))}"
            for thing in things
        )
        return f"describe {language.code}", ", ".join(parts) or language.nothing, things

    def exists(self) -> Answer | None:
        present = facts.kinds_of(self.scene)
        sort = self.rng.random() < 0.5
        return self._about_kind("exists", self._draw(present, [sort]))

    def count(self) -> Answer | None:
        present = facts.kinds_of(self.scene)
        several = [kind for kind in present if len(self._things([kind])) > 1]
        if several and self.rng.random() < 0.5:  # or nearly every answer would be 1
            present = several
        sort = self.rng.random() < 0.75
        return self._about_kind("count", self._draw(present, [sort]))

    def color(self) -> Answer | None:
        clear = [
            thing.kind for thing in facts.lone(self.scene) if facts.color_of(thing)
        ]
        return self._about_kind("color", [self._pick(clear)] if clear else None)

    def where(self) -> Answer | None:
        clear = [
            thing
            for thing in facts.lone(self.scene)
            if facts.is_clearly_placed(thing, self.scene)
        ]
        if not clear:
            return None
        thing = self._pick(clear)
        if facts.place_of(thing, self.scene) == (1, 1) and self.rng.random() < 0.6:
            return None  # large things can be nowhere else
        return self._about_kind("where", [thing.kind])

    def larger(self) -> Answer | None:
        pairs = list(facts.unlike_in_size(self.scene))
        if not pairs:
            return None
        one, other = self._pick(pairs)
        larger = max(one, other, key=lambda thing: facts.area(thing.box))
        phrase = self.language.phrase("larger", one.kind, other=other.kind)
        return self._answer(phrase, self.language.nouns[larger.kind].one, (one, other))

    def beside(self) -> Answer | None:
        pairs = list(facts.side_by_side(self.scene))
        if not pairs:
            return None
        one, other = self._pick(pairs)
        language = self.language
        left, _, right = language.columns
        is_left = facts.middle(one, self.scene)[0] < facts.middle(other, self.scene)[0]
        side = left if is_left else right
        if self.rng.random() < 0.5:
            phrase = language.phrase("beside", one.kind, other=other.kind)
            return self._answer(phrase, side, (one, other))
        named = self._pick((left, right))
        phrase = language.phrase("on side", one.kind, other=other.kind, side=named)
        answer = language.yes if named == side else language.no
        return self._answer(phrase, answer, (one, other))

    def question(self) -> Answer | None:
        """The other way about: the answer is given, and a question is wanted."""
        tasks = list(self.rng.permutation(("count", "color", "where")))
        if self.rng.random() < 0.25:
            tasks = ["exists"]  # seldom, as yes and no say little
        for task in tasks:
            if (answered := getattr(self, task)()) is not None:
                prefix, answer, target = answered
                phrase = prefix.removeprefix(f"answer {self.language.code} ")
                return f"question {self.language.code} {answer}", phrase, target
        return None

    def _about_kind(self, form: str, drawn: list[str] | None) -> Answer | None:
        if drawn is None:
            return None
        (kind,) = drawn
        answer = right_answer(form, kind, self.scene, self.language)
        phrase = self.language.phrase(form, kind)
        return self._answer(phrase, answer, self._things([kind]))

    def _answer(self, phrase: str, answer: str, target: Iterable[Thing]) -> Answer:
        return f"answer {self.language.code} {phrase}", answer, target

    def _classes(self, present: Sequence[str], *, two: float) -> list[str] | None:
        """One kind or, with the chance `two`, two; half of them are absent.

        Two are one of each sort, or any two where the scene allows both cases.
        """
        both = self.rng.random() < two
        sorts = [self.rng.random() < 0.5]
        if both:
            free = len(present) > 1
            sorts.append(self.rng.random() < 0.5 if free else not sorts[0])
        return self._draw(present, sorts)

    def _draw(self, present: Sequence[str], sorts: Sequence[bool]) -> list[str] | None:
        """Different kinds: of `present` (True) or absent (False) as `sorts` says.

        None for a scene without things too: there every kind is absent, and asking
        would tip the balance of the two answers.
        """
        there = {thing.kind for thing in self.scene.things}
        absent = [kind for kind in self.kinds if kind not in there]
        pools = {True: list(present), False: absent}
        drawn = []
        for sort in sorts:
            if not present or not pools[sort]:
                return None
            drawn.append(self._pick(pools[sort]))
            pools[sort].remove(drawn[-1])
        return drawn

    def _things(self, kinds: Sequence[str]) -> list[Thing]:
        return [thing for kind in kinds for thing in facts.find(self.scene, kind)]

    def _pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self.rng.integers(len(choices)))]


def locations(box: Sequence[float], side: tuple[float, float]) -> str:
    """The four location tokens of a pixel box x1, y1, x2, y2, in the order y, x."""
    (x1, y1, x2, y2), (width, height) = box, side
    shares = y1 / height, x1 / width, y2 / height, x2 / width
    values = (min(1023, int(share * 1024)) for share in shares)
    return "".join(f"<loc{value // BAND * BAND + BAND // 2:04d}>" for value in values)


def _segments(thing: Thing, codes: Codes) -> str:
    """The tokens of the mask inside its box."""
    if thing.mask is None:
        raise ValueError(f"'segment' needs masks, and the {thing.kind}'s is None")
    x1, y1, x2, y2 = map(int, thing.box)
    return "".join(f"<seg{code:03d}>" for code in codes(thing.mask[y1:y2, x1:x2]))
