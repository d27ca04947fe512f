"""More: the further pictures of a question, or the frames of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from vlm.ui import pictures
from vlm.ui.album import files
from vlm.ui.callers import sent
from vlm.ui.pictures import MAX_PICTURES
from vlm.ui.scope import FOLDER, joined
from vlm.ui.widget import Widget

FRAMES = 8  # of a clip: as many as a machine without a GPU reads in a short while
NOT_HERE = "This file has not come here whole. Choose it once more."


class More(Widget):
    """Pictures that are read behind the first one, each with a way to remove it.

    The value has their `files`, and what is to be `told`. When the browser has sent
    some, `bring` is triggered with their `paths`, and `clip` if they are the frames
    of one that the browser can read and Pillow cannot.
    """

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        super().__init__(
            value or none(),
            most=MAX_PICTURES,
            frames=FRAMES,
            html_template=(FOLDER / "more.html").read_text("utf-8"),
            css_template=(FOLDER / "more.css").read_text("utf-8"),
            js_on_load=joined(["nodes.js", "clip.js", "more.js"]),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def none() -> dict[str, Any]:
    """No further pictures."""
    return {"files": [], "told": ""}


def places(value: Any) -> tuple[str, ...]:
    """Where the further pictures lie; what comes from a browser may be anything.

    Raises:
        ValueError: one is no file that Gradio has taken.
    """
    given = value.get("files") if isinstance(value, dict) else None
    return tuple(sent(each) for each in given) if isinstance(given, list) else ()


def added(first: str | None, value: Any, data: Any) -> tuple[str, dict[str, Any]]:
    """The first picture and the further ones, once those of `data` are with them.

    The frames of a clip are asked about alone: they take the place of what was there.

    Raises:
        ValueError: what was sent is not here, is no picture, or is too long a clip.
    """
    given = [_uploaded(path) for path in _paths(data)]
    if data.get("clip") is True:
        frames = given
    else:
        frames = pictures.clip(given[0], FRAMES) if len(given) == 1 else []
    if len(frames) > 1:
        pictures.read_all(frames)
        told = f"{len(frames)} frames, spread evenly over the clip."
        return frames[0], {"files": files(frames[1:]), "told": told}
    known = [*([first] if first else []), *places(value)]
    room = MAX_PICTURES - len(known)
    here = [*known, *given[:room]]
    pictures.read_all(here)
    left = len(given) - len(given[:room])
    told = f"{left} more had no room: at most {MAX_PICTURES}." if left else ""
    return here[0], {"files": files(here[1:]), "told": told}


def _paths(data: Any) -> list[Any]:
    paths = data.get("paths") if isinstance(data, dict) else None
    if not isinstance(paths, list) or not 1 <= len(paths) <= MAX_PICTURES:
        raise ValueError(f"Add 1 to {MAX_PICTURES} pictures at a time.")
    return paths


def _uploaded(path: Any) -> str:
    # No other file of the server may be had by its name.
    folder = Path(get_upload_folder()).resolve()
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder):
        raise ValueError(NOT_HERE)
    return str(Path(path).resolve())
