"""The PaliGemma 1 and 2 checkpoints that Google has published, known by name.

    for checkpoint in CHECKPOINTS:
        print(checkpoint.name, checkpoint.resolution, checkpoint.bytes())

Written down by hand: resolutions after the papers (arXiv:2407.07726, arXiv:2412.03555)
and the results in big_vision's configs/proj/paligemma/README.md, names after Google's
collections on the Hub, prompts after the training configs in transfers/ beside that
README. The Hub itself is not asked. Those configs tell nothing of the two ft-docci,
which are asked as their users do. A name that does not exist is refused with a sentence
when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


@dataclass(frozen=True)
class Checkpoint:
    """One repository of the Hub.

    Attributes:
        resolution: side of its square picture, in pixels.
        parameters: how many, the positions of the picture's patches included.
        dtypes: of the weights in each revision; `main` is the one that is loaded.
        kind: "pt" (pre-trained), "mix" or "ft" (fine-tuned).
        does: in a few words, what it can do.
        prompts: how it is asked; THING, QUESTION and the like are to be filled in.
        images: how many pictures it takes.
    """

    name: str
    resolution: int
    parameters: int
    dtypes: dict[str, str]
    kind: str
    does: str
    prompts: tuple[str, ...]
    images: int = 1

    def bytes(self, revision: str = "main") -> int:
        """Of its weights on disk."""
        return self.parameters * WIDTHS[self.dtypes[revision]]


GRAMMAR = (
    "caption en",
    "answer en QUESTION",
    "detect THING ; THING",
    "segment THING",
    "ocr",
)
PRETRAINED = (*GRAMMAR, "cap en", "question en ANSWER", "caption <loc0000>×4")
MIXED = (*GRAMMAR, "describe en", "caption <loc0000>×4")
FIRST = {"main": "float32", "bfloat16": "bfloat16", "float16": "float16"}
SECOND = {"main": "bfloat16"}
# At 224 pixels, 16 × 16 patches; each further patch has a position of 1152 numbers.
PARAMETERS = {
    "paligemma-3b": 2_923_466_480,
    "paligemma2-3b": 3_032_242_416,
    "paligemma2-10b": 9_662_638_832,
    "paligemma2-28b": 27_650_487_024,
}
CAPTION, ANSWER, BARE = ("caption en",), ("answer en QUESTION",), ("QUESTION",)
# Choices stand between spaces and a tab. ScienceQA's lines end in a backslash and an n,
# not in a new line: so the texts of its training were written.
CHOICE = ("answer en QUESTION choose from: A \t B",)
SCIENCE = (r"Question: QUESTION\nContext: HINT\nOptions: (A) ONE, (B) OTHER\nAnswer:",)
# Of PaliGemma 1: resolutions, what it can do, and its own prompts.
FINE_TUNED = {
    "ai2d": ((224, 448), "questions about diagrams, with choices", CHOICE),
    "aokvqa-da": ((224, 448), "questions that need knowledge", ANSWER),
    "aokvqa-mc": ((224, 448), "the same, with choices given", CHOICE),
    "coco35l": ((224, 448), "captions in 35 languages", ("caption de",)),
    "cococap": ((224, 448), "captions", CAPTION),
    "docvqa": ((224, 448, 896), "questions about documents", BARE),
    "gqa": ((224, 448), "questions about relations of things", ANSWER),
    "infovqa": ((224, 448, 896), "questions about infographics", ANSWER),
    "nlvr2": ((224, 448), "is it true of two pictures?", ("answer en STATEMENT",)),
    "ocrvqa": ((224, 448, 896), "questions about book covers", ANSWER),
    "okvqa": ((224, 448), "questions that need knowledge", ANSWER),
    "refcoco-seg": ((224, 448, 896), "the mask of what is described", ("THING",)),
    "rsvqa-hr": ((224, 448), "questions about aerial pictures", ANSWER),
    "rsvqa-lr": ((224, 448), "questions about satellite pictures", ANSWER),
    "science-qa": ((224, 448), "questions of school science", SCIENCE),
    "scicap": ((224, 448), "captions of scientific figures", CAPTION),
    "screen2words": ((224, 448), "what a screen is for", CAPTION),
    "stvqa": ((224, 448, 896), "questions about text in pictures", ANSWER),
    "tallyqa": ((224, 448), "counting", ANSWER),
    "textcaps": ((224, 448), "captions that read the text", CAPTION),
    "textvqa": ((224, 448, 896), "questions about text in pictures", ANSWER),
    "vizwizvqa": ((224, 448), "questions of people who cannot see", ANSWER),
    "vqav2": ((224, 448), "questions about any picture", ANSWER),
    "widgetcap": ((224, 448), "what the widget in a red box does", CAPTION),
}


def _checkpoint(
    size: str, tail: str, resolution: int, kind: str, *how: object, images: int = 1
) -> Checkpoint:
    patches = (resolution // 14) ** 2
    return Checkpoint(
        f"google/{size}-{tail}-{resolution}",
        resolution,
        PARAMETERS[size] + (patches - 256) * 1152,
        FIRST if size == "paligemma-3b" else SECOND,
        kind,
        *how,
        images=images,
    )


ALL = "a bit of everything: try any prompt"
BASE = "to be fine-tuned: knows the tasks, not chat"
DOCCI = ("caption en", "describe en")
CHECKPOINTS = (
    *(
        _checkpoint(size, "mix", resolution, "mix", ALL, MIXED)
        for size in PARAMETERS
        for resolution in (224, 448)
    ),
    *(
        _checkpoint(size, "pt", resolution, "pt", BASE, PRETRAINED)
        for size in PARAMETERS
        for resolution in (224, 448, 896)
    ),
    *(
        _checkpoint(size, "ft-docci", 448, "ft", "long, exact descriptions", DOCCI)
        for size in ("paligemma2-3b", "paligemma2-10b")
    ),
    *(
        _checkpoint(
            "paligemma-3b",
            f"ft-{task}",
            resolution,
            "ft",
            does,
            prompts,
            images=2 if task == "nlvr2" else 1,
        )
        for task, (resolutions, does, prompts) in FINE_TUNED.items()
        for resolution in resolutions
    ),
)
