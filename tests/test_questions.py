"""Questions and answers, against answers that are worked out here again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from vlm.tiny.asker import locations
from vlm.tiny.language import ENGLISH, GERMAN, LANGUAGES, Language
from vlm.tiny.questions import (
    KINDS,
    SPOKEN,
    TASKS,
    WORDS,
    Question,
    ask,
    judge,
    keywords,
)
from vlm.tiny.scenes import COLORS, Scene, Stock, Thing, compose
from vlm.tiny.sprites import load_sprites

MANY = {kind: f"{kind}s" for kind in KINDS}
MANY |= {"fish": "fish", "butterfly": "butterflies", "bus": "buses"}
GERMAN_NAMES = [
    line.split()
    for line in """
cat Katze Katzen
dog Hund Hunde
fish Fisch Fische
penguin Pinguin Pinguine
turtle Schildkröte Schildkröten
tree Baum Bäume
flower Blume Blumen
mushroom Pilz Pilze
apple Apfel Äpfel
banana Banane Bananen
pizza Pizza Pizzas
cup Tasse Tassen
car Auto Autos
boat Boot Boote
house Haus Häuser
ball Ball Bälle
elephant Elefant Elefanten
butterfly Schmetterling Schmetterlinge
snail Schnecke Schnecken
bus Bus Busse
rocket Rakete Raketen
star Stern Sterne
heart Herz Herzen
cake Kuchen
""".strip().splitlines()
]
# The kind by any of its words.
NAMES = {
    "en": {word: kind for kind in KINDS for word in (kind, MANY[kind])},
    "de": {word: kind for kind, *words in GERMAN_NAMES for word in words},
}
HUES = "rot orange gelb grün blau lila rosa braun schwarz weiß grau"
COLOR_WORDS = {"en": COLORS, "de": HUES.split()}
PLACES = {
    "en": "top left,top,top right,left,center,right,bottom left,bottom,bottom right",
    "de": "oben links,oben,oben rechts,links,Mitte,rechts,unten links,unten,"
    "unten rechts",
}
PLACES = {code: text.split(",") for code, text in PLACES.items()}
THE, OF = "d(?:er|ie|as)", "vo(?:m|n der)"
# How each form of a question is worded; the gaps are names of things.
FORMS = {
    "en": {
        "exists": r"is there an? (\w+)\?",
        "count": r"how many (\w+)\?",
        "color": r"what color is the (\w+)\?",
        "where": r"where is the (\w+)\?",
        "larger": r"which is larger, the (\w+) or the (\w+)\?",
        "beside": r"is the (\w+) left or right of the (\w+)\?",
        "left": r"is the (\w+) left of the (\w+)\?",
        "right": r"is the (\w+) right of the (\w+)\?",
    },
    "de": {
        "exists": r"ist da eine? (\w+)\?",
        "count": r"wie viele (\w+)\?",
        "color": rf"welche Farbe hat {THE} (\w+)\?",
        "where": rf"wo ist {THE} (\w+)\?",
        "larger": rf"was ist größer, {THE} (\w+) oder {THE} (\w+)\?",
        "beside": rf"ist {THE} (\w+) links oder rechts {OF} (\w+)\?",
        "left": rf"ist {THE} (\w+) links {OF} (\w+)\?",
        "right": rf"ist {THE} (\w+) rechts {OF} (\w+)\?",
    },
}
YES_NO = {"en": ("yes", "no"), "de": ("ja", "nein")}
# Drawings whose colour a person would not name.
PIED = "banana bus butterfly cake penguin pizza rocket snail".split()


def codes_of(mask: np.ndarray) -> list[int]:
    """Sixteen numbers that tell one mask from another."""
    height, width = mask.shape
    return [height % 128, width % 128, *(int(n) for n in np.packbits(mask)[:14] % 128)]


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(load_sprites(), backgrounds=4)


@pytest.fixture(scope="module")
def scenes(stock: Stock) -> list[Scene]:
    rng = np.random.default_rng(4)
    return [compose(rng, stock, masks=True) for _ in range(250)]


@pytest.fixture(scope="module")
def many(stock: Stock) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [compose(rng, stock, masks=True) for _ in range(2000)]


def asked(
    scenes: Sequence[Scene], task: str, language: Language = ENGLISH, times: int = 1
) -> list[Question]:
    rng = np.random.default_rng(6)
    found = (
        ask(rng, scene, task, language=language, codes=codes_of)
        for scene in scenes
        for _ in range(times)
    )
    return [question for question in found if question is not None]


def answer_here(text: str, scene: Scene, code: str) -> str | None:
    """The answer to a question, from nothing but the things; None if there is none."""
    matches = {form: re.fullmatch(said, text) for form, said in FORMS[code].items()}
    matches = {form: match for form, match in matches.items() if match}
    if not matches:
        return None
    ((form, match),) = matches.items()
    kinds = [NAMES[code][word] for word in match.groups()]
    found = [[t for t in scene.things if t.kind == kind] for kind in kinds]
    yes, no = YES_NO[code]
    if form == "exists":
        return yes if found[0] else no
    if form == "count":
        return str(len(found[0]))
    if [len(things) for things in found] != [1] * len(kinds):
        return None
    one, other = found[0][0], found[-1][0]
    if form == "color":
        named = one.color is not None and one.kind not in PIED
        return COLOR_WORDS[code][COLORS.index(one.color)] if named else None
    middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (one.box, other.box)]
    if form == "where":
        x, y = middles[0]
        third = scene.image.width / 3
        return PLACES[code][3 * int(y // third) + int(x // third)]
    if form == "larger":
        sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one.box, other.box)]
        return match.groups()[int(sizes[1] > sizes[0])]
    side = "left" if middles[0][0] < middles[1][0] else "right"
    if form == "beside":
        return PLACES[code][3 if side == "left" else 5]
    return yes if form == side else no


def same(one: Sequence[Thing], other: Sequence[Thing]) -> bool:
    """The very same things, in any order."""
    return Counter(map(id, one)) == Counter(map(id, other))


def shared(a: Thing, b: Thing) -> float:
    """Pixels of both boxes over those of the smaller one."""
    grids = np.zeros((2, 128, 128), bool)
    for grid, thing in zip(grids, (a, b)):
        x1, y1, x2, y2 = map(int, thing.box)
        grid[y1:y2, x1:x2] = True
    return (grids[0] & grids[1]).sum() / grids.sum((1, 2)).min()


# --- what the answers say ------------------------------------------------------------

ANSWERED = ("exists", "count", "color", "where", "larger", "beside")


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@pytest.mark.parametrize("task", ANSWERED)
def test_a_short_answer_is_what_the_things_say(scenes, task, language):
    questions = asked(scenes, task, language, times=3)
    assert len(questions) > 100
    for question in questions:
        start, text = question.prefix[:10], question.prefix[10:]
        assert start == f"answer {language.code} "
        right = answer_here(text, question.scene, language.code)
        assert question.suffix == right is not None
        named = keywords(text, language)
        about = [thing for thing in question.scene.things if thing.kind in named]
        assert same(question.target, about)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_a_question_of_the_model_has_the_answer_that_was_given(scenes, language):
    for question in asked(scenes, "question", language, times=3):
        prefix = f"question {language.code} "
        assert question.prefix.startswith(prefix)
        right = answer_here(question.suffix, question.scene, language.code)
        assert question.prefix.removeprefix(prefix) == right
        assert judge(question, question.suffix)


def test_what_is_near_or_alike_is_not_asked(scenes):
    for question in asked(scenes, "larger", times=3):
        (w1, h1), (w2, h2) = (
            (b[2] - b[0], b[3] - b[1]) for b in (t.box for t in question.target)
        )
        assert max(w1 * h1 / (w2 * h2), w2 * h2 / (w1 * h1)) >= 1.5
    for question in asked(scenes, "beside", times=3):
        x1, x2 = ((t.box[0] + t.box[2]) / 2 for t in question.target)
        assert abs(x1 - x2) >= 0.1 * 128
    for question in asked(scenes, "where", times=3):
        x1, y1, x2, y2 = question.target[0].box
        for value in ((x1 + x2) / 256, (y1 + y2) / 256):
            assert min(abs(value - 1 / 3), abs(value - 2 / 3)) >= 0.04


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_boxes_and_masks_are_in_order_those_of_the_things_asked_for(scenes, task):
    codes = 16 if task == "segment" else 0
    line = re.compile(rf"((?:<loc\d{{4}}>){{4}})((?:<seg\d{{3}}>){{{codes}}}) (\w+)")
    for question in asked(scenes, task, times=2):
        wanted = question.prefix.removeprefix(f"{task} ").split(" ; ")
        parts = question.suffix.split(" ; ") if question.suffix else []
        row = sorted(question.scene.things, key=lambda t: t.box[0] + t.box[2])
        things = [thing for kind in wanted for thing in row if thing.kind == kind]
        assert [*map(id, question.target)] == [*map(id, things)]
        assert len(parts) == len(question.target)
        for part, thing in zip(parts, question.target):
            corner, outline, kind = line.fullmatch(part).groups()
            assert kind == thing.kind
            y1, x1, y2, x2 = (int(n) / 8 for n in re.findall(r"\d+", corner))
            assert np.abs(np.subtract((x1, y1, x2, y2), thing.box)).max() <= 1
            rows, columns = np.nonzero(thing.mask)
            cut = thing.mask[rows.min() : rows.max() + 1, columns.min() :]
            cut = cut[:, : columns.max() - columns.min() + 1]
            told = [int(n) for n in re.findall(r"\d+", outline)]
            assert told == (codes_of(cut) if codes else [])


def test_a_region_is_of_one_thing_alone(scenes):
    questions = asked(scenes, "region", times=4)
    moved = []
    for question in questions:
        (thing,) = question.target
        match = re.fullmatch(r"caption ((?:<loc\d{4}>){4})", question.prefix)
        y1, x1, y2, x2 = (int(n) / 8 for n in re.findall(r"\d+", match[1]))
        assert x1 < x2 and y1 < y2
        off = np.subtract((x1, y1, x2, y2), thing.box)
        assert np.abs(off).max() <= 3  # a step of 2, and 1 from rounding
        moved.append(off)
        others = [other for other in question.scene.things if other is not thing]
        assert all(shared(thing, other) <= 0.3 for other in others)
        color = None if thing.kind in PIED else thing.color
        name = f"{color} {thing.kind}" if color else thing.kind
        assert question.suffix == f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    assert np.std(moved) > 1  # the box is not always that of the thing


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@pytest.mark.parametrize("task", ["caption", "describe"])
def test_a_caption_names_each_thing_that_is_there(scenes, task, language):
    nothing = {"en": "nothing", "de": "nichts"}[language.code]
    numbers = {
        "en": ["a", "an", "two", "three", "four", "five", "six"],
        "de": ["ein", "eine", "zwei", "drei", "vier", "fünf", "sechs"],
    }[language.code]
    for question in asked(scenes, task, language):
        assert question.prefix == f"{task} {language.code}"
        things = question.scene.things
        assert (question.suffix == nothing) == (not things)
        told = Counter()
        words = re.findall(r"\w+", question.suffix) if things else []
        for word in words:
            if word in numbers:
                count = max(1, numbers.index(word))
            elif word in NAMES[language.code]:
                told[NAMES[language.code][word]] += count
        assert told == Counter(thing.kind for thing in things)
        assert same(question.target, things)


def test_a_description_tells_colors_and_places(scenes):
    for language in LANGUAGES:
        code = language.code
        for question in asked(scenes, "describe", language):
            parts = question.suffix.split(", ")
            for part, thing in zip(parts, question.target):
                alone = replace(question.scene, things=(thing,))
                where = language.phrase("where", thing.kind)
                place = answer_here(where, alone, code)
                assert part.endswith(f" {place}")
                color = language.phrase("color", thing.kind)
                if (hue := answer_here(color, alone, code)) is not None:
                    assert re.search(
                        rf"\b{hue}(er|e|es|) {language.nouns[thing.kind].one}\b", part
                    )
                else:
                    assert not any(f" {hue}" in part for hue in COLOR_WORDS[code])


# --- balance -------------------------------------------------------------------------


def shares(values: Sequence[str]) -> dict[str, float]:
    return {value: n / len(values) for value, n in Counter(values).items()}


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_half_of_what_is_to_be_found_is_absent(many, task):
    questions = asked(many, task)
    wanted = [
        (kind, [thing.kind for thing in question.scene.things])
        for question in questions
        for kind in question.prefix.removeprefix(f"{task} ").split(" ; ")
    ]
    absent = [kind not in there for kind, there in wanted]
    assert np.mean(absent) == pytest.approx(0.5, abs=0.04)
    two = np.mean([" ; " in question.prefix for question in questions])
    assert two == pytest.approx({"detect": 0.5, "segment": 0.2}[task], abs=0.04)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_yes_and_no_left_and_right_come_equally_often(many, language):
    yes, no = YES_NO[language.code]
    places = PLACES[language.code]
    exists = shares([q.suffix for q in asked(many, "exists", language)])
    assert exists[yes] == pytest.approx(0.5, abs=0.04)
    beside = asked(many, "beside", language, times=3)
    told = shares([q.suffix for q in beside])
    assert {*told} == {yes, no, places[3], places[5]}
    assert all(share == pytest.approx(0.25, abs=0.04) for share in told.values())
    # Nor does the side that is named say which it is.
    named = [
        q for q in beside if q.suffix in (yes, no) and f" {places[3]} " in q.prefix
    ]
    assert shares([q.suffix for q in named])[yes] == pytest.approx(0.5, abs=0.06)


def test_the_larger_thing_is_named_first_as_often_as_last(many):
    first = [
        NAMES["en"][q.suffix] == q.target[0].kind
        for q in asked(many, "larger", times=3)
    ]
    assert np.mean(first) == pytest.approx(0.5, abs=0.04)


def test_no_place_and_no_number_is_nearly_always_right(many):
    where = shares([q.suffix for q in asked(many, "where")])
    assert max(where.values()) < 0.25 and min(where.values()) > 0.03
    count = shares([q.suffix for q in asked(many, "count")])
    assert count["0"] == pytest.approx(0.25, abs=0.04)
    assert count["1"] < 0.56 and count["2"] > 0.15


def test_at_most_a_third_of_the_given_answers_are_yes_or_no(many):
    given = shares([q.prefix for q in asked(many, "question")])
    answers = given["question en yes"], given["question en no"]
    assert 0.15 < sum(answers) < 1 / 3
    assert abs(answers[0] - answers[1]) < 0.05
    begun = shares([q.suffix.split()[0] for q in asked(many, "question")])
    assert all(begun[word] > 0.08 for word in ("is", "how", "what", "where"))


def test_an_empty_scene_is_captioned_and_nothing_else(scenes):
    empty = replace(scenes[0], things=())
    for task in TASKS:
        for language in SPOKEN[task]:
            questions = asked([empty], task, language, times=20)
            assert bool(questions) == (task in ("caption", "describe"))


def test_masks_are_asked_for_where_they_are_few(scenes):
    crowded = [
        scene
        for scene in scenes
        if {1, 3} <= {*Counter(t.kind for t in scene.things).values()}
    ]
    questions = asked(crowded, "segment", times=10)
    assert len(questions) > 50
    assert all(len(q.target) <= 2 * q.prefix.count(";") + 2 for q in questions)


# --- judging -------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_judge_accepts_a_made_up_question_exactly_if_its_answer_is_right(
    scenes, language
):
    code = language.code
    answers = [*YES_NO[code], *"01234", *COLOR_WORDS[code], *PLACES[code]]
    texts = [
        language.phrase(form, kind)
        for form in ("exists", "count", "color", "where")
        for kind in ("cat", "house", "fish", "star", "penguin", "heart", "elephant")
    ]
    accepted = 0
    for scene in scenes[:60]:
        for given in answers:
            question = Question(
                f"question {code} {given}", "", "question", (), scene, language
            )
            for text in texts:
                right = answer_here(text, scene, code) == given
                assert judge(question, text) == right
                accepted += right
    assert accepted > 800


def test_judge_refuses_what_is_no_question(scenes):
    (question,) = asked([next(s for s in scenes if s.things)], "question")
    for said in ("", "cat", question.suffix[:-1], "is there a unicorn?", "question en"):
        assert not judge(question, said)
    assert judge(question, f" {question.suffix} ")
    german = replace(question, language=GERMAN)
    assert not judge(german, question.suffix)


def test_judge_takes_nothing_but_the_answer_itself(scenes):
    for question in asked(scenes, "count"):
        assert judge(question, question.suffix)
        assert not judge(question, str(int(question.suffix) + 1))


# --- asking --------------------------------------------------------------------------


def test_the_same_state_asks_the_same_question(scenes):
    for task in TASKS:
        assert asked(scenes[:20], task) == asked(scenes[:20], task)


def test_only_the_given_kinds_are_asked_for_though_absent(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes:
        there = {thing.kind for thing in scene.things}
        for task in ("detect", "exists", "count"):
            if question := ask(rng, scene, task, kinds=("cat", "bus")):
                assert keywords(question.prefix) <= there | {"cat", "bus"}


def test_every_word_is_in_the_list_of_words(scenes):
    for task in TASKS:
        for language in SPOKEN[task]:
            for question in asked(scenes, task, language):
                text = re.sub(r"<\w+>", "", f"{question.prefix} {question.suffix}")
                words = [word for word in re.findall(r"\w+", text) if word.isalpha()]
                assert {*words} <= {*WORDS}
    assert len(WORDS) == len({*WORDS}) and all(word.isalpha() for word in WORDS)


def test_what_cannot_be_asked_is_refused(scenes):
    rng, scene = np.random.default_rng(0), next(s for s in scenes if s.things)
    with pytest.raises(ValueError, match="'sing' is none of the 12 tasks"):
        ask(rng, scene, "sing")
    with pytest.raises(ValueError, match="'detect' is asked in en, not in 'de'"):
        ask(rng, scene, "detect", language=GERMAN)
    with pytest.raises(ValueError, match="'segment' needs `codes`"):
        ask(rng, scene, "segment")
    bare = replace(scene, things=tuple(replace(t, mask=None) for t in scene.things))
    with pytest.raises(ValueError, match="'segment' needs masks"):
        asked([bare], "segment", times=20)


def test_locations_are_y_x_y_x_in_64_bands():
    text = locations((0, 32, 64, 128), (128, 128))
    assert text == "<loc0264><loc0008><loc1016><loc0520>"
