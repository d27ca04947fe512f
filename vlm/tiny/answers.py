"""The one right answer to a question about a kind of things in a scene."""

from functools import cache

from vlm.tiny import facts
from vlm.tiny.language import ENGLISH, Language
from vlm.tiny.scenes import Scene

FORMS = ("exists", "count", "color", "where")


def is_answer(
    answer: str, question: str, *, scene: Scene, language: Language = ENGLISH
) -> bool:
    """Whether a question that was made up about a scene has that answer.

    It must be worded as `questions.ask` words its own; any other has none.
    """
    read = _readings(language).get(question.strip())
    return read is not None and right_answer(*read, scene, language) == answer.strip()


def right_answer(
    form: str, kind: str, scene: Scene, language: Language = ENGLISH
) -> str | None:
    """The answer to one of the FORMS; None where there is none."""
    found = facts.find(scene, kind)
    if form == "exists":
        return language.yes if found else language.no
    if form == "count":
        return str(len(found))
    if len(found) != 1:  # "the cat" is one
        return None
    if form == "color":
        color = facts.color_of(found[0])
        return None if color is None else language.colors[color]
    if form == "where":
        return language.place(*facts.place_of(found[0], scene))
    raise ValueError(f"{form!r} is none of the {len(FORMS)} forms {FORMS}")


@cache
def _readings(language: Language) -> dict[str, tuple[str, str]]:
    """Form and kind of every question that can be asked."""
    return {
        language.phrase(form, kind): (form, kind)
        for form in FORMS
        for kind in language.nouns
    }
