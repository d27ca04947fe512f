"""The Probe tab: ask about a picture, and see where each word of the answer looked."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from vlm.ui import again, keep, more, pictures, prompts, view
from vlm.ui.again import Again, part, sent
from vlm.ui.album import files
from vlm.ui.asking import asked_for
from vlm.ui.controls import Picture, Question, question, sampling
from vlm.ui.examples import Example, Examples
from vlm.ui.explaining import explained
from vlm.ui.hint import hint
from vlm.ui.history import History
from vlm.ui.lint import lint
from vlm.ui.models import Models
from vlm.ui.refusing import refusal, refusing, refusing_all, warn
from vlm.ui.scope import Scope
from vlm.ui.store import Store
from vlm.ui.trying import tried
from vlm.ui.turn import Turn, over

KEPT_BYTES = 256 * 2**20
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
MODEL = {"concurrency_limit": 1, "concurrency_id": "model"}


class Probe(NamedTuple):
    """What was asked, and where the question and its answer stand."""

    store: Store
    picture: Picture
    prompt: gr.Textbox
    scope: Scope


def build(engines: Models, examples: list[Example], switched: Callable) -> Probe:
    """Lay out the tab in the Blocks that is open, and wire it.

    `switched` listens for another model, told whether no answer is shown (`idle`).
    Returns what the other tabs look into.
    """
    store = Store(KEPT_BYTES)
    begin = examples[0] if examples else Example(None, "caption en")

    with gr.Row(elem_id="probe"):
        with gr.Column(elem_id="ask", min_width=260):
            asked = question(begin, engines)
            how = sampling("sampling")
            shelf = _shelf(examples)
            history = History(elem_id="history")
            note = gr.HTML(_note(engines.about()), elem_id="note", js_on_load=None)
        opened = pictures.read(begin.picture) if begin.picture else None
        empty = view.empty(engines.about(), opened)
        scope = Scope(empty, store=store, elem_id="scope")

    _help(asked, note, engines, switched)
    ways = _Ways(engines, store, asked, how, scope)
    ways.wire(examples, shelf, history, switched)
    return Probe(store, asked.picture, asked.prompt, scope)


def _help(asked: Question, note: gr.HTML, engines: Models, switched: Callable) -> None:
    """The chips, the line under the prompt and the note follow what is chosen."""

    def told(prompt: str, model: str) -> tuple:
        task = prompts.of(prompt or "")
        return task.name if task else None, hint(prompt or "", engines.about(model))

    def rephrased(name: str, prompt: str) -> str:
        task = refusing(prompts.named, name)
        return prompts.rephrased(prompts.unhidden(prompt or ""), task)

    def repaired(prompt: str, model: str) -> str:
        typed = prompt or ""
        advice = lint(typed, engines.about(model))[:1]
        repair = next((each.repair for each in advice), None)
        return repair or prompts.unhidden(typed)

    def respoken(prompt: str, event: gr.EventData) -> str:
        code = str(part(sent(event), "code"))
        return refusing(prompts.respoken, prompts.unhidden(prompt or ""), code)

    _, _, task, prompt, line, model, *_ = asked
    quick = {"queue": False, **QUIET}
    gr.on(
        [prompt.change, model.change],
        told,
        [prompt, model],
        [task, line],
        trigger_mode="always_last",
        **quick,
    )
    switched(told, [prompt, model], [task, line], **quick)
    task.input(rephrased, [task, prompt], prompt, **quick)
    line.repair(repaired, [prompt, model], prompt, **quick)
    line.language(respoken, prompt, prompt, **quick)
    for changed in (model.change, switched):
        changed(lambda model: _note(engines.about(model)), model, note, **quick)


class _Ways:
    """All ways to ask: Run, an example, and what the viewer asks for by itself.

    The last ones are checked first and put into `wanted`; its change starts the model.
    So two listeners run it, and each way first says that the turn of what is running
    is over.
    """

    def __init__(
        self,
        engines: Models,
        store: Store,
        asked: Question,
        how: list,
        scope: Scope,
    ) -> None:
        self.engines, self.store = engines, store
        self.asked, self.how, self.scope = asked, how, scope
        self.wanted, self.turn = gr.State(), gr.State(Turn())

    def wire(
        self,
        examples: list[Example],
        shelf: Examples | None,
        history: History,
        switched: Callable,
    ) -> None:
        asked, scope, wanted, turn = self.asked, self.scope, self.wanted, self.turn
        model = asked.model
        controls = [asked.picture, asked.prompt, model, *self.how]
        pressed = partial(gr.on, [asked.run.click, asked.prompt.submit])
        self._over(pressed)
        streaming = {"trigger_mode": "multiple", **MODEL, **QUIET}
        run = pressed(self.probe, [turn, asked.more, *controls], scope, **streaming)
        follow = wanted.change(self.follow, [turn, wanted], scope, **streaming)
        self._over(scope.explain)
        why = scope.explain(self.explain, turn, scope, **streaming)
        self._over(scope.test)
        test = scope.test(self.test, turn, scope, **streaming)
        runs = [run, follow, why, test]
        self._end_told(*runs)
        quick = {"queue": False, **QUIET}
        self._over(asked.stop.click)
        asked.stop.click(_ended, turn, scope, **quick)
        # When a picture is removed, the first listener is still given the old one.
        seen = [asked.picture, asked.more, model]
        changed = self._over(partial(gr.on, [asked.picture.input, model.input]))
        removed = self._over(asked.more.drop)
        self._over(asked.more.bring)
        # Queued: without a queue the reader is not told why something is refused.
        come = asked.more.bring(self.add, seen[:2], seen[:2], **QUIET)
        moved = changed.then(self.move_up, seen[:2], seen[:2], **QUIET)
        for each in (moved.then, removed.then, come.success):
            each(self.preview, seen, scope, **QUIET)
        switched(self.renewed, seen, scope, **QUIET)

        self._wants(scope.branch, self.branch, None, [wanted])
        self._wants(scope.paint, self.paint, None, [wanted])
        self._wants(scope.mask, self.mask, None, [asked.prompt, wanted])
        self._wants(scope.region, self.region, controls, [asked.prompt, wanted])
        getattr(scope, "try")(self.another_try, None, scope, **quick)
        if shelf:
            pick = self.picking(examples)
            filled = [asked.picture, asked.prompt, self.how[-1], wanted]
            self._wants(shelf.pick, pick, [model, *self.how], filled)
            shelf.pick(more.none, None, asked.more, **quick)
        history.restore(more.none, None, asked.more, **quick)
        self._over(history.restore)
        brought = {"outputs": [*controls, wanted], **QUIET}
        self._end_told(keep.wire(history, examples, self.engines, **brought))

    def _wants(
        self, listener: Callable, wish: Callable, inputs: list | None, outputs: list
    ) -> None:
        self._over(listener)
        # Queued: without a queue nobody is told that the State has changed.
        self._end_told(listener(wish, inputs, outputs, **QUIET))

    def _over(self, listener: Callable) -> Any:
        # A listener of its own, and first: each one waits for those before it.
        return listener(**over(self.turn), queue=False, **QUIET)

    def _end_told(self, *asking: Any) -> None:
        # A run that is stopped or fails has no last value to say so.
        for each in asking:
            each.failure(_ended, self.turn, self.scope, queue=False, **QUIET)

    def probe(
        self, turn: Turn, further: Any, image: str, prompt: str, model: str, *how: Any
    ) -> Iterator[dict]:
        whom = self.engines.asked(model)
        warn(prompts.notice(prompt))
        others = refusing(more.places, further)
        ask = refusing(asked_for, whom, image, prompt, *how, more=others)
        yield from self.follow(turn, Again(ask))

    def follow(self, turn: Turn, wanted: Again | None) -> Iterator[dict]:
        if wanted is None:
            raise refusal(again.LOST)
        news = wanted.views(self.engines, self.store)
        yield from turn.take(refusing_all(news))

    def explain(self, turn: Turn, event: gr.EventData) -> Iterator[dict]:
        news = explained(self.engines, self.store, sent(event))
        for told in turn.take(refusing_all(news)):
            yield gr.update(explained=told)

    def test(self, turn: Turn, event: gr.EventData) -> Iterator[dict]:
        news = tried(self.engines, self.store, sent(event))
        for told in turn.take(refusing_all(news)):
            yield gr.update(tried=told)

    def add(
        self, path: str | None, further: Any, event: gr.EventData
    ) -> tuple[str, dict]:
        return refusing(more.added, path, further, sent(event))

    def move_up(self, path: str | None, further: Any) -> tuple:
        """Where the first picture is removed, the next one takes its place."""
        others = refusing(more.places, further)
        if path or not others:
            return gr.skip(), gr.skip()
        return others[0], {**more.none(), "files": files(others[1:])}

    def preview(self, path: str | None, further: Any, model: str) -> dict:
        paths = [path, *refusing(more.places, further)] if path else []
        image = refusing(pictures.read_all, paths) if paths else None
        return view.empty(self.engines.about(model), image)

    def renewed(
        self, path: str | None, further: Any, model: str, event: gr.EventData
    ) -> dict:
        """An answer that is shown, or is by then, stays: it says whose it is."""
        if not part(sent(event), "idle"):
            return gr.skip()
        return {**self.preview(path, further, model), "renewed": True}

    def branch(self, event: gr.EventData) -> Again:
        return refusing(again.branched, self.store, sent(event))

    def paint(self, event: gr.EventData) -> Again:
        return refusing(again.painted_over, self.store, sent(event))

    def mask(self, event: gr.EventData) -> tuple[str, Again]:
        data = sent(event)
        wanted = refusing(again.begun_by_mask, self.engines, self.store, data)
        return wanted.ask.prompt, wanted

    def region(
        self, event: gr.EventData, image: str, _prompt: str, model: str, *how: Any
    ) -> tuple[str, Again]:
        whom = self.engines.asked(model)
        wanted = refusing(again.in_region, self.store, sent(event), whom, image, *how)
        return wanted.ask.prompt, wanted

    def another_try(self, event: gr.EventData) -> dict:
        return refusing(again.another_try, self.store, sent(event))

    def picking(self, examples: list[Example]) -> Callable:
        def pick(event: gr.EventData, model: str, *how: Any) -> tuple:
            index = part(sent(event), "index")
            if type(index) is not int or index not in range(len(examples)):
                raise refusal("There is no such example. Choose another.")
            example = examples[index]
            picture = str(example.picture)
            *settings, _ = how
            whom = self.engines.asked(model)
            ask = refusing(asked_for, whom, picture, example.prompt, *settings, "")
            return picture, example.prompt, "", Again(ask)

        return pick


def _ended(turn: Turn) -> dict:
    """That a run was stopped or has failed, unless the next one has begun."""
    if turn.held:
        return gr.skip()
    now = time.time()
    ended = {"run": "", "done": True, "ended": True, "at": now}
    return gr.update(stopped_at=now, explained=ended, tried=ended)


def _note(about: dict) -> str:
    return html.escape(about["note"])


def _shelf(examples: list[Example]) -> Examples | None:
    if not examples:
        return None
    gr.HTML("<h2>Examples</h2>", elem_id="shelf-name", js_on_load=None)
    return Examples(Examples.shown(examples), elem_id="examples")
