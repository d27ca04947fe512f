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

from vlm.tiny.answers import is_answer
from vlm.tiny.asker import Asker, Codes
from vlm.tiny.language import ENGLISH, LANGUAGES, Language
from vlm.tiny.scenes import Scene, Thing
from vlm.tiny.sprites import DRAWINGS

KINDS = tuple(DRAWINGS)
ASKERS = {
    "detect": Asker.detect,
    "segment": Asker.segment,
    "region": Asker.region,
    "exists": Asker.exists,
    "count": Asker.count,
    "color": Asker.color,
    "where": Asker.where,
    "larger": Asker.larger,
    "beside": Asker.beside,
    "caption": Asker.caption,
    "describe": Asker.describe,
    "question": Asker.question,
}
TASKS = tuple(ASKERS)
# What is in a box, and the labels of boxes and masks, is English in PaliGemma too.
SPOKEN = {task: LANGUAGES for task in TASKS}
SPOKEN |= {task: (ENGLISH,) for task in ("detect", "segment", "region")}
PROMPTS = ("detect", "segment", "answer", "caption", "describe", "question")
SPELT = (word for language in LANGUAGES for word in language.words())
# Every word of the questions and answers, for the vocabulary.
WORDS = tuple(dict.fromkeys((*PROMPTS, *SPELT)))


@dataclass(frozen=True)
class Question:
    """What is asked, what is to be answered, and the things the answer is about.

    The `target` of detect and segment has the order of the boxes.
    """

    prefix: str
    suffix: str
    task: str
    target: tuple[Thing, ...]
    scene: Scene
    language: Language = ENGLISH


def ask(
    rng: np.random.Generator,
    scene: Scene,
    task: str,
    *,
    kinds: Sequence[str] = KINDS,
    language: Language = ENGLISH,
    codes: Codes | None = None,
) -> Question | None:
    """A question of one of the TASKS; None where the scene has no clear answer.

    `kinds` are those which may be asked for though they are absent, `codes` turns
    masks into their codes.

    Raises:
        ValueError: there is no such task, it is not SPOKEN in the language, or it
            is "segment" without `codes` or on a scene without masks.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is none of the {len(TASKS)} tasks {TASKS}")
    if language not in SPOKEN[task]:
        spoken = ", ".join(spoken.code for spoken in SPOKEN[task])
        raise ValueError(f"{task!r} is asked in {spoken}, not in {language.code!r}")
    answer = ASKERS[task](Asker(rng, scene, kinds, language, codes))
    if answer is None:
        return None
    prefix, suffix, target = answer
    return Question(prefix, suffix, task, tuple(target), scene, language)


def judge(question: Question, said: str) -> bool:
    """Whether what was said is right.

    Of the task "question" any question will do whose answer is the one that was
    given; of the others, what was said must be the suffix.
    """
    if question.task != "question":
        return said.strip() == question.suffix
    answer = question.prefix.removeprefix(f"question {question.language.code} ")
    return is_answer(answer, said, scene=question.scene, language=question.language)


def keywords(text: str, language: Language | None = None) -> set[str]:
    """The kinds that a text names, in any form; in one language, or in any."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    languages = LANGUAGES if language is None else (language,)
    return {
        kind
        for spoken in languages
        for kind, noun in spoken.nouns.items()
        if words & {form.lower() for form in (noun.one, noun.many, noun.dative)}
    }


def forms(kind: str) -> tuple[str, ...]:
    """Every word for a kind: "cat", "cats", "Katze", "Katzen"."""
    nouns = [language.nouns[kind] for language in LANGUAGES]
    words = (word for noun in nouns for word in (noun.one, noun.many, noun.dative))
    return tuple(dict.fromkeys(filter(None, words)))
