"""Ways to explain an answer, on the page; and what the server makes of requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_engine import FakeEngine
from pages import (
    EXAMPLES,
    PATIENT,
    answered,
    ask,
    delay,
    heat,
    opened,
    ready,
    serve,
    thumb,
)
from PIL import Image
from playwright.sync_api import Page, expect

import vlm
from vlm.probes import METHODS, Asked
from vlm.ui import explaining
from vlm.ui.asking import Ask, views
from vlm.ui.explaining import MAX_TOKENS, explained
from vlm.ui.store import Store

TINY = Path(__file__).parents[1] / "assets" / "tiny"
PENGUINS = EXAMPLES / "penguins.webp"
GRID = 8  # patches along a side of the picture


@pytest.fixture(scope="module")
def engine() -> vlm.Engine:
    return vlm.load(TINY)


@pytest.fixture(scope="module")
def site(engine) -> Iterator[SimpleNamespace]:
    with serve(engine) as served:
        yield served


@pytest.fixture(scope="module")
def fake() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine()) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=1100)


@pytest.fixture
def fake_page(fake, browser) -> Iterator[Page]:
    yield from opened(fake, browser, width=1280, height=1100)


def explain(page: Page) -> None:
    page.click("#scope .why")
    ways = page.locator("#scope .ways button:enabled")
    expect(ways).to_have_count(len(METHODS), timeout=PATIENT)


def way(page: Page, name: str):
    return page.locator(f"#scope .ways [data-way={name}]")


def brightest(page: Page, name: str) -> int:
    """The patch of the lightest pixel of a small map."""
    return int(thumb(page, f"#scope [data-way={name}]", GRID)[:, 1].argmax())


def test_nine_ways_show_what_their_probes_give(page, engine):
    answered(page, "detect fish")
    page.locator("#scope .found .pick").first.click()
    explain(page)
    image = Image.open(PENGUINS)
    steps = list(engine.stream(image, "detect fish"))
    asked = Asked(engine, image, "detect fish", tuple(step.token for step in steps))
    tokens = list(range(len(steps)))
    for name, method in METHODS.items():
        expected = method.heat(asked, tokens)
        assert brightest(page, name) == int(expected.argmax()), name
        expect(way(page, name)).to_have_text(method.title)


def test_a_way_takes_the_place_of_attention_until_a_layer_is_chosen(page):
    answered(page, "detect fish")
    page.locator("#scope .found .pick").first.click()
    explain(page)
    page.mouse.move(5, 5)
    attention = heat(page)
    way(page, "occlusion").click()
    page.mouse.move(5, 5)
    shown = heat(page)
    assert shown != attention
    expect(way(page, "occlusion")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#scope .shows")).to_have_text(METHODS["occlusion"].shows)
    expect(page.locator("#scope .hides")).to_have_text(METHODS["occlusion"].hides)
    expect(page.locator("#scope .fits")).to_contain_text("where an even map has")
    expect(page.locator("#scope .legend")).to_contain_text("Occlusion")
    way(page, "lens").hover()  # pointing previews
    assert heat(page) not in (shown, attention)
    page.mouse.move(5, 5)
    assert heat(page) == shown
    page.focus("#scope .tokens")
    page.keyboard.press("ArrowDown")
    expect(way(page, "occlusion")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("ArrowUp")
    assert heat(page) == attention


def test_each_choice_of_tokens_is_explained_by_itself(page):
    answered(page, "detect fish")
    page.click("#scope .chip[data-key=a0]")
    explain(page)
    expect(page.locator("#scope .why")).to_be_disabled()
    page.click("#scope .chip[data-key=a4]")
    expect(page.locator("#scope .ways button:enabled")).to_have_count(0)
    expect(page.locator("#scope .why")).to_be_enabled()
    explain(page)
    page.click("#scope .chip[data-key=p1]")  # of the prompt
    expect(page.locator("#scope .why")).to_be_disabled()
    expect(page.locator("#scope .shows")).to_have_text("Choose a token of the answer.")


def test_the_keyboard_keeps_a_way(page):
    answered(page, "detect fish")
    page.click("#scope .chip[data-key=a0]")
    explain(page)
    way(page, "relevancy").focus()
    page.keyboard.press("Enter")
    expect(way(page, "relevancy")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#scope .say")).to_contain_text("Relevancy: ")


def test_a_question_ends_the_explanation(page):
    answered(page, "detect fish")
    page.click("#scope .chip[data-key=a0]")
    before = page.locator("#scope .scope").get_attribute("data-ready")
    page.click("#scope .why")
    ask(page, "caption en")
    ready(page, before)
    page.click("#scope .chip[data-key=a1]")
    expect(page.locator("#scope .ways button:enabled")).to_have_count(0)
    explain(page)


def test_news_that_comes_late_does_not_undo_the_stop_of_an_explanation(
    page, monkeypatch
):
    def slow(*given):
        for news in growing(*given):
            time.sleep(0.3)
            yield news

    growing = explaining._growing
    monkeypatch.setattr(explaining, "_growing", slow)
    delay(monkeypatch, b'"process_generating"', 0.3)
    answered(page, "detect fish")
    page.click("#scope .chip[data-key=a0]")
    page.click("#scope .why")
    expect(page.locator("#scope .ways button:enabled").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#scope .why")).to_have_text("Explain")
    page.wait_for_timeout(1000)  # what was on its way has come
    expect(page.locator("#scope .why")).to_have_text("Explain")
    monkeypatch.undo()
    explain(page)


def test_a_model_that_cannot_be_explained_says_so_and_the_page_goes_on(fake_page):
    answered(fake_page, "detect cat")
    fake_page.click("#scope .chip[data-key=a0]")
    fake_page.click("#scope .why")
    words = fake_page.get_by_text("cannot be asked why").first
    expect(words).to_be_visible()
    expect(fake_page.locator("#scope .why")).to_be_enabled()
    answered(fake_page, "caption en")


# --- the server ----------------------------------------------------------------------


@pytest.fixture
def kept(engine) -> tuple[Store, str]:
    store = Store(2**24)
    (*_, end) = views(engine, store, Ask("tiny", str(PENGUINS), "caption en"))
    return store, end["run"]


@pytest.mark.parametrize(
    "tokens", [None, [], "0", [-1], [99], [True], [0.0], ["0"], {"0": 1}]
)
def test_tokens_that_are_none_are_refused(engine, kept, tokens):
    store, run = kept
    news = explained({"tiny": engine}, store, {"run": run, "tokens": tokens})
    with pytest.raises(ValueError, match="Choose a token"):
        next(news)


@pytest.mark.parametrize("data", [None, [], "run", {}, {"run": 5}, {"run": "guess"}])
def test_a_run_that_is_not_kept_says_what_to_do(engine, kept, data):
    with pytest.raises(ValueError, match="no longer kept"):
        next(explained({"tiny": engine}, kept[0], data))


def test_a_run_that_has_not_ended_is_not_explained(engine):
    store = Store(2**24)
    run = store.open(Ask("tiny", str(PENGUINS), "caption en"))
    with pytest.raises(ValueError, match="no end yet"):
        next(explained({"tiny": engine}, store, {"run": run, "tokens": [0]}))


def test_maps_come_one_by_one_of_so_many_tokens_at_most(engine, kept, monkeypatch):
    monkeypatch.setattr("vlm.ui.explaining.PAUSE", 99)  # nothing between them
    store, run = kept
    many = [*range(3)] * MAX_TOKENS
    news = list(explained({"tiny": engine}, store, {"run": run, "tokens": many}))
    assert [len(each["heats"]) for each in news] == [*range(len(METHODS) + 1)]
    assert [each["done"] for each in news] == [False] * len(METHODS) + [True]
    assert news[-1]["tokens"] == many[:MAX_TOKENS]
    rows = torch.tensor(news[-1]["heats"]["attention"])
    assert rows.shape == (8, 8) and float(rows.max()) > 0
