"""Markup in Chromium: on the page, in its messages, and in a saved page."""

from __future__ import annotations

import base64
import json
import zlib
from itertools import count
from pathlib import Path

import strategies
from browser import find_browser
from fake_engine import Parrot
from pages import EXAMPLES, PATIENT, ask, ready, serve
from playwright.sync_api import Page, sync_playwright
from tally import Tally, hammer

from vlm.ui import export
from vlm.ui.asking import Ask, views
from vlm.ui.scope import FOLDER, SCRIPTS, STYLES, joined
from vlm.ui.store import Store

RAN = """() => window.pwned !== undefined
  || [...document.querySelectorAll('*')].some((node) =>
    [...node.attributes].some((each) =>
      (/^on/.test(each.name) && /pwned/.test(each.value))
      || (/^(src|href|srcdoc)$/.test(each.name)
          && /^x$|192\\.0\\.2\\.1|pwned/.test(each.value))))"""


def in_chromium(inputs: int, folder: Path) -> Tally:
    """So many texts as prompt and label, in a message, and in a page saved there."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    viewer = {
        "markup": (FOLDER / "scope.html").read_text("utf-8"),
        "style": joined(STYLES),
        "script": joined(SCRIPTS),
    }
    with serve(Parrot(delay=0)) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=flags)
        page, saved = browser.new_page(), browser.new_page()
        asked: list[str] = []
        numbers = count()
        for each in (page, saved):
            each.on("request", lambda request: asked.append(request.url))
        page.goto(site.url)
        page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)

        def act(text: str) -> bool:
            before = page.locator("#scope .scope").get_attribute("data-ready")
            ask(page, f"detect {text}")
            ready(page, before)
            assert text[:20] in page.inner_text("#scope .objects"), "no label"
            style = f"style{next(numbers)} {text}"
            follow(page, style)
            page.get_by_text(style[:20]).first.wait_for(timeout=PATIENT)
            assert not page.evaluate(RAN), f"it ran in the page: {text}"
            saved.goto(written(text, folder, viewer).as_uri())
            saved.wait_for_selector("#viewer .scope[data-ready]", timeout=PATIENT)
            assert not saved.evaluate(RAN), f"it ran in the saved page: {text}"
            local = (site.url, "file:", "data:", "blob:")
            assert all(url.startswith(local) for url in asked), "it was fetched"
            return True

        tally = hammer("markup in Chromium", inputs, strategies.markup(), act)
        browser.close()
    return tally


def follow(page: Page, style: str) -> None:
    """Open a link whose settings are refused in a message that repeats them."""
    asked = {
        "model": "fake",
        "prompt": "detect cat",
        "start": "",
        "settings": {"style": style},
        "picture": {"example": "meadow.webp"},
    }
    packed = zlib.compress(json.dumps(asked).encode())
    letters = base64.urlsafe_b64encode(packed).decode()
    page.evaluate("letters => { location.hash = `#ask=${letters}`; }", letters)


def written(text: str, folder: Path, viewer: dict[str, str]) -> Path:
    """A page about a prompt, saved."""
    store = Store(2**24)
    question = Ask("fake", str(EXAMPLES / "meadow.webp"), f"detect {text}")
    *_, last = views(Parrot(delay=0), store, question)
    told = export.exported(store, {"run": last["run"], "kind": "html"}, **viewer)
    file = folder / "saved.html"
    file.write_text(told["html"], "utf-8")
    return file
