"""The Compare tab: two questions side by side, and what differs in the answers.

Another prompt, picture, model or sampling; what is left empty in B is as in A. The
same is there for programs as `/compare`. Gradio reads its annotations as they stand,
so they are not postponed here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

from vlm.ui import pictures, view
from vlm.ui.again import LOST
from vlm.ui.asking import Ask, Settings
from vlm.ui.callers import named, sent
from vlm.ui.comparing import SIDES, comparisons
from vlm.ui.examples import Example
from vlm.ui.models import Models
from vlm.ui.probe import MODEL, QUIET
from vlm.ui.questions import PRESETS, Preset, Question, Wanted, asks_of, question
from vlm.ui.refusing import refusal, refusing, refusing_all
from vlm.ui.replies import Probed, probed
from vlm.ui.scope import Scope
from vlm.ui.store import Store
from vlm.ui.turn import Turn, over
from vlm.ui.widget import Widget

FOLDER = Path(__file__).parent
GROUP = "compare"
KEPT_BYTES = 64 * 2**20  # of maps, while a program's comparison is made
GREEDY = (*astuple(Settings()), "")


def build(engines: Models, store: Store, examples: list[Example]) -> None:
    """Lay out the tab in the Blocks that is open, and wire it; add `/compare`."""
    # First, or a listener's function could take its name.
    gr.api(endpoint(engines), **MODEL)
    known = {each.picture.name: str(each.picture) for each in examples if each.picture}
    presets = [each for each in PRESETS if {*each.pictures} <= {*known, None}]
    begin = presets[0] if presets else Preset("", (None, None), ("caption en", ""))
    opened = pictures.read(known[begin.pictures[0]]) if presets else None
    first = view.empty(engines.about(), opened)
    with gr.Column(elem_id="compare"):
        with gr.Row(elem_id="questions"):
            questions = [
                question(side, engines.choices, known.get(picture), prompt)
                for side, picture, prompt in zip(SIDES, begin.pictures, begin.prompts)
            ]
        with gr.Row(elem_id="compare-go"):
            run = gr.Button("Compare", variant="primary", elem_id="compare-run")
            stop = gr.Button("Stop", elem_id="compare-stop")
            buttons = [gr.Button(each.name, elem_classes="preset") for each in presets]
        with gr.Row(elem_id="scopes"):
            a, b = (_viewer(side, first, store) for side in SIDES)
        panel = Difference(group=GROUP, elem_id="difference")

    values = [each for one in questions for each in (one.model, *one.preset)]
    asking = _Asking(engines, store, a, b, panel)
    asking.wire(run, stop, [each.prompt for each in questions], values)
    for button, preset in zip(buttons, presets):
        asking.wire_preset(button, preset, known, questions)


class _Asking:
    """Both ways to compare, and what the viewers and the panel are given meanwhile.

    As on the Probe tab: what a preset asks is put into `wanted`, whose change starts
    the models, and each way first says that the turn of what is running is over.
    """

    def __init__(
        self,
        engines: Models,
        store: Store,
        a: Scope,
        b: Scope,
        panel: gr.HTML,
    ) -> None:
        self.engines, self.store = engines, store
        self.shown = {"a": a, "b": b, "difference": panel}
        self.wanted, self.turn = gr.State(), gr.State(Turn())

    def wire(
        self, run: gr.Button, stop: gr.Button, prompts: list[gr.Textbox], values: list
    ) -> None:
        pressed = partial(gr.on, [run.click, *(each.submit for each in prompts)])
        self._over(pressed)
        wanted, turn, shown = self.wanted, self.turn, [*self.shown.values()]
        streaming = {"trigger_mode": "multiple", **MODEL, **QUIET}
        runs = [
            pressed(self.compare, [turn, *values], shown, **streaming),
            wanted.change(self.follow, [turn, wanted], shown, **streaming),
        ]
        self._end_told(*runs)
        self._over(stop.click)
        stop.click(self.ended, turn, shown, queue=False, **QUIET)

    def wire_preset(
        self,
        button: gr.Button,
        preset: Preset,
        known: dict[str, str],
        questions: list[Question],
    ) -> None:
        def pick(*models: str) -> tuple:
            sides = preset.sides(known)
            values = [(model, *side) for model, side in zip(models, sides)]
            asks = self._asks(*values)
            return *sides[0], *sides[1], Wanted(asks)

        filled = [each for one in questions for each in one.preset]
        models = [each.model for each in questions]
        self._over(button.click)
        # Queued: without a queue nobody is told that the State has changed.
        self._end_told(button.click(pick, models, [*filled, self.wanted], **QUIET))

    def _over(self, listener: Callable) -> None:
        # A listener of its own, and first: each one waits for those before it.
        listener(**over(self.turn), queue=False, **QUIET)

    def _end_told(self, *asking: Any) -> None:
        # A comparison that is stopped or fails has no last value to say so.
        shown = [*self.shown.values()]
        for each in asking:
            each.failure(self.ended, self.turn, shown, queue=False, **QUIET)

    def compare(self, turn: Turn, *values: Any) -> Iterator[dict]:
        half = len(values) // 2
        asks = self._asks(values[:half], values[half:])
        yield from self.follow(turn, Wanted(asks))

    def follow(self, turn: Turn, wanted: Wanted | None) -> Iterator[dict]:
        if wanted is None:
            raise refusal(LOST)
        yield from turn.take(refusing_all(self._news(wanted.asks)))

    def _asks(self, *sides: Sequence[Any]) -> tuple[Ask, Ask]:
        whom = (self.engines.asked(side[0]) for side in sides)
        return refusing(asks_of, *((one, *side[1:]) for one, side in zip(whom, sides)))

    def _news(self, asks: tuple[Ask, Ask]) -> Iterator[dict]:
        b = asks[1]
        other = view.empty(self.engines.about(b.model), pictures.read(b.picture))
        yield self._told(b=other, difference={"phase": "running"})
        for news in comparisons(self.engines, self.store, asks):
            yield self._told(**news)

    def ended(self, turn: Turn) -> dict:
        """That a comparison was stopped or has failed, unless the next has begun."""
        if turn.held:
            return gr.skip()
        stopped = gr.update(stopped_at=time.time())
        return self._told(a=stopped, b=stopped, difference={"phase": "stopped"})

    def _told(self, **news: Any) -> dict:
        return {self.shown[name]: value for name, value in news.items()}


class Compared(TypedDict):
    a: Probed
    b: Probed
    difference: dict[str, Any]


def endpoint(engines: Models) -> Callable[..., Compared]:
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
            if not isinstance(prompt_b, str):
                raise ValueError("A prompt is given as text.")
            model = named(engines, model_a)
            other = named(engines, model_b or model_a)
            return asks_of(
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


class Difference(Widget):
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


def _viewer(side: str, first: view.View, store: Store) -> Scope:
    with gr.Column(elem_classes="viewer", min_width=0):
        gr.HTML(f"<h2>Answer {side.upper()}</h2>", js_on_load=None)
        return Scope(first, store=store, group=GROUP, elem_id=f"scope-{side}")
