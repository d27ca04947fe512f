"""Ground truth in COCO's layout, and which row of a table is about which part of it.

    {"images": [{"id": 1, "file_name": "cat.jpg", ...}],
     "categories": [{"id": 3, "name": "cat"}],
     "annotations": [
       {"image_id": 1, "category_id": 3, "bbox": [x, y, width, height]},
       {"image_id": 1, "expression": "the left cat", "bbox": [x, y, width, height]},
       {"image_id": 1, "caption": "two cats on a sofa"},
       {"image_id": 1, "question": "how many cats?", "answers": ["2", "two"]}]}

Things are COCO's own layout, captions that of its caption files, expressions that of
RefCOCO written into it; answers may also be {"answer": text}, as in VQA's files.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.batch.table import Row

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
TASK = re.compile(r"(?:detect|segment)\s+(.+)", re.DOTALL)
CAPTION = re.compile(r"(?:cap|caption|describe)\b(?!.*<loc)", re.DOTALL)


@dataclass
class Scene:
    """What is known of one image.

    Attributes:
        things: COCO's annotations of it, by the name of their category.
        expressions: phrase and the box of what it refers to.
        answers: accepted ones, by question.
    """

    id: int | str
    things: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    expressions: list[tuple[str, Box]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """Scenes by the name of their file, and the ids of the categories by name."""

    scenes: dict[str, Scene]
    categories: dict[str, int]

    @classmethod
    def load(cls, path: Path) -> Truth:
        """
        Raises:
            ValueError: the file is not laid out like that.
        """
        try:
            return cls.read(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is no ground truth in COCO's layout: {error!r}"
            ) from None

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Truth:
        names = {each["id"]: each["name"] for each in raw.get("categories", [])}
        scenes = {each["id"]: Scene(each["id"]) for each in raw["images"]}
        for note in raw["annotations"]:
            scene = scenes[note["image_id"]]
            if "expression" in note:
                scene.expressions.append((note["expression"], corners(note["bbox"])))
            elif "bbox" in note:
                scene.things[names[note["category_id"]]].append(note)
            elif "question" in note:
                given = [
                    each["answer"] if isinstance(each, dict) else each
                    for each in note["answers"]
                ]
                scene.answers[note["question"]] = given
            elif "caption" in note:
                scene.captions.append(note["caption"])
        files = {each["file_name"]: scenes[each["id"]] for each in raw["images"]}
        return cls(files, {name: id for id, name in names.items()})

    def scene(self, row: Row) -> Scene | None:
        """By the row's image; a file name is enough where no other image has it."""
        if row["image"] in self.scenes:
            return self.scenes[row["image"]]
        name = Path(row["image"]).name
        alike = [each for key, each in self.scenes.items() if Path(key).name == name]
        return alike[0] if len(alike) == 1 else None

    def asked_kinds(self, row: Row) -> list[str]:
        """The categories that a row was to find; none unless all it names are such."""
        kinds = [kind.strip() for kind in named(row["prompt"]).split(";")]
        return kinds if all(kind in self.categories for kind in kinds) else []


def named(prompt: str) -> str:
    """What `detect` or `segment` is asked for; nothing of another prompt."""
    found = TASK.fullmatch(prompt.strip())
    return found[1].strip() if found else ""


def referred(row: Row, scene: Scene) -> Sequence[Box]:
    """Boxes of what the row's phrase refers to, one for each time it is annotated."""
    phrase = named(row["prompt"]).casefold()
    return [box for text, box in scene.expressions if text.strip().casefold() == phrase]


def accepted(row: Row, scene: Scene) -> list[str]:
    """Answers to the question that the row's prompt ends in, as behind "answer en"."""
    prompt = row["prompt"].strip().casefold()
    for question, given in scene.answers.items():
        text = question.strip().casefold()
        if prompt == text or prompt.endswith(f" {text}"):
            return given
    return []


def captions(row: Row, scene: Scene) -> list[str]:
    """The image's captions, if that is what the row was asked for."""
    return scene.captions if CAPTION.match(row["prompt"]) else []


def corners(box: Sequence[float]) -> Box:
    """x1, y1, x2, y2 of x, y, width, height."""
    x, y, width, height = box
    return x, y, x + width, y + height
