"""The controls of a question: the picture, the prompt, and how tokens are drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from vlm.ui import prompts
from vlm.ui.asking import MAX_TOKENS, MAX_TRIES, STYLES
from vlm.ui.examples import Example
from vlm.ui.hint import Hint, hint
from vlm.ui.models import Models
from vlm.ui.more import More


class Picture(gr.Image):
    """Gives the file as it was sent; gr.Image would decode it before any check."""

    is_template = True  # the browser shows it as a gr.Image

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class Question(NamedTuple):
    picture: Picture
    more: More
    task: gr.Radio
    prompt: gr.Textbox
    hint: Hint
    model: gr.Dropdown
    run: gr.Button
    stop: gr.Button


def question(begin: Example, models: Models) -> Question:
    """Lay them out."""
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
    more = More(elem_id="more")
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
    line = Hint(hint(begin.prompt, models.about()), elem_id="hint")
    names = list(models.choices)
    model = gr.Dropdown(
        names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model"
    )
    with gr.Row(elem_id="go"):
        run = gr.Button("Run", variant="primary", elem_id="run")
        stop = gr.Button("Stop", elem_id="stop")
    return Question(picture, more, chips, prompt, line, model, run, stop)


def sampling(elem_id: str) -> list:
    """The fields of `Settings` in their order, and then the answer's start.

    Only what matters for the chosen style is shown, and the label tells the choice.
    """
    begun = _chosen(STYLES[0], 1, 0.9, 40, 0, 1, 256)
    with gr.Accordion(begun, open=False, elem_id=elem_id) as room:
        style = gr.Radio(
            STYLES, value=STYLES[0], label="Next token", elem_classes="pills"
        )
        drawn = [
            gr.Slider(0.1, 2, 1, step=0.1, label="Temperature", buttons=[]),
            gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", buttons=[]),
            gr.Slider(1, 200, 40, step=1, label="Top-k", buttons=[]),
            gr.Number(0, precision=0, minimum=0, label="Seed"),
            gr.Slider(1, MAX_TRIES, 1, step=1, label="Best of", buttons=[]),
        ]
        for control, seen in zip(drawn, _shown(STYLES[0])):
            control.visible = seen
        most = gr.Slider(1, MAX_TOKENS, 256, step=1, label="Maximum tokens", buttons=[])
        start = gr.Textbox("", label="The answer begins with", max_length=512)
    settings = [style, *drawn, most]
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    style.change(
        lambda style: [gr.update(visible=seen) for seen in _shown(style)],
        style,
        drawn,
        **quiet,
    )
    gr.on(
        [control.change for control in settings],
        lambda *values: gr.update(label=_chosen(*values)),
        settings,
        room,
        trigger_mode="always_last",
        **quiet,
    )
    return [*settings, start]


def _shown(style: str) -> list[bool]:
    """Whether temperature, top-p, top-k, seed and best-of matter for a style."""
    by_chance = style != "Greedy"
    return [by_chance, style == "Top-p", style == "Top-k", by_chance, by_chance]


def _chosen(
    style: str,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    tries: int,
    most: int,
) -> str:
    style, tries = style or STYLES[0], tries or 1  # a control may be empty
    figures = {"Temperature": temperature, "Top-p": top_p, "Top-k": top_k}
    said = [f"{style.lower()} {figures.get(style, '')}".strip()]
    if style != "Greedy" and tries > 1:
        said.append(f"best of {tries}")
    return f"Sampling and length: {', '.join([*said, str(most)])}"
