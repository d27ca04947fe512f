"""Ten thousand inputs that mean harm, and what becomes of them: a Markdown table.

    python tests/bench/hostile.py

Drawn by hypothesis (tests/strategies.py). Pictures and prompts go to the functions that
read them, calls to every listener of the page and over real HTTP to the server; markup
goes through the page, its messages and a saved page in Chromium. A refusal is one with
a sentence; whatever else an input brings about but an answer is a crash. Memory is the
peak above what was there before the input, of the whole process (Linux tells it). Ends
with 1 if one crashed or took more than 5 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
SCRATCH = tempfile.TemporaryDirectory(prefix="paliscope-hostile-")
os.environ["GRADIO_TEMP_DIR"] = SCRATCH.name  # before Gradio is imported

import gradio as gr  # noqa: E402
import hostile_http  # noqa: E402
import hostile_page  # noqa: E402
import orjson  # noqa: E402
import strategies  # noqa: E402
from fake_engine import Parrot  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from listeners import Listeners  # noqa: E402
from pages import serve  # noqa: E402
from PIL import Image  # noqa: E402
from tally import Tally, hammer  # noqa: E402

import vlm  # noqa: E402
from vlm import picture_file  # noqa: E402
from vlm.image import image_key, to_rgb  # noqa: E402
from vlm.ui import prompts  # noqa: E402
from vlm.ui.asking import Ask, Settings, views  # noqa: E402
from vlm.ui.hint import hint  # noqa: E402
from vlm.ui.store import Store  # noqa: E402

# Parts of all inputs.
PARTS = {
    "bytes": 0.3,
    "headers": 0.2,
    "modes": 0.1,
    "prompts": 0.2,
    "calls": 0.14,
    "http": 0.056,
    "markup": 0.004,
}
CALLS = "calls of listeners"
FEW = Settings(max_tokens=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    count = parser.parse_args().inputs
    warnings.simplefilter("ignore")
    silence()
    many = {name: max(1, round(count * part)) for name, part in PARTS.items()}
    tiny = vlm.load(ROOT / "assets" / "tiny", device="cpu")
    files, headers = strategies.files(), strategies.headers()
    images = strategies.saved_images()
    done = [
        hammer("files: bytes", many["bytes"], files, read),
        hammer("files: headers", many["headers"], headers, read),
        hammer("images of every mode", many["modes"], images, shown),
        hammer("prompts", many["prompts"], *asking(tiny)),
    ]
    pair = vlm.load_pair(ROOT / "assets" / "tiny-pair", device="cpu")
    page = Listeners([Parrot(delay=0), tiny], pair)

    def call(value: tuple) -> bool:
        page.call(*value)
        return True

    done.append(hammer(CALLS, many["calls"], page.calls(), call, refusal=gr.Error))
    with serve([Parrot(delay=0), tiny]) as site:
        done.append(hostile_http.requests(many["http"], site.url))
    done.append(hostile_page.in_chromium(many["markup"], Path(SCRATCH.name)))
    tell(done)
    sys.exit(any(each.crashes or each.hangs for each in done))


def tell(done: list[Tally]) -> None:
    print(
        "| | inputs | answered | refused | crashed | over 5 s | slowest | "
        "extra memory |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for each in (*done, sum(done, Tally("all"))):
        print(
            f"| {each.name} | {each.sent:,} | {each.answers:,} | {each.refusals:,} | "
            f"{each.crashes.total()} | {each.hangs} | {each.slowest:.1f} s | "
            f"{each.peak / 1e6:.0f} MB |"
        )
    for each in done:
        for where, count in each.crashes.most_common():
            print(f"\n{each.name}: {count} × {where}")


def read(data: bytes) -> bool:
    file = Path(SCRATCH.name, "picture")
    file.write_bytes(data)
    image = picture_file.read(file)
    assert image.mode == "RGB" and len(image_key(image)) == 32
    return True


def shown(value: tuple[Image.Image, bytes | None]) -> bool:
    image, data = value
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", image.size)
    return data is None or read(data)


def asking(tiny: vlm.Engine) -> tuple[st.SearchStrategy, Callable[[Any], bool]]:
    """Prompts and starts of answers, now and then for the embedded model."""
    engines = st.sampled_from([Parrot(delay=0)] * 15 + [tiny])
    store, words = Store(2**24), tiny.tokenizer
    reserved = {words.bos, words.eos, words.image_token}
    picture = Path(SCRATCH.name, "small.png")
    Image.linear_gradient("L").resize((64, 48)).save(picture)

    def act(value: tuple[str, str, Any]) -> bool:
        prompt, start, engine = value
        hint(prompt, tiny.describe())
        question = Ask(engine.name, str(picture), prompt, start, FEW)
        assert not any(map(is_hidden, question.prompt + question.start))
        assert not reserved & {*tiny.ids(question.prompt, question.start)[1:]}
        for now in views(engine, store, question):
            orjson.dumps(now)  # which refuses halves of characters
        return True

    return st.tuples(strategies.prompts(), strategies.prompts(), engines), act


def is_hidden(character: str) -> bool:
    seen = character.isspace() or character in prompts.JOINERS
    return not seen and unicodedata.category(character) in ("Cc", "Cf", "Cs")


def silence() -> None:
    """Decoders write what they think of damaged files to standard error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        raise
