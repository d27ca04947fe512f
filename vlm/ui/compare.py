"""The Compare tab: two questions side by side, and what differs in the answers.

Another prompt, picture, model or sampling; what is left empty in B is as in A. The
same is there for programs as `/compare`. Gradio reads its annotations as they stand,
so they are not postponed here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import gradio as gr

from vlm.ui import pictures, view
from vlm.ui.api import named, sent
from vlm.ui.asking import Ask, Settings, asked_for
from vlm.ui.comparing import SIDES, comparisons
from vlm.ui.controls import Picture, sampling
from vlm.ui.examples import Example
from vlm.ui.probe import MODEL, QUIET
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.replies import Probed, probed
from vlm.ui.scope import Scope
from vlm.ui.store import Store

FOLDER = Path(__file__).parent
GROUP = "compare"
KEPT_BYTES = 64 * 2**20  # of maps, while a program's comparison is made
GREEDY = (*astuple(Settings()), "")


def build(engines: dict[str, Any], store: Store, examples: list[Example]) -> None:
    """Lay out the tab in the Blocks that is open, and wire it; add `/compare`."""
    # First, or a listener's function could take its name.
    gr.api(endpoint(engines), **MODEL)
    known = {each.picture.name: str(each.picture) for each in examples if each.picture}
    presets = [each for each in PRESETS if {*each.pictures} <= {*known, None}]
    begin = presets[0] if presets else Preset("", (None, None), ("caption en", ""))
    opened = pictures.read(known[begin.pictures[0]]) if presets else None
    first = view.empty(next(iter(engines.values())), opened)
    with gr.Column(elem_id="compare"):
        with gr.Row(elem_id="questions"):
            questions = [
                _question(side, list(engines), known.get(picture), prompt)
                for side, picture, prompt in zip(SIDES, begin.pictures, begin.prompts)
            ]
        with gr.Row(elem_id="compare-go"):
            run = gr.Button("Compare", variant="primary", elem_id="compare-run")
            stop = gr.Button("Stop", elem_id="compare-stop")
            buttons = [gr.Button(each.name, elem_classes="preset") for each in presets]
        with gr.Row(elem_id="scopes"):
            a, b = (_viewer(side, first, store) for side in SIDES)
        panel = Difference(group=GROUP, elem_id="difference")

    asking = _Asking(engines, store, a, b, panel)
    run_it = {
        "fn": asking.compare,
        "inputs": [each for one in questions for each in (one.model, *one.preset)],
        "outputs": [a, b, panel],
        **MODEL,
        **QUIET,
    }
    quick = {"queue": False, **QUIET}
    filled = [
        button.click(
            lambda preset=preset: preset.values(known),
            None,
            [each for one in questions for each in one.preset],
            **quick,
        )
        for button, preset in zip(buttons, presets)
    ]
    enters = [each.prompt.submit for each in questions]
    runs = [
        gr.on([run.click, *enters], trigger_mode="once", **run_it),
        *(each.then(trigger_mode="multiple", **run_it) for each in filled),
    ]
    stop.click(asking.end, None, [a, b, panel], cancels=runs, **quick)
    for button, own in zip(buttons, runs[1:]):
        # Its own first: the others are ended one by one, and it has begun meanwhile.
        button.click(None, cancels=[own, *runs], **quick)


class _Asking:
    """What the viewers and the panel are given while a comparison goes on."""

    def __init__(
        self,
        engines: dict[str, Any],
        store: Store,
        a: Scope,
        b: Scope,
        panel: gr.HTML,
    ) -> None:
        self.engines, self.store = engines, store
        self.shown = {"a": a, "b": b, "difference": panel}

    def compare(self, *values: Any) -> Iterator[dict]:
        half = len(values) // 2
        asks = refusing(_asks, values[:half], values[half:])
        other = view.empty(
            self.engines[asks[1].model], refusing(pictures.read, asks[1].picture)
        )
        yield self._told(b=other, difference={"phase": "running"})
        try:
            for news in refusing_all(comparisons(self.engines, self.store, asks)):
                yield self._told(**news)
        except Exception:
            yield self.end()
            raise

    def end(self) -> dict:
        # What is stopped or fails has no last value to say so.
        stopped = gr.update(stopped_at=time.time())
        return self._told(a=stopped, b=stopped, difference={"phase": "stopped"})

    def _told(self, **news: Any) -> dict:
        return {self.shown[name]: value for name, value in news.items()}


class Compared(TypedDict):
    a: Probed
    b: Probed
    difference: dict[str, Any]


def endpoint(engines: dict[str, Any]) -> Callable[..., Compared]:
    """What `/compare` calls."""
    store = Store(KEPT_BYTES)

    def compare(
        image_a: gr.FileData,
        prompt_a: str,
        image_b: gr.FileData | None = None,
        prompt_b: str = "",
        model_a: str = "",
        model_b: str = "",
    ) -> Compared:
        """Ask two questions, greedily, and tell what differs between the answers.

        What is left out of the second question is as in the first. In the difference
        `words` has those of both answers in one row, each with its side, and `boxes`
        the pairs of one label with their overlap (IoU) and what only one side has.
        `likelihood` has for each answer the probability that each side gives to its
        tokens, and the sum and the mean of their natural logarithms; `sentences` says
        it in words. `attention` has bits, nested as [layers][tokens]: the
        Jensen-Shannon divergence of the attention on the image between tokens in the
        same place of both answers, null where one hardly looked. `retokenised` tells
        that the vocabularies differ, so that texts were cut into tokens anew.

        Parameters:
            image_a: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt_a: such as "caption en" or "detect cat ; dog"
            image_b: the other picture, if there is another
            prompt_b: the other prompt, if there is another
            model_a: its name, if several are loaded; the first one if left out
            model_b: the name of the other model, if there is another

        Returns:
            both answers as /probe gives them, and the difference
        """

        def asks() -> tuple[Ask, Ask]:
            model = named(engines, model_a)
            other = named(engines, model_b or model_a)
            return _asks(
                (model, sent(image_a), prompt_a, *GREEDY),
                (other, sent(image_b), prompt_b, *GREEDY),
            )

        last: dict[str, Any] = {}
        for news in refusing_all(comparisons(engines, store, refusing(asks))):
            last |= news
        del last["difference"]["phase"]
        return {
            "a": probed(last["a"]),
            "b": probed(last["b"]),
            "difference": last["difference"],
        }

    return compare


class Difference(gr.HTML):
    """Shows a difference (see `vlm.ui.comparing`), or its `phase` before there is one.

    As in the viewer, the template is static and text is never markup. A cell of its
    table that is chosen is shown in the viewers of its `group`.
    """

    def __init__(
        self, value: dict | None = None, *, group: str, **options: Any
    ) -> None:
        super().__init__(
            value,
            html_template=(FOLDER / "difference.html").read_text("utf-8"),
            css_template=(FOLDER / "difference.css").read_text("utf-8"),
            js_on_load=(FOLDER / "difference.js").read_text("utf-8"),
            apply_default_css=False,
            group=group,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


@dataclass(frozen=True)
class Preset:
    """A comparison to begin with, of pictures that are among the examples."""

    name: str
    pictures: tuple[str | None, str | None]
    prompts: tuple[str, str]
    settings: tuple[Settings, Settings] = (Settings(), Settings())

    def values(self, known: dict[str, str]) -> list:
        """Of both questions' controls; `known` has the pictures' files by name."""
        return [
            value
            for name, prompt, how in zip(self.pictures, self.prompts, self.settings)
            for value in (known.get(name), prompt, *astuple(how), "")
        ]


PRESETS = (
    Preset("Two questions", ("meadow.webp", None), ("detect cat", "detect dog")),
    Preset("Two pictures", ("harbour.webp", "penguins.webp"), ("caption en", "")),
    Preset(
        "Greedy and drawn",
        ("meadow.webp", None),
        ("describe en", ""),
        (Settings(), Settings(style="Temperature", temperature=1.5, seed=3)),
    ),
)


class Question(NamedTuple):
    """The controls of one side; `preset` are picture, prompt, and how to ask."""

    model: gr.Dropdown
    prompt: gr.Textbox
    preset: list


def _asks(a: Sequence[Any], b: Sequence[Any]) -> tuple[Ask, Ask]:
    """Both questions, each as model, picture, prompt and how to ask it.

    B's picture and prompt are A's where they are empty.
    """
    picture, prompt = b[1] or a[1], b[2] if (b[2] or "").strip() else a[2]
    return asked_for(*a), asked_for(b[0], picture, prompt, *b[3:])


def _question(
    side: str, names: list[str], picture: str | None, prompt: str
) -> Question:
    name, first = side.upper(), side == "a"
    with gr.Column(elem_id=f"ask-{side}", elem_classes="question", min_width=260):
        gr.HTML(f"<h2>Question {name}</h2>", js_on_load=None)
        image = Picture(
            picture,
            type="filepath",
            sources=["upload", "clipboard"],
            label=f"Picture {name}",
            show_label=False,
            buttons=[],
            height=150,
            alt_text=f"The picture of question {name}",
            placeholder="Drop a picture here, or click" if first else "Same as A",
            elem_id=f"picture-{side}",
            elem_classes="picture",
        )
        words = gr.Textbox(
            prompt,
            label=f"Prompt {name}",
            show_label=False,
            container=False,
            lines=1,
            max_lines=4,
            placeholder="detect cat" if first else "Same as A",
            elem_id=f"prompt-{side}",
            elem_classes="prompt",
        )
        model = gr.Dropdown(
            names,
            value=names[0],
            label=f"Model {name}",
            show_label=False,
            container=False,
            visible=len(names) > 1,
            elem_id=f"model-{side}",
        )
        how = sampling(f"sampling-{side}")
    return Question(model, words, [image, words, *how])


def _viewer(side: str, first: view.View, store: Store) -> Scope:
    with gr.Column(elem_classes="viewer", min_width=0):
        gr.HTML(f"<h2>Answer {side.upper()}</h2>", js_on_load=None)
        return Scope(first, store=store, group=GROUP, elem_id=f"scope-{side}")
