"""Every way to ask on the Probe tab, in a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
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
    spot,
)
from playwright.sync_api import Locator, Page, expect

import vlm

ASSETS = Path(__file__).parents[1] / "assets"
PROMPTS = [
    entry["prompt"] for entry in json.loads((EXAMPLES / "examples.json").read_text())
]


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine()) as served:
        yield served


@pytest.fixture(scope="module")
def both() -> Iterator[SimpleNamespace]:
    engines = [FakeEngine(name="one"), FakeEngine(name="two", layers=3, grid=5)]
    with serve(engines) as served:
        yield served


@pytest.fixture(scope="module")
def true() -> Iterator[SimpleNamespace]:
    with serve(vlm.load(ASSETS / "tiny")) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


@pytest.fixture
def both_page(both, browser) -> Iterator[Page]:
    yield from opened(both, browser, width=1280, height=860)


@pytest.fixture
def true_page(true, browser) -> Iterator[Page]:
    yield from opened(true, browser, width=1280, height=860)


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=390, height=844, has_touch=True)


def prompt_of(page: Page) -> Locator:
    return page.locator("#prompt textarea")


def words(page: Page) -> Locator:
    return page.locator("#hint p")


def tool(page: Page, name: str) -> Locator:
    return page.locator(f"#scope [data-tool={name}]").and_(page.get_by_role("button"))


def run_of(page: Page) -> str | None:
    return page.locator("#scope .scope").get_attribute("data-ready")


def drag(page: Page, *places: tuple[float, float]) -> None:
    page.mouse.move(*spot(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*spot(page, *place), steps=5)
    page.mouse.up()


# --- help with the prompt ------------------------------------------------------------


def test_the_chip_follows_what_is_typed_in_any_language(page):
    prompt_of(page).fill("answer de wie viele Katzen?")
    expect(page.get_by_role("radio", name="Ask", exact=True)).to_be_checked()
    page.get_by_text("Describe", exact=True).click()
    expect(prompt_of(page)).to_have_value("describe de")
    prompt_of(page).fill("anything else")
    expect(page.locator("#task input:checked")).to_have_count(0)


def test_the_language_is_chosen_under_the_prompt_where_one_is_spoken(page):
    prompt_of(page).fill("answer en wo?")
    choice = page.get_by_label("Language")
    expect(choice).to_have_value("en")
    choice.select_option(label="German")
    expect(prompt_of(page)).to_have_value("answer de wo?")
    expect(choice).to_have_value("de")
    prompt_of(page).fill("detect cat")
    expect(choice).to_be_hidden()


def test_advice_comes_while_one_types_and_its_button_repairs_the_prompt(page):
    prompt_of(page).fill("Detect cat, dog")
    expect(words(page)).to_contain_text("small letters")
    page.get_by_role("button", name="Write instead: detect cat, dog").click()
    expect(prompt_of(page)).to_have_value("detect cat, dog")
    expect(words(page)).to_contain_text("between things")
    page.get_by_role("button", name="Write instead: detect cat ; dog").click()
    expect(prompt_of(page)).to_have_value("detect cat ; dog")
    expect(words(page)).to_have_text("A box for each thing. Put “ ; ” between them.")
    expect(page.locator("#hint .repair")).to_be_hidden()


def test_the_last_of_many_letters_is_the_one_that_is_judged(page):
    prompt_of(page).fill("")
    prompt_of(page).press_sequentially("detect cat and dog", delay=15)
    expect(page.locator("#hint .repair")).to_have_text("detect cat ; dog")


def test_advice_moves_nothing(page):
    def places() -> list[dict]:
        return [page.locator(each).bounding_box() for each in ("#go", "#sampling")]

    prompt_of(page).fill("detect cat")
    expect(words(page)).to_contain_text("A box")
    before = places()
    for typed, said in [("a cat?", "No task word"), ("caption", "missing"), ("", "")]:
        prompt_of(page).fill(typed)
        expect(words(page)).to_contain_text(said)
        assert places() == before, typed


def test_advice_is_text_and_never_markup(page):
    prompt_of(page).fill("<img src=x onerror=window.pwned=1> a?")
    expect(page.locator("#hint .repair")).to_contain_text("answer en <img")
    assert page.locator("#hint img").count() == 0
    assert page.evaluate("window.pwned") is None


# --- how tokens are drawn ------------------------------------------------------------


def draw(page: Page, style: str) -> None:
    """Choose how the next token is drawn."""
    page.locator("#sampling").get_by_test_id(f"{style}-radio-label").click()
    radio = page.get_by_role("radio", name=style, exact=True)
    expect(radio).to_be_checked()


def test_only_what_matters_for_a_style_is_shown(page):
    page.get_by_role("button", name="Sampling and length").click()
    seen = {
        "Greedy": [],
        "Temperature": ["Temperature", "Seed", "Best of"],
        "Top-p": ["Temperature", "Top-p", "Seed", "Best of"],
        "Top-k": ["Temperature", "Top-k", "Seed", "Best of"],
    }
    names = page.locator("#sampling [data-testid=block-info]:visible")
    for style in ("Top-p", "Top-k", "Temperature", "Greedy"):
        draw(page, style)
        always = ["Maximum tokens", "The answer begins with"]
        expect(names).to_have_text(["Next token", *seen[style], *always])


def test_the_label_tells_how_tokens_are_drawn(page):
    summary = page.get_by_role("button", name="Sampling and length")
    expect(summary).to_contain_text("greedy, 256")
    summary.click()
    draw(page, "Top-k")
    expect(summary).to_contain_text("top-k 40, 256")
    page.get_by_label("number input for Best of").fill("3")
    page.get_by_label("number input for Maximum tokens").fill("9")
    page.keyboard.press("Tab")
    expect(summary).to_contain_text("top-k 40, best of 3, 9")


def test_settings_that_are_brought_back_are_told_by_the_closed_label(page):
    summary = page.get_by_role("button", name="Sampling and length")
    summary.click()
    draw(page, "Top-k")
    expect(summary).to_contain_text("top-k 40")
    answered(page, "detect cat")
    expect(page.locator("#history summary")).to_have_text("History (1)")
    page.reload()
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    expect(summary).to_contain_text("greedy")
    page.locator("#history summary").click()
    page.locator("#history li button").first.click()
    ready(page)
    expect(summary).to_contain_text("top-k 40")
    expect(page.locator("#sampling [data-testid=block-info]:visible")).to_have_count(0)


def test_each_of_several_tries_can_be_looked_at(page):
    page.get_by_role("button", name="Sampling and length").click()
    draw(page, "Top-p")
    page.get_by_label("number input for Best of").fill("3")
    page.keyboard.press("Tab")
    answered(page, "detect cat")
    tries = page.locator("#scope .tries button")
    expect(tries).to_have_count(3)
    pressed = page.locator("#scope .tries [aria-pressed=true]")
    first = run_of(page)
    for number in (2, 1):
        tries.nth(number).click()
        expect(tries.nth(number)).to_have_attribute("aria-pressed", "true")
        expect(pressed).to_have_count(1)
        ready(page, first)
        first = run_of(page)
        expect(page.locator("#scope .objects .pick")).to_have_count(3)


# --- several models ------------------------------------------------------------------


def test_one_model_needs_no_choice(page):
    expect(page.get_by_label("Model", exact=True)).to_have_count(0)


def test_the_chosen_model_answers_and_its_grid_is_shown(both_page):
    page = both_page
    expect(page.locator("#header .model")).to_have_text("one and twocpu · float32")
    layers = page.locator("#scope .layer input")
    expect(layers).to_have_attribute("max", "3")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="two").click()
    expect(layers).to_have_attribute("max", "2")
    answered(page, "detect cat")
    expect(layers).to_have_attribute("max", "2")
    before = run_of(page)
    page.locator("#scope .alternatives button:visible").first.click()  # of its answer
    ready(page, before)
    expect(layers).to_have_attribute("max", "2")


# --- examples ------------------------------------------------------------------------


def test_an_example_is_asked_when_it_is_clicked(page):
    before = run_of(page)
    page.locator("#examples button").nth(1).click()
    ready(page, before)
    expect(prompt_of(page)).to_have_value(PROMPTS[1])
    expect(page.locator("#scope .chip:not(.said)").first).to_have_text(
        PROMPTS[1].split()[0]
    )


# --- a region ------------------------------------------------------------------------


def test_a_region_that_is_dragged_is_asked_about_and_stays_drawn(page):
    answered(page, "detect cat")
    before = run_of(page)
    tool(page, "region").click()
    expect(tool(page, "region")).to_have_attribute("aria-pressed", "true")
    drag(page, (0.75, 0.25), (0.25, 0.75))  # from any corner
    ready(page, before)
    expect(prompt_of(page)).to_have_value(
        "caption <loc0264><loc0264><loc0776><loc0776>"
    )
    expect(page.get_by_role("radio", name="Region", exact=True)).to_be_checked()
    expect(tool(page, "region")).to_have_attribute("aria-pressed", "false")
    page.locator("#scope .heat input").fill("0")
    framed = heat(page)
    answered(page, "caption en")
    page.mouse.move(5, 5)
    assert heat(page) != framed


def test_a_region_is_drawn_by_keys(page):
    tool(page, "region").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#scope .stage canvas")).to_be_focused()
    page.keyboard.press("ArrowRight")  # brings a box of half the picture
    for key in ["ArrowRight"] * 4 + ["Shift+ArrowDown"] * 8 + ["ArrowDown"]:
        page.keyboard.press(key)
    expect(page.locator("#scope .say")).to_contain_text("From 38 % to 88 % across")
    page.keyboard.press("Enter")
    ready(page)
    expect(prompt_of(page)).to_have_value(
        "caption <loc0264><loc0392><loc1016><loc0904>"
    )


def test_escape_puts_a_tool_away_and_a_click_draws_no_region(page):
    tool(page, "region").click()
    drag(page, (0.5, 0.5), (0.505, 0.505))
    expect(page.locator("#scope .say")).to_contain_text("too small")
    page.keyboard.press("Escape")
    expect(tool(page, "region")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#scope .easel")).to_be_hidden()
    expect(page.locator("#scope .scope")).to_have_attribute("data-phase", "idle")


def test_the_embedded_model_says_what_is_in_a_region(true_page):
    tool(true_page, "region").click()
    drag(true_page, (0.43, 0.71), (0.71, 0.93))
    ready(true_page)
    said = true_page.locator("#scope .chip.said").all_inner_texts()
    assert "fish" in "".join(said)


# --- paint ---------------------------------------------------------------------------


def test_paint_waits_for_an_answer(page):
    expect(tool(page, "paint")).to_be_disabled()
    answered(page, "detect cat")
    expect(tool(page, "paint")).to_be_enabled()


def test_painting_over_the_fish_tells_how_much_less_likely_it_has_become(true_page):
    page = true_page
    answered(page, "detect fish")
    before = run_of(page)
    tool(page, "paint").click()
    page.locator("#scope .easel input").fill("30")
    drag(page, (0.5, 0.82), (0.66, 0.82))
    page.get_by_role("button", name="Ask again").click()
    ready(page, before)
    panel = page.locator("#scope .change")
    expect(panel.locator(".verdict")).to_contain_text("times less likely")
    expect(panel.locator(".older")).to_contain_text("fish")
    expect(panel.locator(".younger")).to_have_text("(nothing)")
    rows = panel.get_by_role("listitem")
    expect(rows).to_have_count(5)
    shares = [text.split("\n")[-1].split("→") for text in rows.all_inner_texts()]
    falls = [
        float(old.strip(" %")) / max(float(now.strip("< %")), 0.1)
        for old, now in shares
    ]
    assert falls[0] > 100 > 2 > falls[-1] == min(falls)  # the greatest change first
    page.click("#run")
    expect(panel).to_be_hidden(timeout=PATIENT)


def test_strokes_are_seen_and_can_be_cleared(page):
    answered(page, "detect cat")
    tool(page, "paint").click()
    page.mouse.move(5, 5)
    clean = heat(page)
    drag(page, (0.3, 0.3), (0.7, 0.4))
    page.mouse.move(5, 5)
    assert heat(page) != clean
    page.locator("#scope .easel").get_by_role("button", name="Clear").click()
    page.mouse.move(5, 5)
    assert heat(page) == clean


def test_patches_are_painted_by_keys(page):
    answered(page, "detect cat")
    before = run_of(page)
    tool(page, "paint").focus()
    page.keyboard.press("Space")
    for key in ("Enter", "ArrowDown", "ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#scope .say")).to_have_text("Painted row 2, column 2.")
    page.keyboard.press("Enter")
    ready(page, before)
    expect(page.locator("#scope .change .verdict")).to_contain_text("likely")


# --- a mask --------------------------------------------------------------------------


def as_mask(page: Page) -> Locator:
    return page.locator("#scope .easel").get_by_role("button", name="As a mask")


def pixel(page: Page, x: float, y: float) -> np.ndarray:
    """What the stage shows at a share of the picture's width and height."""
    heat(page)  # all is drawn
    left, top = spot(page, x, y)
    color = page.locator("#scope .stage canvas").evaluate(
        """(canvas, [left, top]) => {
          const bounds = canvas.getBoundingClientRect();
          const scale = canvas.width / bounds.width;
          const at = [(left - bounds.x) * scale, (top - bounds.y) * scale];
          return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
        }""",
        [left, top],
    )
    return np.array(color[:3], int)


def test_what_is_painted_begins_the_answer_as_a_mask_and_is_drawn(true_page):
    page = true_page
    answered(page, "detect fish")
    before = run_of(page)
    tool(page, "paint").click()
    page.locator("#scope .easel input").fill("20")
    drag(page, (0.5, 0.82), (0.64, 0.82))
    as_mask(page).click()
    ready(page, before)
    expect(prompt_of(page)).to_have_value("segment fish")
    given = page.locator("#scope .chip.given")
    expect(given).to_have_count(20)
    pieces = given.all_inner_texts()
    assert all(piece.startswith("<loc") for piece in pieces[:4])
    assert all(piece.startswith("<seg") for piece in pieces[4:])
    expect(given.last).to_have_attribute("title", re.compile("given, probability"))
    expect(page.locator("#scope .chip.said:not(.given)").first).to_have_text("·fish")
    expect(page.locator("#scope .state")).to_contain_text("begins with your mask")
    note = page.locator("#scope .objects small").first
    expect(note).to_have_text(re.compile(r"yours: IoU 0\.9\d"))
    page.locator("#scope .heat input").fill("0")
    page.mouse.move(5, 5)
    inside, corner = (0.57, 0.82), (0.3, 0.3)
    drawn = [pixel(page, *place) for place in (inside, corner)]
    page.locator("#scope .objects .eye").first.click()
    page.mouse.move(5, 5)
    bare = [pixel(page, *place) for place in (inside, corner)]
    # Okabe and Ito's orange, over what is there
    assert drawn[0] == pytest.approx(0.45 * bare[0] + 0.55 * ORANGE, abs=12)
    assert (drawn[1] == bare[1]).all()
    answered(page, "segment fish")
    expect(note).to_have_text("")
    expect(page.locator("#scope .state")).to_have_text("")


ORANGE = np.array([0xE6, 0x9F, 0x00])


def test_a_mask_is_made_by_keys(true_page):
    page = true_page
    answered(page, "segment fish")
    before = run_of(page)
    tool(page, "paint").focus()
    page.keyboard.press("Space")
    for key in ("Enter", "ArrowDown", "ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    for _ in range(3):  # size of the brush, Clear
        page.keyboard.press("Tab")
    expect(as_mask(page)).to_be_focused()
    page.keyboard.press("Enter")
    ready(page, before)
    expect(page.locator("#scope .chip.given")).to_have_count(20)


def test_a_mask_that_cannot_be_is_told_and_the_paint_stays(page):
    answered(page, "caption en")
    before = run_of(page)
    tool(page, "paint").click()
    as_mask(page).click()
    expect(page.locator("#scope .say")).to_have_text("Paint over something first.")
    drag(page, (0.3, 0.3), (0.7, 0.4))
    as_mask(page).click()
    told = page.get_by_text("ask to detect or segment something first").first
    expect(told).to_be_visible()
    page.get_by_role("button", name="Ask again").click()
    ready(page, before)
    answered(page, "detect cat")
    tool(page, "paint").click()
    drag(page, (0.3, 0.3), (0.7, 0.4))
    as_mask(page).click()
    told = page.get_by_text("fake came without an encoder of masks").first
    expect(told).to_be_visible()
    expect(prompt_of(page)).to_have_value("detect cat")


# --- branches ------------------------------------------------------------------------


def test_an_alternative_is_continued_from(page):
    answered(page, "caption en")
    page.click("#scope .chip[data-key=a3]")
    before = run_of(page)
    page.locator("#scope .alternatives button:visible").first.click()
    ready(page, before)
    said = page.locator("#scope .chip.said")
    expect(said.nth(3)).to_have_text("·a")
    expect(page.locator("#scope .state")).not_to_have_text("stopped")


# --- the end of each way -------------------------------------------------------------


def begin_example(page: Page) -> None:
    page.locator("#examples button").nth(1).click()


def begin_region(page: Page) -> None:
    tool(page, "region").click()
    drag(page, (0.25, 0.25), (0.75, 0.75))


def begin_paint(page: Page) -> None:
    tool(page, "paint").click()
    drag(page, (0.25, 0.25), (0.75, 0.75))
    page.get_by_role("button", name="Ask again").click()


def begin_branch(page: Page) -> None:
    page.click("#scope .chip[data-key=a0]")
    page.locator("#scope .alternatives button:visible").first.click()


WAYS = [begin_example, begin_region, begin_paint, begin_branch]


def begin_run(page: Page) -> None:
    ask(page, "caption en")


def begin_another_example(page: Page) -> None:
    page.locator("#examples button").nth(2).click()


def begin_another_run(page: Page) -> None:
    ask(page, "detect cat")


NEXT = [
    (begin_run, begin_example),
    (begin_run, begin_region),
    (begin_example, begin_run),
    (begin_example, begin_region),
    (begin_example, begin_another_example),
    (begin_run, begin_another_run),
]


def test_what_is_asked_next_ends_the_answer_that_is_running(site, page, monkeypatch):
    endless = [(" word", (0.5, 0.5))] * 512
    for first, then in NEXT:
        before = run_of(page)
        monkeypatch.setattr(site.engine, "_answer", lambda prompt: endless)
        monkeypatch.setattr(site.engine, "delay", 0.3)
        first(page)
        running = "#scope [data-phase=running] .chip[data-key=a3]"
        page.wait_for_selector(running)
        begun = page.locator("#scope .chip:not(.said)").all_inner_texts()
        monkeypatch.undo()
        whole = site.engine.whole
        then(page)
        ready(page, before)
        assert page.locator("#scope .chip:not(.said)").all_inner_texts() != begun
        assert (site.engine.live, site.engine.whole) == (0, whole + 1)


@pytest.mark.parametrize("stop", ["button", "escape"])
def test_every_way_to_ask_can_be_stopped(site, page, stop, monkeypatch):
    for begin in WAYS:
        answered(page, "caption en")
        monkeypatch.setattr(site.engine, "delay", 0.5)
        begin(page)
        page.wait_for_selector("#scope [data-phase=running]")
        if stop == "button":
            page.click("#stop", force=True)  # a busy page is never quite still
        else:
            page.keyboard.press("Escape")
        expect(page.locator("#scope .state")).to_have_text("stopped")
        monkeypatch.undo()
        deadline = time.monotonic() + PATIENT / 1000
        while site.engine.live and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        assert site.engine.live == 0, begin


@pytest.mark.parametrize(
    ("pause", "how"),
    [(0.03, (0.06, 0)), (0, (0.6, 0)), (0.03, (0, 0.6))],
    ids=["the end is late", "all is there before it", "its reader hangs up early"],
)
def test_who_asks_while_the_stream_of_news_ends_is_answered(
    site, page, monkeypatch, pause, how
):
    late, then = how
    monkeypatch.setattr(site.engine, "delay", pause)
    delay(monkeypatch, b'"close_stream"', late, then=then)
    answered(page, "caption en")
    # By a listener that puts it into a State, whose change starts the model at once.
    before = run_of(page)
    begin_branch(page)
    ready(page, before)


def test_every_way_to_ask_tells_when_it_fails(site, page, monkeypatch):
    def broken(*given, **how):
        raise ValueError(f"The model is broken by {begin.__name__}.")

    for begin in WAYS:
        answered(page, "caption en")
        monkeypatch.setattr(site.engine, "stream", broken)
        begin(page)
        told = page.get_by_text(f"broken by {begin.__name__}").first
        expect(told).to_be_visible()
        monkeypatch.undo()
    answered(page, "detect cat")


# --- phones --------------------------------------------------------------------------


def test_tools_are_large_enough_for_a_thumb_and_fit_on_a_phone(phone):
    answered(phone, "detect cat")
    for name in ("region", "paint"):
        box = tool(phone, name).bounding_box()
        assert min(box["width"], box["height"]) >= 32
    tool(phone, "paint").click()
    easel = phone.locator("#scope .easel").bounding_box()
    for each in phone.locator("#scope .easel").get_by_role("button").all():
        box = each.bounding_box()
        assert box["height"] >= 32
        assert box["x"] + box["width"] < easel["x"] + easel["width"] <= 390
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_the_mark_of_an_example_that_fails_fits_its_thumbnail_on_a_phone(phone):
    marks = phone.locator("#examples .fails")
    assert marks.count() > 0
    for mark in marks.all():
        inner = mark.evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert inner[0] <= inner[1]
