"""The page: a header, and one tab for each thing to do."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from vlm.ui import api, compare, inside, pairs, probe
from vlm.ui.examples import listed

FOLDER = Path(__file__).parent
SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Inter", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


def build(
    engines: Any, examples: Path, *, pair: pairs.Loading | None = None
) -> gr.Blocks:
    """The page for an engine, or for several; the first is asked unless one chooses.

    `examples` is a folder with an examples.json. `pair` loads what the Pairs tab asks,
    when that is first asked.
    """
    engines = engines if isinstance(engines, Sequence) else [engines]
    named = {engine.describe()["name"]: engine for engine in engines}
    # Gradio gives out no other files than those that were uploaded, and these.
    gr.set_static_paths([examples])
    with gr.Blocks(
        title="PaliScope: see what PaliGemma sees",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 3600),
    ) as demo:
        api.build(named)  # first, or a listener's function could take a name of these
        gr.HTML(
            _header([each.describe() for each in engines]),
            elem_id="header",
            js_on_load=None,
        )
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Probe"):
                asked = probe.build(named, listed(examples))
            with gr.Tab("Compare"):
                compare.build(named, asked.store, listed(examples))
            with gr.Tab("Inside") as tab:
                inside.build(named, tab, asked)
            with gr.Tab("Pairs"):
                pairs.build(pair, listed(examples))
    # Waiting events over all functions; on ZeroGPU Gradio's own limit would be 1.
    demo.queue(max_size=16)
    return demo


def launch(demo: gr.Blocks, **options: Any) -> tuple:
    """Serve the page. Bounds are set here: uploads, files kept, cross-origin calls."""
    styles = ("palette", "page", "compare", "pairs")
    return demo.launch(
        theme=gr.themes.Base(font=SANS, font_mono=MONO),
        css_paths=[FOLDER / f"{name}.css" for name in styles],
        head_paths=FOLDER / "page.html",
        favicon_path=FOLDER / "logo.svg",
        footer_links=["api"],
        max_file_size="16mb",
        run_history=False,
        show_error=False,
        ssr_mode=False,
        **options,
    )


def _header(abouts: list[dict]) -> str:
    first = abouts[0]
    shape = f"{first['layers']} layers × {first['heads']} heads"
    facts = {
        "name": " and ".join(about["name"] for about in abouts),
        "facts": f"{first['device']} · {first['arithmetic']}",
    }
    if len(abouts) == 1:
        facts["facts"] = f"{shape} · {facts['facts']}"
    # A model's name may come from outside, and this string is markup.
    safe = {key: html.escape(value) for key, value in facts.items()}
    logo = (FOLDER / "logo.svg").read_text("utf-8")
    return Template((FOLDER / "header.html").read_text("utf-8")).substitute(
        safe, logo=logo
    )
