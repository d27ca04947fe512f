"""The Probe tab: ask about a picture, and see where each word of the answer looked."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

import vlm
from vlm.ui import pictures, prompts, view
from vlm.ui.examples import Example, Examples
from vlm.ui.scope import Scope
from vlm.ui.store import Entry, Store, pack

KEPT_BYTES = 256 * 2**20
MAX_TOKENS = 512
PAUSE = 0.08  # seconds between two views; a slow browser could not follow more
STYLES = ("Greedy", "Temperature", "Top-p")


def build(engine: Any, examples: list[Example]) -> None:
    """Lay out the tab in the Blocks that is open, and wire it."""
    store = Store(KEPT_BYTES)
    about = engine.describe()
    begin = examples[0] if examples else Example(None, "caption en")

    with gr.Row(elem_id="probe"):
        with gr.Column(elem_id="ask", min_width=260):
            picture, task, prompt, hint, run, stop = _question(begin, about)
            sampling = _sampling()
            shelf = _shelf(examples)
            if about["note"]:
                gr.HTML(html.escape(about["note"]), elem_id="note", js_on_load=None)
        opened = pictures.read(begin.picture) if begin.picture else None
        first = view.empty(engine, opened)
        scope = Scope(first, read=store.read, elem_id="scope")

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
        return view.empty(engine, _refusing(pictures.read, path) if path else None)

    def probe(
        image: str,
        prompt: str,
        style: str,
        temperature: float,
        top_p: float,
        seed: int,
        max_tokens: int,
    ) -> Iterator[dict]:
        """Ask about a picture; streams the answer with its tokens and objects."""
        if not image:
            raise _refusal("Choose a picture first: drop, paste or photograph one.")
        opened = _refusing(pictures.read, image)
        question = _refusing(prompts.cleaned, prompt)
        sampler = _refusing(_sampler, style, temperature, top_p, seed)
        length = _refusing(_whole, max_tokens, "Maximum tokens", 1, MAX_TOKENS)
        try:
            yield from _views(engine, store, opened, question, sampler, length)
        except ValueError as error:
            raise _refusal(str(error)) from error

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    running = gr.on(
        [run.click, prompt.submit],
        probe,
        [picture, prompt, *sampling],
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


def _sampling() -> list:
    with gr.Accordion("Sampling and length", open=False, elem_id="sampling"):
        return [
            gr.Radio(STYLES, value=STYLES[0], label="Next token", elem_classes="pills"),
            gr.Slider(0.1, 2, 1, step=0.1, label="Temperature", buttons=[]),
            gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", buttons=[]),
            gr.Number(0, precision=0, label="Seed"),
            gr.Slider(1, MAX_TOKENS, 256, step=1, label="Maximum tokens", buttons=[]),
        ]


def _shelf(examples: list[Example]) -> Examples | None:
    if not examples:
        return None
    gr.HTML("<h2>Examples</h2>", elem_id="shelf-name", js_on_load=None)
    return Examples(Examples.shown(examples), elem_id="examples")


def _views(
    engine: Any,
    store: Store,
    image: Image.Image,
    prompt: str,
    sampler: Any,
    length: int,
) -> Iterator[dict]:
    """A view at the start, views as tokens come, and one when all is done."""
    run, trace, steps = store.open(), vlm.Trace(), []
    now = {
        **view.empty(engine, image),
        "run": run,
        "prompt": view.prompt_tokens(engine, prompt),
    }
    yield now

    began = shown = time.perf_counter()
    stream = engine.stream(image, prompt, sampler=sampler, max_tokens=length, tap=trace)
    with contextlib.closing(stream):
        for step in stream:
            clock = time.perf_counter()
            steps.append(step)
            store.add(run, f"a{step.index}", _entry(trace, step))
            found = vlm.objects(steps, image.size, masks=engine.masks)
            now = {
                **now,
                "text": now["text"] + step.text,
                "tokens": [*now["tokens"], view.token(engine, step)],
                "objects": view.objects(found),
                "timing": _timing(now["timing"], clock - began, len(steps)),
            }
            if len(steps) == 1 or clock - shown >= PAUSE:
                yield now
                shown = time.perf_counter()
            if len(steps) == 1:
                _keep_prompt(store, run, trace, len(now["prompt"]))
        if not steps:
            _keep_prompt(store, run, trace, len(now["prompt"]))
    yield {**now, "done": True, "cut": len(steps) == length}


def _entry(trace: Any, step: Any) -> Entry:
    attention = vlm.probes.image_attention(trace, step.index).numpy()
    shares = vlm.probes.attention_shares(trace, step.index).numpy()
    return Entry(pack(attention, shares), view.candidates(step))


def _keep_prompt(store: Store, run: str, trace: Any, count: int) -> None:
    # After the first token, so that it does not make the first token late.
    for position in range(1, count + 1):  # 0 is <bos>
        attention = vlm.probes.prompt_attention(trace, position).numpy()
        shares = vlm.probes.prompt_shares(trace, position).numpy()
        store.add(run, f"p{position}", Entry(pack(attention, shares)))


def _timing(before: dict | None, seconds: float, count: int) -> dict:
    first = before["first"] if before else round(seconds, 3)
    rate = (count - 1) / (seconds - first) if count > 1 and seconds > first else None
    return {"first": first, "rate": rate and round(rate, 1)}


def _sampler(style: str, temperature: float, top_p: float, seed: int) -> Any:
    if style == "Greedy":
        return vlm.greedy
    seed = _whole(seed, "Seed", 0, 2**31 - 1)
    if style == "Temperature":
        return vlm.Temperature(float(temperature), seed=seed)
    return vlm.TopP(float(top_p), float(temperature), seed=seed)


def _whole(number: Any, name: str, low: int, high: int) -> int:
    if not isinstance(number, (int, float)) or not low <= number <= high:
        raise ValueError(f"{name} is {number}; give a number from {low} to {high}.")
    return int(number)


def _refusing(function: Any, *arguments: Any) -> Any:
    """What the function returns; its ValueError becomes a message on the page."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise _refusal(str(error)) from error


def _refusal(message: str) -> gr.Error:
    return gr.Error(message, print_exception=False)
