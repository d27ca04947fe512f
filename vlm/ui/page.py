"""The page: a header, and one tab for each thing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from vlm.ui import api, compare, inside, old_files, pairs, probe
from vlm.ui.examples import listed
from vlm.ui.gate import SERVER, Page
from vlm.ui.header import Header, told
from vlm.ui.models import Models

FOLDER = Path(__file__).parent
QUEUE = 64  # questions that may wait, of all visitors together; the first is next
SESSIONS = 256  # visitors who are remembered; Gradio takes 0.3 MB for each
KEPT = 3600  # seconds that files are kept: those that were sent, and those shown
SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Inter", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


def build(
    engines: Any, examples: Path, *, pair: pairs.Loading | None = None
) -> gr.Blocks:
    """The page for `Models`, for an engine, or for several.

    The first is asked unless one chooses another. Models that are not loaded yet are
    waited for when they are asked. `examples` is a folder with an examples.json. `pair`
    loads what the Pairs tab asks, when that is first asked.
    """
    models = engines if isinstance(engines, Models) else Models.of(engines)
    # Gradio gives out no other files than those that were uploaded, and these.
    gr.set_static_paths([examples])
    with Page(
        waiting=QUEUE,  # on ZeroGPU Gradio's own limit would be 1
        title="PaliScope: see what PaliGemma sees",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(10**9, KEPT),  # at the end all; until then see `old_files`
    ) as demo:
        api.build(models)  # first, or a listener's function could take a name of these
        header = Header(models, elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Probe"):
                asked = probe.build(models, listed(examples), header.switched)
            with gr.Tab("Compare"):
                compare.build(models, asked.store, listed(examples))
            with gr.Tab("Inside") as tab:
                inside.build(models, tab, asked, header.switched)
            with gr.Tab("Pairs"):
                pairs.build(pair, listed(examples))
        if models.switching or models.news()["loading"]:
            # What is in the page was written when it was built.
            demo.load(lambda: told(models), None, header, queue=False, **probe.QUIET)
    return demo


def launch(demo: gr.Blocks, **options: Any) -> tuple:
    """Serve the page. Bounds are set here: uploads, files kept, cross-origin calls."""
    old_files.delete_from_now_on(demo, KEPT)
    styles = ("palette", "page", "compare", "pairs")
    return demo.launch(
        theme=gr.themes.Base(font=SANS, font_mono=MONO),
        css_paths=[FOLDER / f"{name}.css" for name in styles],
        head_paths=FOLDER / "page.html",
        favicon_path=FOLDER / "logo.svg",
        footer_links=["api"],
        max_file_size="16mb",
        state_session_capacity=SESSIONS,
        app_kwargs={**SERVER},  # Gradio adds to it
        enable_monitoring=False,
        run_history=False,
        show_error=False,
        ssr_mode=False,
        **options,
    )
