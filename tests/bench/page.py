"""How fast the page is at PaliGemma's shape, in headless Chromium: a Markdown table.

    python tests/bench/page.py

There is no model behind it: random maps of 18 layers and 8 heads, at a steady pace. So
this is what the page itself adds. Software draws here; with a graphics card frames
are shorter.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from browser import find_browser  # noqa: E402
from fake_engine import FakeEngine  # noqa: E402
from pages import PATIENT, ask, ready, serve  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from vlm.engine import Step  # noqa: E402

LAYERS, HEADS = 18, 8
GRIDS = {"224 px": 16, "448 px": 32}
TOKENS, RATE = 200, 100  # tokens of an answer, and tokens per second
FRAMES = 120
SCRIPTS = Path(__file__).with_name("page.js").read_text("utf-8")


def main() -> None:
    columns = {size: measured(grid) for size, grid in GRIDS.items()}
    print(f"| {LAYERS} layers × {HEADS} heads | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")


def measured(grid: int) -> dict[str, str]:
    flags = ["--no-sandbox", "--disable-gpu"]
    with serve(Paced(grid)) as site, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=find_browser(), args=flags
        )
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.goto(site.url)
        page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
        page.evaluate(SCRIPTS)
        streamed = streaming(page, grid)
        scrubbed = scrubbing(page)
        chromium.close()
    return {**scrubbed, **streamed}


def scrubbing(page: Page) -> dict[str, str]:
    """A layer on every frame; first the frames that see it for the first time."""
    page.click("#scope .chip[data-key=a7]")
    times = page.evaluate("frames => window.bench.scrub(frames)", FRAMES)
    script, frame = np.array(times["script"]), np.array(times["frame"])
    return {
        "scrubbing a layer: script, median and p95": _two(script, "ms"),
        "scrubbing a layer: from frame to frame (60 Hz)": _two(frame, "ms"),
    }


def streaming(page: Page, grid: int) -> dict[str, str]:
    """One answer, with a token chosen and the list scrolled up while it comes."""
    traffic = Traffic(page)
    page.evaluate("window.bench.watch()")
    ask(page, "detect everything")
    page.wait_for_selector("#scope .chip[data-key=a60]", timeout=PATIENT)
    page.locator("#scope .tokens").evaluate("list => { list.scrollTop = 10; }")
    page.locator("#scope .chip[data-key=a5]").dispatch_event("click")
    ready(page)
    seen = page.evaluate("window.bench.seen()")
    assert seen["tokens"] == TOKENS, seen
    raw = LAYERS * HEADS * grid**2
    return {
        f"streaming at {RATE} tokens/s: on the page": f"{seen['rate']:.0f} tokens/s",
        "streaming: longest task of the main thread": f"{seen['longest']:.0f} ms",
        "streaming: selection, scroll position kept": _kept(seen),
        "transfer per token, of its bytes at 8 bit": traffic.told(raw),
    }


class Paced(FakeEngine):
    """Answers of TOKENS tokens, RATE of them in a second, each with other maps."""

    def __init__(self, grid: int) -> None:
        super().__init__(layers=LAYERS, heads=HEADS, grid=grid, delay=0, name="paced")
        random = np.random.default_rng(0)
        maps = random.dirichlet(np.full(grid**2, 0.5), size=(24, HEADS))
        self.maps = 0.4 * torch.from_numpy(maps.astype(np.float32))
        self.told = 0

    def stream(self, *asked: Any, **options: Any) -> Iterator[Step]:
        with contextlib.closing(super().stream(*asked, **options)) as steps:
            began = time.perf_counter()
            for step in steps:
                due = began + step.index / RATE
                time.sleep(max(0, due - time.perf_counter()))
                yield step

    def _answer(self, prompt: str) -> list[tuple[str, tuple[float, float]]]:
        boxes = super()._answer(prompt)
        return (boxes * TOKENS)[:TOKENS]

    def _row(self, layer: int, place: tuple[float, float], keys: int) -> torch.Tensor:
        self.told += 1
        image = self.maps[self.told % len(self.maps)]
        rest = keys - image.shape[1]
        return torch.cat([image, torch.full((HEADS, rest), 0.6 / rest)], dim=1)


class Traffic:
    """Counts what comes over the wire, headers and all: answers and maps."""

    def __init__(self, page: Page) -> None:
        self.bytes = {"queue": 0, "component_server": 0}
        self.kinds: dict[str, str] = {}
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.responseReceived", self._begun)
        session.on("Network.dataReceived", self._came)

    def told(self, raw: int) -> str:
        stream, maps = (self.bytes[kind] / (TOKENS * raw) for kind in self.bytes)
        return f"{stream + maps:.2f} ({stream:.2f} stream, {maps:.2f} maps)"

    def _begun(self, event: dict) -> None:
        url = event["response"]["url"]
        for kind in self.bytes:
            if kind in url:
                self.kinds[event["requestId"]] = kind

    def _came(self, event: dict) -> None:
        kind = self.kinds.get(event["requestId"])
        if kind:
            self.bytes[kind] += event["encodedDataLength"] or event["dataLength"]


def _two(times: np.ndarray, unit: str) -> str:
    return f"{np.median(times):.1f}, {np.percentile(times, 95):.1f} {unit}"


def _kept(seen: dict) -> str:
    kept = (seen["chosen"] == "a5", seen["scroll"] == 10)
    return ", ".join("yes" if each else "no" for each in kept)


if __name__ == "__main__":
    main()
