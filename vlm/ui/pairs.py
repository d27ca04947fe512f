"""The Pairs tab: which text belongs to which picture, as a SigLIP or CLIP sees it.

The matrix of pictures x texts is shown in two ways, with a sigmoid and with a softmax.
The same is there for programs as `/pairs`. Gradio reads its annotations as they stand,
so they are not postponed here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import gradio as gr

from vlm.ui import pictures
from vlm.ui.album import Album, chosen, files
from vlm.ui.examples import Example
from vlm.ui.matching import (
    MAX_PICTURES,
    drawn,
    lines_of,
    matched,
    pictures_of,
    texts_of,
)
from vlm.ui.probe import MODEL, QUIET
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.replies import numbers
from vlm.ui.scope import FOLDER, joined
from vlm.ui.widget import Widget

Loading = Callable[[], Any]  # gives a vlm.Pair, and the same one each time

# Two texts fit the bananas, and none the kitchen.
BEGIN = ("penguins.webp", "bananas.webp", "kitchen.webp")
TEXTS = (
    "two penguins and a fish",
    "two bananas",
    "three bananas",
    "two boats and a fish",
    "a house, a car and a tree",
)
SCRIPTS = ("nodes.js", "ramp.js", "matrix.js", "matrix_cell.js")
ASKED = "() => document.dispatchEvent(new Event('paliscope:match'))"
NONE = """<div class="no-pair"><h2>No pair is loaded</h2>
<p>This tab needs the image tower and the text tower of a SigLIP or CLIP, which are not
in a PaliGemma. Start the page with one, from a folder or by its name on the Hub:</p>
<p><code>python app.py --pair google/siglip-base-patch16-224</code></p></div>"""


def build(pair: Loading | None, examples: list[Example]) -> None:
    """Lay out the tab in the Blocks that is open, and wire it; add `/pairs`.

    The pair is loaded when it is first asked. Without one the tab says what to do.
    """
    if pair is None:
        gr.HTML(NONE, elem_id="no-pair", js_on_load=None)
        return
    # First, or a listener's function could take its name.
    gr.api(endpoint(pair), **MODEL)
    shelf = {each.picture.name: str(each.picture) for each in examples if each.picture}
    begin = [shelf[name] for name in BEGIN if name in shelf]
    with gr.Column(elem_id="pairs"):
        with gr.Row(elem_id="pairs-asked"):
            album = Album(
                {"chosen": files(begin), "shelf": files(shelf.values())},
                most=MAX_PICTURES,
                elem_id="album",
            )
            with gr.Column(elem_id="pairs-texts", min_width=240):
                texts = gr.Textbox(
                    "\n".join(TEXTS),
                    label="Texts, one on each line",
                    lines=5,
                    max_lines=12,
                    elem_id="texts",
                )
                run = gr.Button("Match", variant="primary", elem_id="pairs-run")
        matrix = Matrix(_shape("idle", begin, TEXTS), elem_id="matrix")

    def asked(album: Any, text: str | None) -> Iterator[dict]:
        yield from match(pair, album, text)

    def ended() -> dict:
        # A match that fails has no last value to say so.
        return gr.update(stopped_at=time.time())

    asking = {"trigger_mode": "always_last", **MODEL, **QUIET}
    given = [asked, [album, texts], matrix]
    pressed = [run.click, texts.submit]
    gr.on(pressed, None, js=ASKED, **QUIET)  # the answer may have to wait its turn
    runs = [
        gr.on(pressed, *given, **asking),
        matrix.begin(*given, **asking),
    ]
    for each in runs:
        each.failure(ended, None, matrix, queue=False, **QUIET)


def match(pair: Loading, album: Any, text: str | None) -> Iterator[dict]:
    """What the matrix shows: first its rows and columns, then what stands in them."""
    yield from refusing_all(_match(pair, album, text))


def _match(pair: Loading, album: Any, text: str | None) -> Iterator[dict]:
    images = pictures_of(chosen(album))
    texts = texts_of(lines_of(text))
    paths = [pictures.shown(image)["path"] for image in images]
    value = _shape("running", paths, texts)
    yield value
    yield value | {"phase": "done"} | drawn(matched(pair(), images, texts))


def _shape(phase: str, paths: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """A matrix without figures."""
    return {"phase": phase, "pictures": files(paths), "texts": [*texts]}


class Matched(TypedDict):
    cosines: list[list[float]]
    logits: list[list[float]]
    sigmoid: list[list[float]]
    softmax: list[list[float]]
    scale: float
    bias: float | None


def endpoint(pair: Loading) -> Callable[..., Matched]:
    """What `/pairs` calls."""

    def pairs(images: list[gr.FileData], texts: list[str]) -> Matched:
        """Tell how well each text fits each picture, as a SigLIP or CLIP sees it.

        All are nested as [images][texts]. A cosine is that of the angle between the
        vectors of a picture and of a text; a logit is scale x cosine + bias. `sigmoid`
        is the probability that a text and a picture belong together, each cell by
        itself: none may fit, or several. In `softmax` the texts of a picture compete:
        each row sums to 1, so it always names a winner, even if nothing fits. A CLIP
        was trained with the softmax only and has no bias (null): there `sigmoid` is
        that of scale x cosine, and no probability.

        Parameters:
            images: up to 8 pictures: PNG, JPEG, WebP, GIF, BMP or TIFF
            texts: up to 12 texts of up to 200 characters, such as "two cats"

        Returns:
            cosines, logits, sigmoid, softmax, and the pair's scale and bias
        """

        def answer() -> Matched:
            found = matched(pair(), pictures_of(images), texts_of(texts))
            names = ("cosines", "logits", "sigmoid", "softmax")
            tables = {name: numbers(getattr(found, name)) for name in names}
            return {**tables, "scale": found.scale, "bias": found.bias}

        return refusing(answer)

    return pairs


class Matrix(Widget):
    """Shows what `match` yields; a static template, in which only text is set.

    It is told but the logits: sigmoid, softmax and what becomes of them without some
    of the texts is the script's. Tells `begin` when it is first seen. An answer that
    failed has no last value, so its end is told by a new `stopped_at`.
    """

    def __init__(
        self, value: dict | None = None, *, stopped_at: float = 0, **options: Any
    ) -> None:
        super().__init__(
            value,
            stopped_at=stopped_at,
            html_template=(FOLDER / "matrix.html").read_text("utf-8"),
            css_template=(FOLDER / "matrix.css").read_text("utf-8"),
            js_on_load=joined(SCRIPTS),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}
