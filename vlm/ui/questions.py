"""The two questions of a comparison: their controls, and presets that fill them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import gradio as gr

from vlm.ui.asking import Ask, Settings, asked_for
from vlm.ui.controls import Picture, sampling


class Question(NamedTuple):
    """The controls of one side; `preset` are picture, prompt, and how to ask."""

    model: gr.Dropdown
    prompt: gr.Textbox
    preset: list


@dataclass(frozen=True)
class Preset:
    """A comparison to begin with, of pictures that are among the examples."""

    name: str
    pictures: tuple[str | None, str | None]
    prompts: tuple[str, str]
    settings: tuple[Settings, Settings] = (Settings(), Settings())

    def sides(self, known: dict[str, str]) -> list[tuple]:
        """Of each question's controls; `known` has the pictures' files by name."""
        return [
            (known.get(name), prompt, *astuple(how), "")
            for name, prompt, how in zip(self.pictures, self.prompts, self.settings)
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


@dataclass(eq=False)  # each one is itself, however alike
class Wanted:
    """The two that are to be compared next."""

    asks: tuple[Ask, Ask]


def asks_of(a: Sequence[Any], b: Sequence[Any]) -> tuple[Ask, Ask]:
    """Both questions, each as model, picture, prompt and how to ask it.

    B's picture and prompt are A's where they are empty.
    """
    picture, prompt = b[1] or a[1], b[2] if (b[2] or "").strip() else a[2]
    return asked_for(*a), asked_for(b[0], picture, prompt, *b[3:])


def question(
    side: str, names: Sequence[str], picture: str | None, prompt: str
) -> Question:
    """Lay out the controls of one side, of "a" or "b"."""
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
            list(names),
            value=names[0],
            label=f"Model {name}",
            show_label=False,
            container=False,
            visible=len(names) > 1,
            elem_id=f"model-{side}",
        )
        how = sampling(f"sampling-{side}")
    return Question(model, words, [image, words, *how])
