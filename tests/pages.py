"""The page of an engine, served and opened, and what a reader does on it."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# A page that closes deletes the pictures it was sent, by their content: with one folder
# for all processes also those of another's page.
os.environ["GRADIO_TEMP_DIR"] = mkdtemp(prefix="pages-")

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from vlm.ui import page as pages
from vlm.ui.listening import Listening

atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
PICTURE = EXAMPLES / "meadow.webp"  # 640 x 480
SIDE = 512  # pixels of the first example, which is square
PATIENT = 40_000  # milliseconds; a shared machine may be slow


@contextmanager
def serve(
    engines: Any, *, pair: Any = None, **options: Any
) -> Iterator[SimpleNamespace]:
    """The page of an engine or of several, at `url` while the context is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = pages.build(engines, EXAMPLES, pair=pair)
    options = {"prevent_thread_lock": True, "quiet": True, **options}
    pages.launch(demo, server_port=port, **options)
    try:
        yield SimpleNamespace(engine=engines, demo=demo, url=f"http://127.0.0.1:{port}")
    finally:
        demo.close()


def opened(
    site: SimpleNamespace, browser: Browser, *, width: int, height: int, **options: Any
) -> Iterator[Page]:
    """A fresh page. After the test: no script error, nothing asked of other hosts."""
    page = blank(browser, **options)
    page.set_viewport_size({"width": width, "height": height})
    errors, requests = [], []
    page.on("pageerror", failed := lambda error: errors.append(str(error)))
    page.on("request", asked := lambda request: requests.append(request.url))
    page.goto(site.url)
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    page.requests = requests
    yield page
    page.goto("about:blank")  # whatever still runs on it ends
    page.remove_listener("pageerror", failed)
    page.remove_listener("request", asked)
    free.append((options, page))
    assert errors == []
    local = (site.url, "data:", "blob:")
    assert [url for url in requests if not url.startswith(local)] == []


def delay(
    monkeypatch: pytest.MonkeyPatch, words: bytes, seconds: float, *, then: float = 0
) -> None:
    """What is sent with these words in it comes so much later to whoever reads it.

    And the server goes on so much later, `then`, after it was sent.
    """
    call = Listening.__call__

    async def slow(self, scope, receive, send):
        async def sent(message):
            known = words in message.get("body", b"")
            await asyncio.sleep(seconds * known)
            await send(message)
            await asyncio.sleep(then * known)

        await call(self, scope, receive, sent)

    monkeypatch.setattr(Listening, "__call__", slow)


free: list[tuple[dict[str, Any], Page]] = []


def blank(browser: Browser, **options: Any) -> Page:
    """An empty page that remembers nothing.

    One that a test has done with is taken if there is one: a new browser context
    compiles the page's scripts anew, which takes as long as all else that a test does.
    """
    for known, page in free:
        if known == options:
            free.remove((known, page))
            everything = {"origin": "*", "storageTypes": "all"}
            session = page.context.new_cdp_session(page)
            session.send("Storage.clearDataForOrigin", everything)
            session.detach()
            page.mouse.move(0, 0)
            return page
    return browser.new_context(**options).new_page()


def ask(page: Page, prompt: str) -> None:
    page.fill("#prompt textarea", prompt)
    page.press("#prompt textarea", "Enter")


def answered(page: Page, prompt: str) -> None:
    before = page.locator("#scope .scope").get_attribute("data-ready")
    ask(page, prompt)
    ready(page, before)


def ready(page: Page, before: str | None = None) -> None:
    """Wait until a run other than `before` is done and its maps have come."""
    page.wait_for_function(
        """before => {
          const { phase, ready } = document.querySelector("#scope .scope").dataset;
          return phase === "done" && ready && ready !== before;
        }""",
        arg=before,
        timeout=PATIENT,
        polling=50,  # by itself it looks at every frame
    )


def heat(page: Page) -> bytes:
    """What the stage shows, once it has been drawn."""
    page.evaluate(
        "() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"
    )
    url = page.evaluate("document.querySelector('#scope .stage canvas').toDataURL()")
    return url.encode()


def thumb(page: Page, button: str, grid: int, *, place: str = ".thumb") -> np.ndarray:
    """Colours in the middle of each patch of a button's small map, [patches, 3]."""
    colors = page.locator(f"{button} {place}").evaluate(
        """(thumb, grid) => {
          const map = thumb.closest(":has(> .thumbs)").querySelector(".thumbs");
          const [on, whole] = [thumb, map].map((node) => node.getBoundingClientRect());
          const scale = map.width / whole.width;
          const at = (from, length, i) => (from + (length * (i + 0.5)) / grid) * scale;
          const pen = map.getContext("2d");
          return Array.from({ length: grid * grid }, (_, i) => [...pen.getImageData(
            at(on.x - whole.x, on.width, i % grid),
            at(on.y - whole.y, on.height, Math.floor(i / grid)), 1, 1).data]);
        }""",
        grid,
    )
    return np.array(colors)[:, :3]


def spot(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a share of the picture's width and height is on the page."""
    canvas = page.locator("#scope .stage canvas")
    canvas.scroll_into_view_if_needed()  # which waits until it no longer moves
    box = canvas.bounding_box()
    scale = min(box["width"] / SIDE, box["height"] / SIDE)
    left = box["x"] + (box["width"] - SIDE * scale) / 2
    top = box["y"] + (box["height"] - SIDE * scale) / 2
    return left + x * SIDE * scale, top + y * SIDE * scale
