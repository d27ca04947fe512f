"""The header and its menu of models in a browser, over two tiny checkpoints."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import (
    PATIENT,
    PICTURE,
    answered,
    ask,
    heat,
    opened,
    ready,
    serve,
)
from playwright.sync_api import Browser, Page, expect

import vlm
from vlm.ui import header
from vlm.ui.models import Models
from vlm.ui.probe import _Ways

TINY = Path(__file__).parents[1] / "assets" / "tiny"
FACTS = "2 layers × 3 heads · cpu · float32"


class Shelf:
    """Loads fakes by name; what begins with "slow" waits until its gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.live = weakref.WeakSet()

    def __call__(self, source: str, *, progress: Callable[[str], None]) -> FakeEngine:
        progress("Reading weights")
        while source.startswith("slow") and not self.gate.wait(0.02):
            progress("Downloading: 1.00 of <b>4.00</b> GB")
        if source.startswith("<img"):
            raise ValueError(f"there is no folder {source!r} here")
        shape = {} if source == "first" else {"layers": 2, "heads": 3, "grid": 4}
        engine = FakeEngine(name=source, **shape)
        self.live.add(engine)
        return engine


@pytest.fixture
def site() -> Iterator[SimpleNamespace]:
    shelf = Shelf()
    models = Models(shelf, ["first"], switching=True)
    models.wait()
    with serve(models) as served:
        served.shelf, served.models = shelf, models
        yield served
        shelf.gate.set()


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=360, height=740, has_touch=True)


def load(page: Page, text: str) -> None:
    if page.locator("#header .menu").is_hidden():
        page.click("#header button.model")
    page.fill("#menu-text", text)
    page.press("#menu-text", "Enter")


def expect_model(page: Page, name: str) -> None:
    shown = page.locator("#header .model b")
    expect(shown).to_have_text(name, timeout=PATIENT)
    expect(page.locator("#header .model")).to_have_attribute("data-loading", "false")


def test_every_published_checkpoint_is_listed_and_filtered(page):
    page.click("#header button.model")
    rows = page.locator("#header li:visible")
    expect(rows).to_have_count(len(header.rows()))
    expect(rows.first).to_contain_text("google/paligemma-3b-mix-224")
    expect(rows.first).to_contain_text("224 px · 2.92 B parameters · 11.7 GB (float32)")
    expect(rows.first).to_contain_text(", 5.85 GB as @bfloat16 or @float16")
    page.fill("#menu-text", "PALIGEMMA2 mix 448")
    expect(rows).to_have_count(3)
    page.fill("#menu-text", "refcoco")
    expect(rows).to_have_count(3)
    prompts = page.locator("#header li:visible button").first.get_attribute("title")
    assert prompts == "Prompts: THING"
    page.fill("#menu-text", "no such")
    expect(page.locator("#header .none")).to_be_visible()


def test_a_chosen_row_answers_and_nothing_of_the_first_is_left(site, page):
    answered(page, "detect cat")
    page.click("#header button.model")
    page.fill("#menu-text", "paligemma2-3b-pt-224")
    page.click("#header li:visible button")
    expect_model(page, "google/paligemma2-3b-pt-224")
    expect(page.locator("#header .facts")).to_have_text(FACTS)
    page.keyboard.press("Escape")
    # The answer stays, as the first one gave it, and can still be looked at.
    expect(page.locator("#scope .heads button")).to_have_count(3 + 4)
    page.click("#scope .chip[data-key=a0]")
    page.fill("#prompt textarea", "is there a cat?")
    expect(page.locator("#hint")).to_contain_text("A pt checkpoint is made to be")
    answered(page, "detect dog")
    expect(page.locator("#scope .heads button")).to_have_count(3 + 3)
    page.get_by_role("tab", name="Inside").click()
    fact = page.locator("#inside [data-fact=model]").first
    expect(fact).to_have_text("google/paligemma2-3b-pt-224")


def test_an_answer_whose_model_is_gone_is_looked_at_and_saved_but_not_asked_again(page):
    gone = "first is no longer loaded, second answers here now. Press Run first."
    answered(page, "detect cat ; dog")
    load(page, "second")
    expect_model(page, "second")
    page.keyboard.press("Escape")
    scope = page.locator("#scope .scope")
    run = scope.get_attribute("data-ready")
    text = page.locator("#scope .tokens").inner_text()
    # Each of these asks the model that gave the answer.
    for ask_again in (".why", ".try", ".branch:visible"):
        page.click("#scope .chip[data-key=a4]")
        page.locator(f"#scope {ask_again}").first.click()
        told = page.get_by_test_id("toast-body")
        expect(told).to_have_count(1)
        expect(told).to_contain_text(gone)
        page.get_by_test_id("toast-close").click()
        expect(told).to_have_count(0)
        expect(scope).not_to_have_attribute("data-busy", "true")
        expect(scope).to_have_attribute("data-phase", "done")
        assert page.locator("#scope .tokens").inner_text() == text
    # What is kept needs no model.
    before = heat(page)
    page.click("#scope .chip[data-key=a9]")
    assert heat(page) != before
    page.click("#scope .save")
    with page.expect_download() as saved:
        page.click("#scope [data-save=json]")
    view = json.loads(Path(saved.value.path()).read_text())["view"]
    assert (view["model"], view["run"]) == ("first", run)
    answered(page, "detect ball")


def test_while_the_next_is_loaded_the_old_one_answers_and_is_freed(site, page):
    load(page, "slow one")
    told = page.locator("#header button.model .facts")
    expect(told).to_contain_text("loading slow one: Downloading")
    answered(page, "detect cat ; dog ; ball")
    ask(page, "caption forever")
    page.wait_for_selector("#scope [data-phase=running]")
    site.shelf.gate.set()
    expect_model(page, "slow one")
    expect(page.locator("#scope [data-phase]")).to_have_attribute(
        "data-phase", "running"
    )
    before = page.locator("#scope .chip.said").count()
    page.wait_for_function(
        "n => document.querySelectorAll('#scope .chip.said').length > n", arg=before
    )
    assert {engine.name for engine in site.shelf.live} == {"first", "slow one"}
    page.keyboard.press("Escape")  # the menu
    page.click("#stop")
    page.wait_for_selector("#scope [data-phase=stopped]", timeout=PATIENT)
    answered(page, "detect dog")
    load(page, "third")
    expect_model(page, "third")
    assert len(site.shelf.live) <= 2


def test_what_cannot_be_loaded_is_told_as_text_and_the_old_one_stays(page):
    hostile = "<img src=x onerror=window.pwned=1>"
    load(page, hostile)
    wrong = page.locator("#header .error")
    expect(wrong).to_contain_text(f"there is no folder {hostile!r} here")
    expect(page.locator("#header .model b")).to_have_text("first")
    expect(page.locator("#header .facts")).to_contain_text("could not be loaded")
    assert page.evaluate("window.pwned") is None
    answered(page, "detect cat")
    load(page, "second")
    expect_model(page, "second")
    expect(wrong).to_be_hidden()


def test_a_loading_is_called_off_or_overtaken(site, page):
    load(page, "slow one")
    line = page.locator("#header .loading")
    expect(line).to_contain_text("slow one: Downloading: 1.00 of <b>4.00</b> GB")
    page.click("#header .loading button")
    expect(line).to_be_hidden()
    expect_model(page, "first")
    load(page, "slow one")
    expect(line).to_be_visible()
    load(page, "second")
    expect_model(page, "second")
    assert site.models.names == ("second",)


def test_the_menu_is_used_by_keyboard(page):
    page.focus("#header button.model")
    page.keyboard.press("Enter")
    expect(page.locator("#menu-text")).to_be_focused()
    assert page.locator("#header button.model").get_attribute("aria-expanded") == "true"
    page.keyboard.type("docci")
    expect(page.locator("#header li:visible")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#header li:visible button").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect_model(page, "google/paligemma2-10b-ft-docci-448")
    page.keyboard.press("Escape")
    expect(page.locator("#header .menu")).to_be_hidden()
    expect(page.locator("#header button.model")).to_be_focused()


def test_another_visitor_sees_who_answers(site, page, browser):
    for other in opened(site, browser, width=1280, height=860):
        load(page, "second")
        expect_model(page, "second")
        answered(other, "detect cat")
        expect_model(other, "second")
        other.reload()
        expect_model(other, "second")
        expect(other.locator("#header .facts")).to_have_text(FACTS)


def test_a_phone_shows_the_menu_without_scrolling_sideways(phone):
    phone.click("#header button.model")
    expect(phone.locator("#header li:visible").first).to_be_visible()
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    box = phone.locator("#header .menu").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


# Points of the open menu at which something else would be touched.
HOLES = """() => {
  const menu = document.querySelector("#menu");
  const { left, right, top, bottom } = menu.getBoundingClientRect();
  const holes = [];
  for (let y = top + 12; y < Math.min(bottom, innerHeight) - 12; y += 6) {
    for (let x = left + 12; x < right - 12; x += 6) {
      const there = document.elementFromPoint(x, y);
      if (!menu.contains(there)) holes.push(there.outerHTML.slice(0, 80));
    }
  }
  return holes;
}"""


def test_nothing_of_a_tab_shows_through_the_open_menu(browser):
    models = Models(Shelf(), ["first"], switching=True)
    models.wait()
    pair = vlm.load_pair(TINY.with_name("tiny-pair"), device="cpu")
    with serve(models, pair=lambda: pair) as served:
        for page in opened(served, browser, width=1440, height=844):
            for tab in ("Probe", "Compare", "Inside", "Pairs"):
                page.get_by_role("tab", name=tab).click()
                page.click("#header button.model")
                expect(page.locator("#menu")).to_be_visible()
                assert page.evaluate(HOLES) == [], tab
                page.keyboard.press("Escape")


def test_a_page_is_there_before_its_model_and_run_waits_for_it(browser):
    shelf = Shelf()
    with serve(Models(shelf, ["slow one"])) as site:
        for page in opened(site, browser, width=1280, height=860):
            facts = page.locator("#header .facts")
            expect(facts).to_contain_text("Downloading: 1.00 of")
            expect(page.locator("#header button.model")).to_have_count(0)
            ask(page, "detect cat")
            page.wait_for_timeout(500)
            assert page.locator("#scope .chip.said").count() == 0
            shelf.gate.set()
            ready(page)
            expect_model(page, "slow one")
            expect(facts).to_have_text(FACTS)


def test_what_was_asked_before_its_model_was_there_stays(browser, monkeypatch):
    def late(self, *given: Any) -> dict:
        empty = preview(self, *given)
        shown.wait(PATIENT / 1000)
        return empty

    preview, shown = _Ways.preview, threading.Event()
    monkeypatch.setattr(_Ways, "preview", late)
    shelf = Shelf()
    with serve(Models(shelf, ["slow one"])) as site:
        for page in opened(site, browser, width=1280, height=860):
            ask(page, "detect cat")
            shelf.gate.set()
            ready(page)
            expect_model(page, "slow one")
            shown.set()
            page.wait_for_timeout(1000)  # the empty view of the new model has come
            assert page.locator("#scope .scope").get_attribute("data-phase") == "done"


def test_strangers_cannot_have_anything_loaded(browser):
    shelf = Shelf()
    models = Models(shelf, ["first"])
    models.wait()
    with serve(models) as site:
        for page in opened(site, browser, width=1280, height=860):
            expect(page.locator("#header p.model b")).to_have_text("first")
            expect(page.locator("#header .menu")).to_have_count(0)
    for source in ("second", "/etc", "", 7, None, {"a": 1}, "x" * 10_000):
        assert header.chosen(models, source)["error"]
    assert models.news()["loading"] == "" and models.names == ("first",)


def test_a_program_that_names_who_is_gone_is_told_who_answers(site):
    client = Client(site.url, verbose=False)
    picture = handle_file(PICTURE)
    site.models.choose("second")
    while site.models.news()["loading"]:
        time.sleep(0.01)
    client.predict(picture, "detect cat", model="second", api_name="/probe")
    client.predict(picture, "detect cat", api_name="/probe")
    with pytest.raises(AppError, match="There is no model 'first', only second."):
        client.predict(picture, "detect cat", model="first", api_name="/probe")


def test_a_folder_is_loaded_by_its_path(browser: Browser, tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "mine")
    replaced: list[Any] = []

    def real(source: str, *, progress: Callable[[str], None]) -> vlm.Engine:
        engine = vlm.load(source, device="cpu", progress=progress)
        replaced.append(weakref.ref(engine))
        return engine

    models = Models(real, [str(TINY)], switching=True)
    models.wait()
    with serve(models) as site:
        for page in opened(site, browser, width=1280, height=860):
            answered(page, "detect penguin")
            load(page, str(tmp_path / "nowhere"))
            expect(page.locator("#header .error")).to_contain_text(
                "neither a folder here nor a Hub name", timeout=PATIENT
            )
            load(page, f" {folder} ")
            expect_model(page, "mine")
            page.keyboard.press("Escape")
            answered(page, "detect penguin")
            gc.collect()
            assert replaced[0]() is None, "the replaced engine is still in memory"
