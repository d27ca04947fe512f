"""Export: a finished run as data, and as a page that opens with no server.

{"format": "paliscope-run", "version": 1,
 "view": the last view, its pictures as data URLs,
 "maps": {"p1": ..., "a0": ...}}  # as the store gives them to the viewer
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from string import Template
from typing import Any

from gradio.utils import get_upload_folder

from vlm.ui.store import Run, Store, packed

FOLDER = Path(__file__).parent
FORMAT = "paliscope-run"
VERSION = 1  # of the layout above, and of what the viewer understands
MAX_BYTES = 64 * 2**20  # of maps; a page has to open on a phone
GONE = "This run is no longer kept here. Run it again, then save it."
EARLY = "This run has not ended yet. Try again in a moment."


def exported(store: Store, request: Any, **viewer: str) -> dict[str, Any]:
    """The answer to a viewer that asks for {"run": name, "kind": kind}.

    Kinds are "json", "html", and "example": the file name of our own picture that was
    asked about, None if it is another one. What goes wrong is told under "error".

    `viewer` holds the parts of the page: its markup, style and script.
    """
    run, kind = _checked(store, request)
    if run is None:
        return {"error": GONE}
    if run.view is None:
        return {"error": EARLY}
    if kind == "example":
        return {"example": example(run.ask.picture)}
    try:
        told = data(run)
    except ValueError as error:
        return {"error": str(error)}
    return {"html": page(told, **viewer)} if kind == "html" else {"json": told}


def data(run: Run) -> dict[str, Any]:
    """All that is needed to draw a finished run again. No file's place is in it.

    Raises:
        ValueError: the run is too large, or its picture is gone.
    """
    if run.nbytes > MAX_BYTES:
        raise ValueError(
            f"The attention of this run takes {run.nbytes >> 20} MB; at most "
            f"{MAX_BYTES >> 20} MB can be saved. Ask for a shorter answer."
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "view": {
            **run.view,
            "image": _carried(run.view["image"]),
            "more": [
                {**each, "image": _carried(each["image"])} for each in run.view["more"]
            ],
        },
        "maps": {key: packed(entry) for key, entry in run.entries.items()},
    }


def page(data: dict[str, Any], *, markup: str, style: str, script: str) -> str:
    """One HTML file that keeps the viewer alive, and asks nothing of any network."""
    view = data["view"]
    return Template((FOLDER / "export.html").read_text("utf-8")).substitute(
        prompt=html.escape(view["question"]),
        model=html.escape(view["model"]),
        palette=(FOLDER / "palette.css").read_text("utf-8"),
        style=style,
        markup=markup,
        # No text in it can end the element that it stands in.
        run=json.dumps(data).replace("<", "\\u003c"),
        script=script,
        shim=(FOLDER / "export.js").read_text("utf-8"),
    )


def example(picture: str) -> str | None:
    """What is sent here lies in Gradio's folder; all else are our own examples."""
    place = Path(picture).resolve()
    sent = place.is_relative_to(Path(get_upload_folder()).resolve())
    return None if sent else place.name


def _checked(store: Store, request: Any) -> tuple[Run | None, str]:
    # Anyone can call a server function with anything.
    if not isinstance(request, dict):
        return None, ""
    run, kind = request.get("run"), request.get("kind")
    if not isinstance(run, str) or kind not in ("json", "html", "example"):
        return None, ""
    return store.get(run), kind


def _carried(image: dict[str, Any]) -> dict[str, str]:
    return {"url": _data_url(image["path"])}


def _data_url(path: str) -> str:
    try:
        picture = Path(path).read_bytes()
    except OSError:
        raise ValueError(GONE) from None
    return "data:image/webp;base64," + base64.b64encode(picture).decode()
