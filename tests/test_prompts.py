"""What is a prompt, what is amiss with one, and how it is written instead."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import strategies
from hypothesis import given, settings

from vlm.tiny.language import LANGUAGES as LEARNT
from vlm.ui import prompts
from vlm.ui.hint import hint
from vlm.ui.lint import Advice, lint
from vlm.ui.matching import lines_of, texts_of

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples" / "examples.json"
ANY = {"name": "google/paligemma2-3b-mix-224", "tasks": []}
PT = {"name": "google/paligemma-3b-pt-224", "tasks": []}
TINY = {"name": "tiny", "tasks": ["caption", "describe", "answer", "detect"]}
REGION = "caption <loc0264><loc0104><loc0760><loc0408>"

# As PaliGemma's own page on prompts writes them, and more that are well formed.
LEGAL = (
    "cap en",
    "caption en",
    "caption de",
    "caption fil",
    "describe en",
    "ocr",
    "answer en is there a cat?",
    "answer en How many cats are there? 12345",
    "answer de wie viele Schmetterlinge?",
    "answer no er det en katt?",
    "question en 2",
    "question de oben links",
    "question en no",
    "detect cat",
    "detect cat ; dog ; ball",
    "detect cat ;",
    "detect Statue of Liberty",
    "segment the blue bird",
    "segment sandwich ; android",
    "answer en what is the time, 3 p.m.",
    REGION,
    "caption <loc0000><loc0512><loc1023><loc1007>",
)


@pytest.mark.parametrize("prompt", LEGAL)
@pytest.mark.parametrize("about", [ANY, PT], ids=["mix", "pt"])
def test_nothing_is_said_about_a_legal_prompt(prompt, about):
    assert lint(prompt, about) == []


def test_nothing_is_said_about_our_own_examples_and_presets():
    own = [entry["prompt"] for entry in json.loads(EXAMPLES.read_text("utf-8"))]
    for prompt in own + [task.prompt() for task in prompts.TASKS]:
        assert lint(prompt, ANY) == [], prompt


@pytest.mark.parametrize(
    "prompt", [task.prompt(language="de") for task in prompts.TASKS]
)
def test_nothing_is_said_of_words_that_are_only_half_typed(prompt):
    word = prompt.partition(" ")[0]
    halves = [word[:end] for end in range(1, len(word))] + [f"{word} d", f"{word} de"]
    for half in halves:
        about_half = [advice.message for advice in lint(half, ANY)]
        assert not any("task word" in message for message in about_half)
        assert not any("anguage" in message for message in about_half)


@pytest.mark.parametrize("end", range(len("caption "), len("caption <loc0264>")))
def test_nothing_is_said_of_a_half_typed_place(end):
    assert "missing" in lint("caption ", ANY)[0].message
    if end > len("caption "):
        assert lint(REGION[:end], ANY) == []


@pytest.mark.parametrize(
    ("prompt", "message", "repair"),
    [
        ("a cat?", "No task word", "answer en a cat?"),
        ("how many cats", "No task word", "answer en how many cats"),
        ("red cat ; dog", "No task word", "detect red cat ; dog"),
        ("<loc0000><loc0000><loc0512><loc0512>", "No task word", None),
        ("tell me all about this place now", "No task word", None),
        ("Detect cat", "small letters", "detect cat"),
        ("detect cat, dog", "between things", "detect cat ; dog"),
        ("detect cat,dog, and ball", "between things", "detect cat ; dog ; ball"),
        ("segment cat and dog", "between things", "segment cat ; dog"),
        ("detect cat;dog", "both sides", "detect cat ; dog"),
        ("detect cat ;dog", "both sides", "detect cat ; dog"),
        ("caption xx", "“xx”", "caption en"),
        ("answer xx how many?", "“xx”", "answer en how many?"),
        ("caption DE", "small letters", "caption de"),
        ("caption", "missing", "caption en"),
        ("answer how many", "missing", "answer en how many"),
        ("answer is there a cat?", "missing", "answer en is there a cat?"),
        ("detect", "Go on", None),
        ("answer en", "Go on", None),
        ("detect <image> cat", "<image>", "detect cat"),
        ("<bos>caption en<eos>", "<bos>", "caption en"),
        ("caption en\n", "line break", "caption en"),
        ("detect cat.", "full stop", "detect cat"),
        ("caption <loc0001><loc0002><loc0003>", "Here are 3", None),
        ("caption <loc0001><loc0002><loc0003><loc1024>", "<loc1023>", None),
        (
            "caption <loc0900><loc0002><loc0100><loc0800>",
            "come first",
            "caption <loc0100><loc0002><loc0900><loc0800>",
        ),
    ],
)
def test_a_slip_is_told_and_its_repair_is_legal(prompt, message, repair):
    first = lint(prompt, ANY)[0]
    assert message in first.message
    if repair is None:
        return
    assert first.repair == repair
    assert lint(repair, ANY) == []


def test_a_region_without_its_task_is_given_one():
    places = REGION.removeprefix("caption ")
    assert lint(places, ANY)[0].repair == REGION


def test_repairs_one_after_the_other_end_in_a_legal_prompt():
    prompt = "Detect <bos>cat, Dog;ball."
    for _ in range(6):
        if advice := lint(prompt, ANY):
            prompt = advice[0].repair
    assert prompt == "detect cat ; Dog ; ball"


def test_a_pt_checkpoint_is_said_not_to_chat():
    chat = "what do you see here?"
    assert "fine-tuned" in lint(chat, PT)[0].message
    assert "fine-tuned" not in lint(chat, ANY)[0].message


def test_a_task_that_was_never_learnt_is_told():
    assert lint("cap en", TINY) == [
        Advice("This model was not trained for it: expect nonsense.")
    ]
    assert lint("caption en", TINY) == []
    assert lint("cap en", ANY) == []


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("answer de wie viele Katzen?", "Ask"),
        ("caption", "Caption"),
        ("caption fr", "Caption"),
        ("cap en", "Short caption"),
        (REGION, "Region"),
        ("question en 2", "Make a question"),
        ("captions en", None),
        ("", None),
    ],
)
def test_the_chip_of_a_prompt_is_known_in_any_language(prompt, name):
    task = prompts.of(prompt)
    assert (task.name if task else None) == name


def test_a_chip_keeps_the_language_and_what_was_named():
    def to(name: str, prompt: str) -> str:
        return prompts.rephrased(prompt, prompts.named(name))

    assert to("Describe", "answer de wie viele Katzen?") == "describe de"
    assert to("Segment", "detect apple ; banana") == "segment apple ; banana"
    assert to("Detect", "segment cat") == "detect cat"
    assert to("Caption", "detect cat") == "caption en"
    assert to("Read text", "caption de") == "ocr"


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        ("detect apple ; banana", "segment apple ; banana"),
        ("segment apple", "segment apple"),
    ],
)
def test_a_mask_is_one_of_what_was_asked_for(asked, then):
    assert prompts.segmenting(asked) == then


@pytest.mark.parametrize("asked", ["caption en", REGION, "answer en where?", "hello"])
def test_a_mask_of_nothing_that_was_named_is_refused(asked):
    with pytest.raises(ValueError, match="detect or segment something first"):
        prompts.segmenting(asked)


def test_another_language_is_put_where_the_old_one_stood():
    assert prompts.respoken("answer en how many?", "fr") == "answer fr how many?"
    assert prompts.respoken("caption", "fr") == "caption fr"
    with pytest.raises(ValueError, match="xx"):
        prompts.respoken("caption en", "xx")


def test_every_language_that_the_embedded_model_has_learnt_is_one_of_paligemmas():
    assert {language.code for language in LEARNT} <= set(prompts.LANGUAGES)


@pytest.mark.parametrize(
    ("box", "places"),
    [
        ((0.25, 0.5, 0.75, 1.0), (520, 264, 1016, 776)),
        ((0.0, 0.0, 1.0, 1.0), (8, 8, 1016, 1016)),
    ],
)
def test_a_region_names_top_left_bottom_right_to_sixteen_places(box, places):
    asked = prompts.region(box)
    assert asked == "caption " + "".join(f"<loc{place:04d}>" for place in places)
    assert lint(asked, ANY) == []


def test_help_gives_way_to_advice_and_names_the_language():
    good = hint("answer de wie viele?", ANY)
    assert (good["language"], good["repair"], good["amiss"]) == ("de", None, False)
    assert "question" in good["words"]
    bad = hint("Answer en how many?", ANY)
    assert bad["amiss"] and bad["repair"] == "answer en how many?"
    assert hint("detect cat", ANY)["language"] is None
    assert hint("", ANY)["words"] == ""


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("  detect\tcat \n", "detect cat"),
        ("cap\u202etion en\u200b", "caption en"),
        ("e\u0301", "é"),
    ],
)
def test_what_nobody_can_see_is_taken_out(typed, asked):
    assert prompts.cleaned(typed) == asked


@pytest.mark.parametrize("typed", ["", " \n ", None, 7, "\u200b"])
def test_an_empty_prompt_says_what_to_do(typed):
    with pytest.raises(ValueError, match="Write a prompt first"):
        prompts.cleaned(typed)


@pytest.mark.parametrize(
    "typed", ["کتاب\u200cها", "क्\u200dष", "\U0001f469\u200d\U0001f4bb"]
)
def test_what_joins_letters_is_a_part_of_them(typed):
    assert prompts.cleaned(f"caption {typed}") == f"caption {typed}"
    assert prompts.notice(typed) == ""


def test_what_is_left_out_is_told_and_its_repair_is_what_is_asked():
    assert prompts.notice("detect\tcat\n") == ""
    one = prompts.notice("det\u202eect cat")
    assert one == "A character that nobody can see is left out of the prompt."
    assert prompts.notice("\0\u2066\ud800").startswith("3 characters that nobody")
    first = lint("det\u202eect cat", ANY)[0]
    assert (first.message, first.repair) == (one, "detect cat")


@pytest.mark.parametrize("length", [513, 60_000, 5_000_000])
def test_a_prompt_that_is_far_too_long_is_refused_at_once(length):
    # Marks out of order: to compose them takes time by the square of their number.
    endless = "a" + "\u0315" * (length // 2) + "\u0300" * (length // 2)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"characters; at most 512\. Cut it"):
        prompts.cleaned(endless)
    with pytest.raises(ValueError, match=r"characters; at most 200\. Cut it"):
        texts_of([endless])
    assert len(lines_of(f"a cat\n{endless}")) == 2
    assert "at most 512" in lint(endless, ANY)[0].message
    assert time.perf_counter() - began < 1


@settings(max_examples=300, deadline=None, database=None)
@given(strategies.prompts())
def test_whatever_is_asked_is_one_line_that_can_be_seen(typed):
    hint(typed, ANY)
    try:
        asked = prompts.cleaned(typed)
    except ValueError as refusal:
        assert str(refusal).endswith(".")
        return
    assert asked == " ".join(asked.split()) and asked.strip()
    assert prompts.notice(asked) == ""
    assert prompts.cleaned(asked) == asked
    asked.encode()
