"""PaliGemma's prompts: a task word, a language where one is spoken, and the rest."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from vlm.grounding import bin_of

MAX_CHARACTERS = 512
# Control characters, those that turn the direction of a text or have no width, halves
# of characters. Two of no width are letters' own: Persian and Hindi are written so.
HIDDEN = ("Cc", "Cf", "Cs")
JOINERS = "\u200c\u200d"
# Those of COCO-35L (arXiv:2205.12522), which PaliGemma has learnt to caption in.
LANGUAGES = {
    "en": "English",
    "ar": "Arabic",
    "bn": "Bengali",
    "zh": "Chinese",
    "hr": "Croatian",
    "cs": "Czech",
    "da": "Danish",
    "nl": "Dutch",
    "fil": "Filipino",
    "fi": "Finnish",
    "fr": "French",
    "de": "German",
    "el": "Greek",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "mi": "Maori",
    "no": "Norwegian",
    "fa": "Persian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "es": "Spanish",
    "sw": "Swahili",
    "sv": "Swedish",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
}
# A place is told to 16 of the 1024: a hand that draws is no surer, and the embedded
# model has learnt no others (see BAND in `vlm.tiny.asker`).
BAND = 16


@dataclass(frozen=True)
class Task:
    """What begins with `word`; `spoken` is in a language, named behind the word."""

    name: str
    word: str
    help: str
    spoken: bool = False
    example: str = ""

    def prompt(self, rest: str = "", language: str = "en") -> str:
        parts = [self.word, language if self.spoken else "", rest or self.example]
        return " ".join(filter(None, parts))


CAPTION = Task(
    "Caption", "caption", "One short sentence about the whole picture.", spoken=True
)
DETECT = Task(
    "Detect",
    "detect",
    "A box for each thing. Put “ ; ” between them.",
    example="cat ; dog",
)
SEGMENT = Task(
    "Segment",
    "segment",
    "A box and a mask for each thing that you name.",
    example="cat",
)
REGION = Task(
    "Region",
    "caption",
    "What is in a box: draw one on the picture with ▭. Places are top, left, "
    "bottom, right.",
    example="<loc0264><loc0264><loc0760><loc0760>",
)
TASKS = (
    CAPTION,
    Task("Short caption", "cap", "A few raw words, as on the web.", spoken=True),
    Task("Describe", "describe", "A longer text: what is there, and where.", True),
    Task("Ask", "answer", "A question, a short answer.", True, "is there a cat?"),
    Task("Make a question", "question", "A question with this answer.", True, "2"),
    DETECT,
    SEGMENT,
    Task("Read text", "ocr", "The text in the picture, from top to bottom."),
    REGION,
)


def named(name: object) -> Task:
    """The task of that name. ValueError: there is none."""
    if task := next((task for task in TASKS if task.name == name), None):
        return task
    raise ValueError("There is no such task. Choose one of those above the prompt.")


def of(prompt: str) -> Task | None:
    """The task that a prompt begins with, whatever its language."""
    word, rest = parted(prompt)
    if word == REGION.word and rest.startswith("<loc"):
        return REGION
    return next((task for task in TASKS if task.word == word), None)


def parted(prompt: str) -> tuple[str, str]:
    """The first word, and what comes behind it."""
    word, _, rest = prompt.strip().partition(" ")
    return word, rest.strip()


def language_of(prompt: str) -> str | None:
    """The code behind the task word; None where there is none, or none is spoken."""
    task, (_, rest) = of(prompt), parted(prompt)
    code = parted(rest)[0]
    return code if task and task.spoken and code in LANGUAGES else None


def rephrased(prompt: str, task: Task) -> str:
    """The prompt for another task; its language and the things named are kept."""
    before, rest = of(prompt), parted(prompt)[1]
    named_things = rest if {before, task} == {DETECT, SEGMENT} else ""
    return task.prompt(named_things, language_of(prompt) or "en")


def respoken(prompt: str, code: str) -> str:
    """The prompt in another language. ValueError: none that PaliGemma speaks."""
    if code not in LANGUAGES:
        raise ValueError(f"{code!r} is none of PaliGemma's {len(LANGUAGES)} languages.")
    word, rest = parted(prompt)
    spoken = language_of(prompt)
    return " ".join(filter(None, [word, code, rest.removeprefix(spoken or "").strip()]))


def region(box: tuple[float, float, float, float]) -> str:
    """Asks what is in a box x1, y1, x2, y2, in shares of width and height."""
    x1, y1, x2, y2 = (bin_of(share, band=BAND) for share in box)
    return REGION.prompt(f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}>")


def segmenting(prompt: str) -> str:
    """Asks for the masks of the things that a prompt asks for.

    Raises:
        ValueError: it asks for no thing.
    """
    task = of(prompt)
    if task not in (DETECT, SEGMENT):
        raise ValueError(
            "A mask begins the answer to “segment”: ask to detect or segment something "
            "first, then paint it."
        )
    return rephrased(prompt, SEGMENT) if task is DETECT else prompt


def cleaned(prompt: object) -> str:
    """What the model is asked. ValueError says what to do about a bad prompt."""
    text = prompt if isinstance(prompt, str) else ""
    # Before anything else: to compose a text takes time by its length squared.
    if len(text) > MAX_CHARACTERS:
        raise ValueError(too_long(text))
    text = visible(text)
    if not text.strip(f"{JOINERS} "):
        raise ValueError("Write a prompt first, or choose one of the tasks above it.")
    return text


def too_long(prompt: str) -> str:
    return f"The prompt has {len(prompt)} characters; at most {MAX_CHARACTERS}. Cut it."


def visible(text: str) -> str:
    """The text in one line, composed (NFC), without what nobody can see."""
    return " ".join(unicodedata.normalize("NFC", unhidden(text)).split())


def unhidden(text: str) -> str:
    """The text without characters that nobody can see; white space stays."""
    return "".join(c for c in text if not _is_hidden(c))


def notice(prompt: object) -> str:
    """What to tell of the characters that are left out of a prompt, if there are."""
    count = sum(map(_is_hidden, prompt)) if isinstance(prompt, str) else 0
    if not count:
        return ""
    if count == 1:
        return "A character that nobody can see is left out of the prompt."
    return f"{count} characters that nobody can see are left out of the prompt."


def _is_hidden(character: str) -> bool:
    if character.isspace() or character in JOINERS:
        return False
    return unicodedata.category(character) in HIDDEN
