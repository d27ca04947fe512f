"""The Probe tab: ask about a picture, and see where each word of the answer looked."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlm.ui import pictures, prompts, view
from vlm.ui.asking import MAX_TOKENS, MAX_TRIES, STYLES, asked_for, views
from vlm.ui.examples import Example, Examples
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.scope import Scope
from vlm.ui.store import Store

KEPT_BYTES = 256 * 2**20


def build(engines: dict[str, Any], examples: list[Example]) -> Store:
    """Lay out the tab in the Blocks that is open, and wire it.

    Returns the store of what was asked, which the other tabs look into.
    """
    store = Store(KEPT_BYTES)
    names = list(engines)
    engine = engines[names[0]]
    about = engine.describe()
    begin = examples[0] if examples else Example(None, "caption en")

    with gr.Row(elem_id="probe"):
        with gr.Column(elem_id="ask", min_width=260):
            picture, task, prompt, hint, run, stop = _question(begin, about)
            how = _how()
            shelf = _shelf(examples)
            if about["note"]:
                gr.HTML(html.escape(about["note"]), elem_id="note", js_on_load=None)
        opened = pictures.read(begin.picture) if begin.picture else None
        first = view.empty(engine, opened)
        scope = Scope(first, store=store, elem_id="scope")

    def picked(event: gr.EventData) -> tuple:
        example = examples[event.index]
        task = prompts.of(example.prompt)
        advice = prompts.advice(task, about["tasks"])
        name = task.name if task else None
        return str(example.picture), example.prompt, name, advice

    def asked(name: str, prompt: str) -> tuple[str, str]:
        task = prompts.named(name)
        advice = prompts.advice(task, about["tasks"])
        return prompts.rephrased(prompt or "", task), advice

    def preview(path: str | None) -> dict:
        return view.empty(engine, refusing(pictures.read, path) if path else None)

    def probe(image: str, prompt: str, *how: Any) -> Iterator[dict]:
        """Ask about a picture; streams the answer with its tokens and objects."""
        ask = refusing(asked_for, names[0], image, prompt, *how)
        yield from refusing_all(views(engine, store, ask))

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    running = gr.on(
        [run.click, prompt.submit],
        probe,
        [picture, prompt, *how],
        scope,
        api_name="probe",
        show_progress="hidden",
        concurrency_limit=1,
        concurrency_id="model",
        trigger_mode="once",
    )
    # A run that is stopped or fails has no last value to say so.
    ended = {"fn": lambda: gr.update(stopped_at=time.time()), "outputs": scope}
    stop.click(**ended, cancels=running, queue=False, **quiet)
    running.failure(**ended, queue=False, **quiet)
    picture.change(preview, picture, scope, cancels=running, **quiet)
    task.input(asked, [task, prompt], [prompt, hint], queue=False, **quiet)
    if shelf:
        shelf.pick(picked, None, [picture, prompt, task, hint], **quiet)
    return store


class Picture(gr.Image):
    """Gives the file as it was sent; gr.Image would decode it before any check."""

    is_template = True  # the browser shows it as a gr.Image

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


def _question(begin: Example, about: dict) -> tuple:
    picture = Picture(
        str(begin.picture) if begin.picture else None,
        type="filepath",
        sources=["upload", "clipboard", "webcam"],
        webcam_options=gr.WebcamOptions(mirror=False),
        label="Picture",
        show_label=False,
        buttons=[],
        height=224,
        alt_text="The picture that is asked about",
        placeholder="Drop a picture here, or click",
        elem_id="picture",
    )
    task = prompts.of(begin.prompt)
    chips = gr.Radio(
        [each.name for each in prompts.TASKS],
        value=task.name if task else None,
        label="Task",
        show_label=False,
        container=False,
        elem_id="task",
        elem_classes="pills",
    )
    prompt = gr.Textbox(
        begin.prompt,
        label="Prompt",
        show_label=False,
        container=False,
        lines=1,
        max_lines=4,
        placeholder="detect cat ; dog",
        elem_id="prompt",
    )
    advice = prompts.advice(task, about["tasks"])
    hint = gr.HTML(advice, elem_id="hint", js_on_load=None)
    with gr.Row(elem_id="go"):
        run = gr.Button("Run", variant="primary", elem_id="run")
        stop = gr.Button("Stop", elem_id="stop")
    return picture, chips, prompt, hint, run, stop


def _how() -> list:
    """The fields of `Settings` in their order, and then the answer's start."""
    with gr.Accordion("Sampling and length", open=False, elem_id="sampling"):
        return [
            gr.Radio(STYLES, value=STYLES[0], label="Next token", elem_classes="pills"),
            gr.Slider(0.1, 2, 1, step=0.1, label="Temperature", buttons=[]),
            gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", buttons=[]),
            gr.Slider(1, 200, 40, step=1, label="Top-k", buttons=[]),
            gr.Number(0, precision=0, label="Seed"),
            gr.Slider(1, MAX_TRIES, 1, step=1, label="Best of", buttons=[]),
            gr.Slider(1, MAX_TOKENS, 256, step=1, label="Maximum tokens", buttons=[]),
            gr.Textbox("", label="The answer begins with", max_length=512),
        ]


def _shelf(examples: list[Example]) -> Examples | None:
    if not examples:
        return None
    gr.HTML("<h2>Examples</h2>", elem_id="shelf-name", js_on_load=None)
    return Examples(Examples.shown(examples), elem_id="examples")
