"""Which questions a run answers: pictures times prompts, or a list of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff".split())


@dataclass(frozen=True)
class Question:
    """One row of the table.

    Attributes:
        image: its name in the table: the path within the folder, or as it is listed.
        number: of the prompt among those about this image, from 0.
    """

    image: str
    number: int
    prompt: str
    path: Path

    @property
    def key(self) -> tuple[str, int]:
        """No two questions of a run have the same."""
        return self.image, self.number


def questions(source: Path, prompts: Sequence[str]) -> list[Question]:
    """All questions of a run, in the order of its table.

    Args:
        source: a folder, with all that lies below it; a text file with a path in each
            line; or a .jsonl file with lines such as {"image": path, "prompt": text},
            whose own prompt takes the place of the others. Paths in a file are seen
            from where that lies.
        prompts: asked about each image. What is asked twice counts once.
    Raises:
        ValueError: there is nothing to ask, or a line cannot be read.
    """
    if source.is_dir():
        root, named = source, ((name, prompts) for name in _pictures(source))
    elif source.is_file():
        read = _objects if source.suffix == ".jsonl" else _paths
        root, named = source.parent, read(source, prompts)
    else:
        raise ValueError(f"{source} is neither a folder nor a file")
    pairs = dict.fromkeys((name, prompt) for name, each in named for prompt in each)
    if not pairs:
        raise ValueError(f"{source} names no picture")
    asked: Counter[str] = Counter()
    found = []
    for name, prompt in pairs:
        if not prompt.strip():
            raise ValueError(f"a prompt about {name} is empty")
        found.append(Question(name, asked[name], prompt, root / name))
        asked[name] += 1
    return found


def _pictures(folder: Path) -> Iterator[str]:
    """Files that are named like pictures; hidden ones are not meant to be found."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield name.as_posix()


def _paths(source: Path, prompts: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    for line in source.read_text("utf-8").splitlines():
        if line.strip():
            yield line.strip(), prompts


def _objects(
    source: Path, prompts: Sequence[str]
) -> Iterator[tuple[str, Sequence[str]]]:
    for number, line in enumerate(source.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image = entry["image"]
            own = [entry["prompt"]] if "prompt" in entry else prompts
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"line {number} of {source} is not like "
                '{"image": "cat.jpg", "prompt": "caption en"}'
            ) from None
        if not own:
            raise ValueError(
                f"line {number} of {source} has no prompt, nor has --prompt"
            )
        if not all(isinstance(text, str) for text in (image, *own)):
            raise ValueError(f"line {number} of {source}: image and prompt are texts")
        yield image, own
