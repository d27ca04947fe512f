"""Who sees, points or moves differently: axe-core, the keyboard, touch, small and huge.

Every tab is walked, light on a desktop and dark on a phone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_engine import FakeEngine
from pages import PATIENT, answered, ask, opened, serve
from playwright.sync_api import Page, expect

import vlm
from vlm.probes import METHODS, TRIALS
from vlm.ui.models import Models

TINY = Path(__file__).parents[1] / "assets" / "tiny"
GRAVE = ("serious", "critical")
# The places of the Probe tab in the order in which Tab comes to them.
PLACES = {
    "tabs": "[role=tablist]",
    "picture": "#picture",
    "more": "#more",
    "task": "#task",
    "prompt": "#prompt",
    "run": "#run",
    "stop": "#stop",
    "sampling": "#sampling",
    "examples": "#examples",
    "history": "#history",
    "canvas": "#scope .stage canvas",
    "layer": "#scope .layer",
    "heads": "#scope .heads",
    "bar": "#scope .bar",
    "tokens": "#scope .tokens",
    "chosen token": "#scope .token",
    "objects": "#scope .found",
    "all heads": "#scope .sheet",
    "ways": "#scope .explain",
    "tests": "#scope .trial",
}
# Where the focus is, and whether one sees it: on the element or on what holds it.
FOCUS = """places => {
  const at = document.activeElement;
  const seen = (each) => {
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(each);
    const outlined = outlineStyle !== "none" && outlineWidth !== "0px";
    return outlined || boxShadow.includes("3px");
  };
  const near = [at, at.parentElement, at.parentElement.parentElement];
  const name = Object.keys(places).find((name) => at.closest(places[name]));
  return [name || at.outerHTML.slice(0, 120), near.some(seen)];
}"""
SHIFTS = """() => new Promise((done) => {
  let sum = 0;
  const observer = new PerformanceObserver((list) => {
    for (const each of list.getEntries()) if (!each.hadRecentInput) sum += each.value;
    done(sum);
  });
  observer.observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 500);
})"""
# Controls that a finger misses, without links in running text.
CONTROLS = "button, input, select, textarea, summary, .chip"
SMALL = """controls => [...document.querySelectorAll(controls)]
  .map((each) => ["radio", "checkbox"].includes(each.type) ? each.parentElement : each)
  .filter((each) => each.checkVisibility({ visibilityProperty: true }))
  .map((each) => [each, each.getBoundingClientRect()])
  .filter(([, box]) => box.width > 1 && Math.min(box.width, box.height) < 31.5)
  .map(([each, box]) => `${box.width} x ${box.height}: ${each.outerHTML.slice(0, 99)}`)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine()) as served:
        yield served


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def themed(site, browser, theme) -> Iterator[Page]:
    """Light on a desktop, dark on a phone."""
    size = {"width": 1280 if theme == "light" else 390, "height": 860}
    yield from opened(site, browser, **size, color_scheme=theme)


@pytest.fixture(scope="module")
def tiny() -> Iterator[SimpleNamespace]:
    """A model that can be asked why."""
    with serve(vlm.load(TINY, device="cpu")) as served:
        yield served


@pytest.fixture
def tried(tiny, browser) -> Iterator[Page]:
    """No colour is on its way to another when the theme is changed."""
    how = {"has_touch": True, "reduced_motion": "reduce"}
    yield from opened(tiny, browser, width=1280, height=860, **how)


@pytest.fixture(params=[(360, 740), (1280, 860), (3840, 2160)], ids=str)
def sized(site, browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, height = request.param
    yield from opened(site, browser, width=width, height=height)


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


@pytest.fixture
def still(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860, reduced_motion="reduce")


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=390, height=844, has_touch=True)


def test_no_tab_has_a_grave_finding(themed, theme):
    dark = themed.evaluate("document.body.classList.contains('dark')")
    assert dark is (theme == "dark")
    found = {"Probe, nothing asked": grave(themed)}
    answered(themed, "detect cat ; dog ; ball")
    themed.click("#sampling button")
    found["Probe, answered"] = grave(themed)
    for name in tabs(themed):
        found[name] = grave(themed)
        if name == "Compare":
            themed.click("#compare-run")
            # Both viewers, and what differs.
            done = themed.locator("#compare [data-phase=done]")
            expect(done).to_have_count(3, timeout=PATIENT)
            found["Compare, answered"] = grave(themed)
    assert found == dict.fromkeys(found, [])


def test_no_explanation_and_no_test_has_a_grave_finding(tried):
    answered(tried, "detect fish")
    tried.click("#scope .chip[data-key=a1]")
    tried.click("#scope .why")
    ways = tried.locator("#scope .ways button:enabled")
    expect(ways).to_have_count(len(METHODS), timeout=PATIENT)
    tried.click("#scope [data-way=relevancy]")
    found = {"explained": grave(tried)}
    for name in TRIALS:
        tried.click(f"#scope .kinds [data-kind={name}]")
        tried.click("#scope .try")
        idle = "!document.querySelector('#scope .scope').dataset.busy"
        tried.wait_for_function(idle, timeout=PATIENT)
        found[name] = grave(tried, "#scope .trial")
        tried.set_viewport_size({"width": 390, "height": 860})
        tried.evaluate("document.body.classList.add('dark')")
        found[f"{name}, small"] = tried.evaluate(SMALL, CONTROLS)
        found[f"{name}, dark"] = grave(tried, "#scope .trial")
        tried.evaluate("document.body.classList.remove('dark')")
        tried.set_viewport_size({"width": 1280, "height": 860})
    assert found == dict.fromkeys(found, [])


def test_the_open_menu_has_no_grave_finding(browser, theme):
    """With its list, a loading under way, and one that has failed."""
    waiting = threading.Event()

    def load(source: str, *, progress: Callable[[str], None]) -> FakeEngine:
        while source == "slow" and not waiting.wait(0.05):
            progress("Downloading: 1.00 of 4.00 GB")
        if source == "broken":
            raise ValueError("broken is broken. Choose another.")
        return FakeEngine(name=source)

    models = Models(load, ["first"], switching=True)
    models.wait()
    size = {"width": 1280, "height": 860}
    with serve(models) as site:
        for page in opened(site, browser, **size, color_scheme=theme):
            page.click("#header button.model")
            expect(page.locator("#header li").first).to_be_visible()
            found = {"open": grave(page)}
            for source, line in (("broken", ".error"), ("slow", ".loading")):
                page.fill("#menu-text", source)
                page.click("#header .load")
                shown = page.locator(f"#header {line}")
                expect(shown).to_contain_text(source, timeout=PATIENT)
                found[source] = grave(page)
            page.fill("#menu-text", "paligemma2")
            found["filtered"] = grave(page)
            waiting.set()
    assert found == dict.fromkeys(found, [])


def test_a_grave_finding_would_be_found(page):
    pale = "document.querySelector('#run').style = 'color: #4060d8; transition: none'"
    page.evaluate(pale)  # at once, and not by and by
    expect(page.locator("#run")).to_have_css("color", "rgb(64, 96, 216)")
    assert [each.split(":")[0] for each in grave(page)] == ["color-contrast"]


def test_the_tab_key_walks_the_page_in_its_order_and_is_seen(page):
    answered(page, "detect cat ; dog ; ball")
    page.click("#sampling button")
    page.get_by_text("Top-p", exact=True).first.click()
    page.mouse.click(640, 5)
    stops, unseen = [], []
    for _ in range(120):
        page.keyboard.press("Tab")
        place, marked = page.evaluate(FOCUS, PLACES)
        stops += [place] if not stops or stops[-1] != place else []
        unseen += [] if marked else [place]
        if place == "tests":
            break
    assert [place for place in stops if place in PLACES] == list(PLACES)
    assert unseen == []


def test_escape_stops_the_model_from_anywhere(site, page):
    places = ["#prompt textarea", "#examples button"]
    for place in [*places, "#scope .stage canvas", "#scope .tokens"]:
        ask(page, "caption forever")
        running = "#scope [data-phase=running] .chip[data-key=a3]"
        page.wait_for_selector(running)
        page.locator(place).first.focus()
        page.keyboard.press("Escape")
        stopped = page.locator("#scope [data-phase=stopped]")
        expect(stopped).to_be_visible(timeout=PATIENT)


def test_who_wants_no_motion_gets_none(still):
    ask(still, "caption forever")
    still.wait_for_selector("#scope .chip[data-key=a3]")
    moving = "document.getAnimations().filter((each) => each.playState === 'running')"
    assert still.evaluate(f"{moving}.map((each) => each.animationName)") == []
    ready = """[...document.querySelectorAll("*")].filter(
      (each) => getComputedStyle(each).transitionDuration !== "0s").length"""
    assert still.evaluate(ready) == 0  # one that would move when something changes
    still.keyboard.press("Escape")
    expect(still.locator("#scope [data-phase=stopped]")).to_be_visible(timeout=PATIENT)


def test_a_finger_hits_every_control_of_the_phone(phone):
    answered(phone, "detect cat ; dog ; ball")
    phone.click("#sampling button")
    small = {"Probe": phone.evaluate(SMALL, CONTROLS)}
    for name in tabs(phone):
        small[name] = phone.evaluate(SMALL, CONTROLS)
    assert small == dict.fromkeys(small, [])


def test_no_width_scrolls_sideways_and_nothing_jumps(sized):
    assert sized.evaluate(SHIFTS) <= 0.05
    width = sized.viewport_size["width"]
    scrolled = "document.documentElement.scrollWidth"
    answered(sized, "detect cat ; dog ; ball")
    assert sized.evaluate(scrolled) == width
    for name in tabs(sized):
        assert sized.evaluate(scrolled) == width, name


def tabs(page: Page) -> Iterator[str]:
    """Opens one tab after the other, from the second on, and says its name."""
    for tab in page.get_by_role("tab").all()[1:]:
        tab.click()
        shown = page.locator("[role=tabpanel]").filter(visible=True)
        expect(shown.locator("h2").first).to_be_visible()
        yield tab.inner_text()


def grave(page: Page, part: str = "body") -> list[str]:
    """What axe-core calls serious or critical: the rule, where, and why."""
    found = Axe().run(page, part, {"resultTypes": ["violations"]}).response
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]
