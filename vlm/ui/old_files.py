"""Old files: what was sent to the page or shown on it is deleted some time later."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from pathlib import Path

import gradio as gr
from gradio.context import LocalContext


def delete_from_now_on(demo: gr.Blocks, age: float) -> None:
    """Delete what is older than `age` seconds, as long as there is the page.

    Gradio's own schedule would end at the first file that is sent while it runs, and
    would leave the folder that each file has to itself.
    """
    page = weakref.ref(demo)

    def delete() -> None:
        while (here := page()) is not None:
            delete_old(here, age)
            del here
            time.sleep(age / 2)

    threading.Thread(target=delete, name="delete old files", daemon=True).start()


def delete_old(demo: gr.Blocks, age: float) -> None:
    """Delete what Gradio keeps for others who ask the page, if it is that old."""
    each = (getattr(block, "keep_in_cache", ()) for block in demo.blocks.values())
    built_in = set().union(*each)
    oldest = time.time() - age
    for files in demo.temp_file_sets:
        for file in files.copy() - built_in:  # others go on putting in theirs
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(file).st_ctime > oldest:
                    continue
                os.remove(file)
            files.discard(file)
            with contextlib.suppress(OSError):  # it is gone, or something is in it
                Path(file).parent.rmdir()


def will_be_old(file: Path) -> None:
    """Tell the page whose question made this file, so that it is deleted some time."""
    if (demo := LocalContext.blocks.get(None)) is not None:
        demo.upload_file_set.add(str(file))
