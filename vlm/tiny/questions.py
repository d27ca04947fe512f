"""Questions about a scene and their answers, in the words of PaliGemma's prompts.

    question = ask(rng, scene, "detect")
    question.prefix   # "detect cat", without the line break that ends a prompt
    question.suffix   # "<loc0232><loc0104><loc0664><loc0488> cat"

Half of the kinds to be detected are absent.  A model that is asked mostly for what
is there learns to box whatever it sees and never to read the word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.tiny.scenes import COLORS, Scene, Thing
from vlm.tiny.sprites import DRAWINGS

KINDS = tuple(DRAWINGS)
PLURALS = {kind: f"{kind}s" for kind in KINDS} | {"fish": "fish"}
NUMBERS = ("no", "a", "two", "three", "four", "five")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
NOTHING = "nothing"  # the caption of a scene without things
# Their colours are several at once, or not those that a person would name.
UNCOLORED = {"banana", "penguin", "pizza"}
MARGIN = 0.04  # nearer to the line between two places it is hard to tell
BAND = 16  # a location is told as the middle of a band of so many of the 1024
# Every word of the questions and answers, for the vocabulary.
WORDS = (
    *("detect", "answer", "caption", "describe", "en", "is", "are", "there", "a"),
    *("an", "and", "how", "many", "what", "color", "where", "the", "in", "at"),
    *("yes", "no", "top", "left", "right", "bottom", "center", "two", "three"),
    *("four", "five", NOTHING, *COLORS, *PLURALS, *PLURALS.values()),
)

Answer = tuple[str, str, Sequence[Thing]]  # prefix, suffix, target


@dataclass(frozen=True)
class Question:
    """What is asked, what is to be answered, and the things the answer is about."""

    prefix: str
    suffix: str
    task: str
    target: tuple[Thing, ...]


def ask(
    rng: np.random.Generator,
    scene: Scene,
    task: str,
    *,
    kinds: Sequence[str] = KINDS,
) -> Question | None:
    """A question of one of the TASKS; None where the scene has no clear answer.

    `kinds` are those which may be asked for though they are absent.
    """
    if task not in _ASKERS:
        raise ValueError(f"task {task!r} is none of the {len(TASKS)} tasks {TASKS}")
    answer = _ASKERS[task](rng, scene, kinds)
    if answer is None:
        return None
    prefix, suffix, target = answer
    return Question(prefix, suffix, task, tuple(target))


def keywords(text: str) -> set[str]:
    """The kinds that a text names, in the singular or the plural."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {kind for kind in KINDS if words & {kind, PLURALS[kind]}}


def _detect(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str]
) -> Answer | None:
    present = _kinds_of(scene)
    # Two classes: one of each sort, or any two where the scene allows both cases.
    two = rng.random() < 0.5
    sorts = [rng.random() < 0.5]
    if two:
        sorts.append(rng.random() < 0.5 if len(present) > 1 else not sorts[0])
    wanted = _draw_kinds(rng, present, _others(kinds, present), sorts)
    if wanted is None:
        return None
    target = [thing for kind in wanted for thing in _find(scene, kind)]
    side = scene.image.width, scene.image.height
    suffix = " ; ".join(
        f"{locations(thing.box, side)} {thing.kind}" for thing in target
    )
    return f"detect {' ; '.join(wanted)}", suffix, target


def _exists(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str]
) -> Answer | None:
    present = _kinds_of(scene)
    absent = _others(kinds, present)
    wanted = _draw_kinds(rng, present, absent, [rng.random() < 0.5])
    if wanted is None:
        return None
    found = _find(scene, wanted[0])
    prefix = f"answer en is there {_with_article(wanted[0])}?"
    return prefix, "yes" if found else "no", found


def _count(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str]
) -> Answer | None:
    present = _kinds_of(scene)
    absent = _others(kinds, present)
    several = [kind for kind in present if len(_find(scene, kind)) > 1]
    if several and rng.random() < 0.5:  # or else nearly every answer would be 1
        present = several
    wanted = _draw_kinds(rng, present, absent, [rng.random() < 0.75])
    if wanted is None:
        return None
    found = _find(scene, wanted[0])
    return f"answer en how many {PLURALS[wanted[0]]}?", str(len(found)), found


def _color(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str]
) -> Answer | None:
    clear = [thing for thing in _lone(scene) if _color_word(thing)]
    if not clear:
        return None
    thing = clear[int(rng.integers(len(clear)))]
    return f"answer en what color is the {thing.kind}?", thing.color, [thing]


def _where(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str]
) -> Answer | None:
    clear = [thing for thing in _lone(scene) if _is_clearly_placed(thing, scene)]
    if not clear:
        return None
    thing = clear[int(rng.integers(len(clear)))]
    place = _place(thing, scene)
    if place == "center" and rng.random() < 0.6:  # large things can be nowhere else
        return None
    return f"answer en where is the {thing.kind}?", place, [thing]


def _caption(rng: np.random.Generator, scene: Scene, kinds: Sequence[str]) -> Answer:
    groups = []
    for kind in _kinds_of(scene):
        count = len(_find(scene, kind))
        several = f"{NUMBERS[min(count, len(NUMBERS) - 1)]} {PLURALS[kind]}"
        groups.append(several if count > 1 else _with_article(kind))
    text = " and ".join(filter(None, [", ".join(groups[:-1]), *groups[-1:]]))
    return "caption en", text or NOTHING, _left_to_right(scene)


def _describe(rng: np.random.Generator, scene: Scene, kinds: Sequence[str]) -> Answer:
    parts = []
    for thing in _left_to_right(scene):
        color = _color_word(thing)
        name = _with_article(f"{color} {thing.kind}" if color else thing.kind)
        place = _place(thing, scene)
        parts.append(f"{name} {'in' if place == 'center' else 'at'} the {place}")
    return "describe en", ", ".join(parts) or NOTHING, _left_to_right(scene)


_ASKERS = {
    "detect": _detect,
    "exists": _exists,
    "count": _count,
    "color": _color,
    "where": _where,
    "caption": _caption,
    "describe": _describe,
}
TASKS = tuple(_ASKERS)


def locations(box: Sequence[float], side: tuple[float, float]) -> str:
    """The four location tokens of a pixel box x1, y1, x2, y2, in the order y, x."""
    (x1, y1, x2, y2), (width, height) = box, side
    shares = y1 / height, x1 / width, y2 / height, x2 / width
    values = (min(1023, int(share * 1024)) for share in shares)
    return "".join(f"<loc{value // BAND * BAND + BAND // 2:04d}>" for value in values)


def _draw_kinds(
    rng: np.random.Generator,
    present: Sequence[str],
    absent: Sequence[str],
    sorts: Sequence[bool],
) -> list[str] | None:
    """Different kinds, present (True) or absent (False) ones as `sorts` says.

    None for a scene without things too: there every kind is absent, and asking
    would tip the balance of the two answers.
    """
    pools = {True: list(present), False: list(absent)}
    drawn = []
    for sort in sorts:
        if not present or not pools[sort]:
            return None
        drawn.append(pools[sort].pop(int(rng.integers(len(pools[sort])))))
    return drawn


def _left_to_right(scene: Scene) -> list[Thing]:
    return sorted(scene.things, key=lambda thing: thing.box[0] + thing.box[2])


def _kinds_of(scene: Scene) -> list[str]:
    return list(dict.fromkeys(thing.kind for thing in _left_to_right(scene)))


def _others(kinds: Sequence[str], present: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind not in present]


def _find(scene: Scene, kind: str) -> list[Thing]:
    return [thing for thing in _left_to_right(scene) if thing.kind == kind]


def _lone(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if len(_find(scene, thing.kind)) == 1]


def _color_word(thing: Thing) -> str | None:
    return None if thing.kind in UNCOLORED else thing.color


def _place(thing: Thing, scene: Scene) -> str:
    x, y = _middle(thing, scene)
    row, column = ROWS[min(2, int(3 * y))], COLUMNS[min(2, int(3 * x))]
    return f"{row} {column}".strip() or "center"


def _is_clearly_placed(thing: Thing, scene: Scene) -> bool:
    lines = (1 / 3, 2 / 3)
    middle = _middle(thing, scene)
    return all(abs(value - line) >= MARGIN for value in middle for line in lines)


def _middle(thing: Thing, scene: Scene) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2 / scene.image.width, (y1 + y2) / 2 / scene.image.height


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
