"""Tokens, objects and edges, in a viewer that stands alone and is told what to show."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Semaphore
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from fake_engine import FakeEngine
from pages import EXAMPLES, PATIENT, SIDE, heat, opened, ready, spot
from playwright.sync_api import Locator, Page, expect

from vlm.ui import page as pages
from vlm.ui import view
from vlm.ui.asking import Ask, Settings, views
from vlm.ui.scope import Scope
from vlm.ui.store import Store

PICTURE = str(EXAMPLES / "penguins.webp")
THREE = "detect cat ; dog ; ball"
ORANGE, SKY, YELLOW = (230, 159, 0), (86, 180, 233), (240, 228, 66)


class Segmenting(FakeEngine):
    """Answers "segment" with one cat over the whole picture, its mask a ramp."""

    def __init__(self) -> None:
        super().__init__(delay=0)
        self.masks = lambda codes: np.tile(np.linspace(0, 1, 64), (64, 1))

    def _answer(self, prompt: str) -> list[tuple[str, tuple[float, float]]]:
        if not prompt.startswith("segment"):
            return super()._answer(prompt)
        locs = [f"<loc{bin:04d}>" for bin in (0, 0, 1023, 1023)]
        codes = [f"<seg{code:03d}>" for code in range(16)]
        return [(text, (0.5, 0.5)) for text in (*locs, *codes, " cat")]

    def _step(self, index: int, text: str) -> Any:
        step = super()._step(index, text)
        code = text.startswith("<seg") and int(text[4:7])
        return step if code is False else replace(step, seg=code)


class Held(FakeEngine):
    """Says no more tokens than it is let, whatever the time that a reader takes."""

    def __init__(self) -> None:
        super().__init__(delay=0)
        self.let = Semaphore(0)

    def _step(self, index: int, text: str) -> Any:
        self.let.acquire()
        time.sleep(0.02)
        return super()._step(index, text)


class Torn(FakeEngine):
    """Sees each edge where it is, or 84 bins further on."""

    def _step(self, index: int, text: str) -> Any:
        step = super()._step(index, text)
        if step.loc is None:
            return step
        bins = np.zeros(1024, np.float32)
        bins[[step.loc, step.loc + 84]] = 0.6, 0.4
        return replace(step, bins=bins)


@pytest.fixture(scope="module")
def stand() -> Iterator[SimpleNamespace]:
    """A viewer: shows the views that `plays` gives, hears what its buttons ask for."""
    stand = SimpleNamespace(store=Store(2**28), heard=[], plays=None)
    with gr.Blocks() as demo:
        scope = Scope(
            view.empty(FakeEngine().describe()), store=stand.store, elem_id="scope"
        )

        def show() -> Iterator[dict]:
            yield from stand.plays()

        def hear(name: str) -> None:
            def heard(event: gr.EventData) -> None:
                stand.heard.append((name, event._data))

            getattr(scope, name)(heard, None, None)

        demo.load(show, None, scope, show_progress="hidden")
        for name in ("branch", "try"):
            hear(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    colors = pages.FOLDER / "palette.css"
    options = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False}
    demo.launch(server_port=port, css_paths=colors, **options)
    stand.url = f"http://127.0.0.1:{port}"
    yield stand
    demo.close()


@pytest.fixture
def held() -> Iterator[Held]:
    engine = Held()
    yield engine
    engine.let.release(512)


def answer(stand: SimpleNamespace, prompt: str = THREE, **how: Any) -> list[dict]:
    """The views of an answer, which the stand shows from now on."""
    engine = how.pop("engine", None) or FakeEngine(delay=0)
    start, settings = how.pop("start", ""), Settings(**how)
    ask = Ask(engine.name, PICTURE, prompt, start, settings)
    told = list(views(engine, stand.store, ask))
    show(stand, told[-1])
    return told


def show(stand: SimpleNamespace, *told: dict) -> None:
    stand.heard.clear()
    stand.plays = lambda: iter(told)


@pytest.fixture
def fresh(stand, browser, request) -> Iterator[Page]:
    """A page beside the stand; a test opens it when it knows what is to be shown."""
    options = {"width": 1280, "height": 900, **getattr(request, "param", {})}
    answer(stand)
    yield from opened(stand, browser, **options)


@pytest.fixture
def page(fresh: Page) -> Page:
    """A finished answer: a cat, a dog and a ball."""
    ready(fresh)
    return fresh


def reopened(page: Page) -> Page:
    page.reload()
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    ready(page)
    return page


def chip(page: Page, key: str) -> Locator:
    return page.locator(f"#scope .chip[data-key={key}]")


def chosen(page: Page) -> str:
    return page.locator("#scope .stage canvas").get_attribute("data-heat")


def title(page: Page) -> Locator:
    return page.locator("#scope .token h2").first


def pixels(page: Page, x: float, y: float, reach: int = 0) -> np.ndarray:
    """What is shown at a share of the picture's width and height: uint8 [.., 3].

    With a `reach`, of all pixels so far around it too.
    """
    heat(page)  # wait until all is drawn
    seen = page.evaluate(
        """([x, y, reach]) => {
          const canvas = document.querySelector("#scope .stage canvas");
          const box = canvas.getBoundingClientRect();
          const corner = [x - box.left, y - box.top].map(
            (side) => Math.round(side * devicePixelRatio) - reach);
          const size = 2 * reach + 1;
          return [...canvas.getContext("2d").getImageData(...corner, size, size).data];
        }""",
        [*spot(page, x, y), reach],
    )
    return np.array(seen).reshape(-1, 4)[:, :3]


def shows(
    page: Page, x: float, y: float, color: tuple[int, ...], within: int = 8
) -> bool:
    """Whether a colour stands there, or three pixels beside it."""
    off = np.abs(pixels(page, x, y, reach=3) - color).max(axis=1)
    return bool(off.min() <= within)


def rounded(number: float) -> int:
    """Halves go up, as on the page."""
    return math.floor(number + 0.5)


def until(page: Page, claim: Callable[[], Any]) -> None:
    """Wait for something that happens outside of the page."""
    for _ in range(PATIENT // 50):
        if claim():
            return
        page.wait_for_timeout(50)
    pytest.fail("it did not come about")


def without_heat(page: Page) -> None:
    page.locator("#scope .heat input").first.fill("0")


# Choosing


def test_a_chosen_token_lights_the_box_of_its_object(page):
    without_heat(page)
    chip(page, "p2").click()
    bare = heat(page)
    chip(page, "a4").click()  # names the cat
    cat = heat(page)
    chip(page, "a10").click()  # names the dog
    assert len({bare, cat, heat(page)}) == 3
    lit = page.locator("#scope .objects .lit")
    expect(lit).to_have_count(1)
    expect(lit).to_contain_text("dog")
    expect(page.locator("#scope .chip.kin")).to_have_count(5)


def shift_click(page: Page) -> None:
    chip(page, "a1").click()
    chip(page, "a5").click(modifiers=["Shift"])


def drag(page: Page) -> None:
    chip(page, "a5").hover()
    page.mouse.down()
    chip(page, "a1").hover()
    page.mouse.up()


def shift_arrows(page: Page) -> None:
    chip(page, "a1").click()
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")


@pytest.mark.parametrize("span", [shift_click, drag, shift_arrows])
def test_a_span_of_tokens_shows_its_mean(page, span):
    span(page)
    expect(title(page)).to_have_text("Mean of 5 tokens")
    heat(page)
    assert chosen(page) == "a1,a2,a3,a4,a5"
    expect(page.locator("#scope .chip[aria-selected=true]")).to_have_count(5)
    sure = (0.88, 0.74, 0.93, 0.41, 0.96)
    mean = math.prod(sure) ** (1 / 5)
    expect(page.locator("#scope .probability")).to_have_text(f"{mean:.0%}"[:-1] + " %")
    rows = page.locator("#scope .alternatives > div span").all_inner_texts()
    assert rows == [f"{round(100 * p)} %" for p in sure]


def test_a_span_may_begin_in_the_prompt(page):
    chip(page, "p6").click()
    chip(page, "a0").click(modifiers=["Shift"])
    expect(title(page)).to_have_text("Mean of 3 tokens")
    heat(page)
    assert chosen(page) == "p6,p7,a0"


def test_control_click_adds_a_token_and_takes_it_away(page):
    chip(page, "a4").click()
    chip(page, "a10").click(modifiers=["Control"])
    chip(page, "a1").click(modifiers=["Control"])
    heat(page)
    assert chosen(page) == "a1,a4,a10"
    chip(page, "a4").click(modifiers=["Control"])
    heat(page)
    assert chosen(page) == "a1,a10"


def test_all_of_it_goes_by_keyboard(page):
    page.focus("#scope .tokens")
    page.keyboard.press("Home")
    expect(title(page)).to_have_text("Prompt token 1 of 7")
    page.keyboard.press("End")
    expect(title(page)).to_have_text("Token 17 of 17")
    page.keyboard.press("Control+ArrowLeft")  # points
    active = chip(page, "a15").get_attribute("id")
    listbox = page.locator("#scope .tokens")
    expect(listbox).to_have_attribute("aria-activedescendant", active)
    page.keyboard.press("Control+ArrowLeft")
    page.keyboard.press(" ")  # adds
    heat(page)
    assert chosen(page) == "a14,a16"
    page.keyboard.press("Control+ArrowLeft")
    page.keyboard.press("Enter")  # only this
    heat(page)
    assert chosen(page) == "a13"


def test_escape_lets_go_of_the_selection(page):
    chip(page, "a4").click()
    page.keyboard.press("Escape")
    heat(page)
    assert chosen(page) == ""
    expect(page.locator("#scope .chip[aria-selected=true]")).to_have_count(0)
    expect(title(page)).to_have_text("Token")
    page.keyboard.press("ArrowRight")  # and one begins anew
    expect(title(page)).to_have_text("Prompt token 1 of 7")


def test_a_chosen_box_lights_its_tokens_with_their_probabilities(page):
    page.mouse.click(*spot(page, 0.5, 0.68))  # the dog
    expect(title(page)).to_have_text("Object, mean of 5 tokens")
    expect(page.locator("#scope .piece")).to_have_text("dog")
    rows = page.locator("#scope .alternatives > div")
    told = [row.inner_text().split("\n") for row in rows.all()]
    assert [words[0] for words in told][-1] == "·dog"
    assert [words[-1] for words in told] == ["88 %", "74 %", "93 %", "41 %", "96 %"]
    assert page.locator("#scope .branch:visible").count() == 0


def test_a_long_span_fetches_all_of_its_maps(stand, fresh):
    asked: set[str] = set()

    def listen(request: Any) -> None:
        if request.url.endswith("/component_server/"):
            asked.update(json.loads(request.post_data)["data"]["keys"])

    fresh.on("request", listen)
    many = FakeEngine(layers=18, heads=8, grid=32, delay=0)
    answer(stand, "caption forever", engine=many, max_tokens=140)
    reopened(fresh)
    assert "a70" not in asked  # more than are fetched before they are looked at
    fresh.focus("#scope .tokens")
    fresh.keyboard.press("Home")
    fresh.keyboard.press("Shift+End")
    keys = {f"a{i}" for i in range(140)}
    until(fresh, lambda: keys <= asked)
    fresh.remove_listener("request", listen)
    expect(title(fresh)).to_have_text("Mean of 143 tokens")


# Probabilities


def test_probabilities_are_written_as_numbers_when_asked(page):
    number = "node => getComputedStyle(node, '::after').content"
    assert chip(page, "a4").evaluate(number) == "none"
    height = page.locator("#scope .tokens").bounding_box()["height"]
    page.get_by_role("button", name="Probabilities as numbers").click()
    assert chip(page, "a4").evaluate(number) == '"41%"'
    assert chip(page, "p1").evaluate(number) == "none"
    assert page.locator("#scope .tokens").bounding_box()["height"] == height


def test_a_forced_start_is_marked_as_given(stand, fresh):
    answer(stand, start="<loc0512><loc0122>")
    page = reopened(fresh)
    border = "node => getComputedStyle(node).borderTopStyle"
    styles = [chip(page, f"a{i}").evaluate(border) for i in range(4)]
    assert styles == ["dashed", "dashed", "solid", "solid"]
    label = chip(page, "a1").get_attribute("aria-label")
    assert label == "<loc0122>, given, probability 88%"
    assert "given" not in chip(page, "a2").get_attribute("aria-label")
    chip(page, "a1").click()
    role = page.locator("#scope .role")
    expect(role).to_have_text("given, not said, left edge of “cat”")


# Alternatives


def test_pointing_shows_what_else_a_token_might_have_been(page):
    chip(page, "a0").click()
    page.mouse.move(5, 5)
    before = heat(page)
    chip(page, "a4").hover()
    expect(title(page)).to_have_text("Pointed at: token 5 of 17")
    expect(page.locator("#scope .piece")).to_have_text("·cat")
    rows = page.locator("#scope .alternatives > div b")
    expect(rows).to_have_text(["·cat", "·a", "·the", "·pup", "<eos>"])
    assert heat(page) == before and chosen(page) == "a0"
    page.mouse.move(5, 5)
    expect(title(page)).to_have_text("Token 1 of 17")


def test_what_was_not_fetched_comes_when_it_is_pointed_at(stand, fresh):
    many = FakeEngine(layers=18, heads=8, grid=32, delay=0)
    answer(stand, "caption forever", engine=many, max_tokens=90)
    page = reopened(fresh)
    rows = page.locator("#scope .alternatives > div b")
    page.requests.clear()
    chip(page, "a85").hover()
    expect(rows).to_have_text(
        [" word1", "·a", "·the", "·pup", "<eos>"][0:0] or rows_of(85)
    )
    assert [url.split("/")[-2] for url in page.requests] == ["component_server"]


def rows_of(index: int) -> list[str]:
    return [f"·word{index % 7}", "·a", "·the", "·pup", "<eos>"]


@pytest.mark.parametrize("fresh", [{"width": 390, "has_touch": True}], indirect=True)
def test_a_tap_chooses_and_never_only_points(page):
    chip(page, "a4").tap()
    expect(title(page)).to_have_text("Token 5 of 17")
    size = page.locator("#scope .branch:visible").first.bounding_box()
    assert min(size["width"], size["height"]) >= 32
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# Branching


def test_an_alternative_continues_the_answer_with_it(stand, page):
    told = stand.plays().__next__()
    chip(page, "a4").click()
    button = page.get_by_role("button", name='Continue with "pup" instead')
    expect(page.locator("#scope .branch:visible")).to_have_count(3)  # not " cat", <eos>
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.matches('#scope .tokens')")
    until(page, lambda: stand.heard)
    ids = [token["id"] for token in told["tokens"][:4]]
    candidates = stand.store.get(told["run"]).entries["a4"].candidates
    pup = next(each["id"] for each in candidates if each["text"] == " pup")
    assert stand.heard == [("branch", {"run": told["run"], "ids": [*ids, pup]})]


def test_a_token_that_was_not_among_the_likeliest_stands_below_them(stand, fresh):
    *_, last = answer(stand)
    told = json.loads(json.dumps(last))
    told["tokens"][4].update(text=" fox", id=999, probability=0.001)
    show(stand, told)
    page = reopened(fresh)
    chip(page, "a4").click()
    rows = page.locator("#scope .alternatives > div")
    expect(rows.locator("b")).to_have_text(["·cat", "·a", "·the", "·pup", "·fox"])
    expect(rows.last).to_have_class("said")
    expect(page.locator("#scope .branch:visible")).to_have_count(4)


# Edges


def test_an_edge_tells_where_it_is_and_how_sure(stand, fresh):
    answer(stand, engine=Torn(delay=0))
    page = reopened(fresh)
    chip(page, "a9").click()  # right edge of the dog
    mean, deviation = 665 + 0.4 * 84, 84 * math.sqrt(0.6 * 0.4)  # bins
    x, wide, expected = (rounded(b * SIDE / 1024) for b in (665, deviation, mean))
    line = f"x = {x} px ± {wide} px (expected {expected})"
    expect(page.locator("#scope .place")).to_have_text(line)
    chip(page, "a10").click()
    expect(page.locator("#scope .place")).to_have_text("")


EDGES = [(6, "left", 0.5), (7, "top", 0.39), (8, "right", 0.86), (9, "bottom", 0.65)]


@pytest.mark.parametrize(("index", "border", "at"), EDGES)
def test_the_bins_of_an_edge_are_a_ridge_on_its_border(page, index, border, at):
    def has_ridge(along: float) -> bool:
        places = {
            "left": (0.01, along),
            "right": (0.99, along),
            "top": (along, 0.01),
            "bottom": (along, 0.99),
        }
        return shows(page, *places[border], SKY)

    without_heat(page)
    chip(page, "p1").click()
    assert not has_ridge(at)
    chip(page, f"a{index}").click()
    assert has_ridge(at)
    assert not has_ridge(at - 0.3)
    line = {
        "left": (0.7, at),
        "right": (0.2, at),
        "top": (at, 0.3),
        "bottom": (at, 0.2),
    }
    assert pixels(page, *line[border], reach=2).min(axis=1).max() > 220


def test_a_chosen_object_shows_the_ridges_of_its_four_edges(page):
    without_heat(page)
    y1, x1, y2, x2 = (int(1024 * e) / 1024 for e in (0.74, 0.68, 0.9, 0.79))
    for x, y in [(0.006, y1), (x1, 0.006), (0.994, y2), (x2, 0.994)]:
        chip(page, "p1").click()
        before = pixels(page, x, y, reach=3)
        page.locator("#scope .pick").nth(2).click()  # the ball, yellow
        change = pixels(page, x, y, reach=3) - before
        assert (change @ (1, 1, -2)).max() > 60  # more red and green, less blue


# Objects


DOG, CAT = (0.39, 0.7), (0.12, 0.7)  # on the left edges of their boxes


def test_an_eye_hides_one_object_and_all(page):
    without_heat(page)
    chip(page, "p1").click()
    assert shows(page, *DOG, SKY) and shows(page, *CAT, ORANGE)
    eye = page.get_by_role("button", name="Show 2, dog, on the picture")
    expect(eye).to_have_attribute("aria-pressed", "true")
    eye.click()
    expect(eye).to_have_attribute("aria-pressed", "false")
    assert not shows(page, *DOG, SKY) and shows(page, *CAT, ORANGE)
    page.mouse.click(*spot(page, 0.5, 0.68))  # what is hidden cannot be clicked
    heat(page)
    assert chosen(page) == "p1"
    expect(page.locator("#scope .objects .pick")).to_have_count(3)
    whole = page.get_by_role("button", name="Show all on the picture")
    expect(whole).to_have_attribute("aria-pressed", "mixed")
    whole.click()
    assert shows(page, *DOG, SKY)
    whole.click()
    expect(whole).to_have_attribute("aria-pressed", "false")
    assert not shows(page, *DOG, SKY) and not shows(page, *CAT, ORANGE)


def test_a_row_tells_number_label_box_and_confidence(page):
    dog = page.locator("#scope .objects .pick").nth(1)
    badge = "node => getComputedStyle(node.firstChild, '::before').content"
    box = ", ".join(str(rounded(SIDE * b / 1024)) for b in (399, 512, 665, 880))
    sure = (0.88 * 0.74 * 0.93 * 0.41) ** (1 / 4) * 0.96
    expect(dog.locator("span")).to_have_text("dog")
    expect(dog.locator("code")).to_have_text(box)
    expect(dog.locator("b")).to_have_text(f"{sure:.2f}")
    assert "2" in dog.evaluate(badge)


def test_more_objects_than_colours_are_told_apart_by_number(stand, fresh):
    *_, last = answer(stand)
    show(stand, {**last, "objects": [*last["objects"]] * 4})
    page = reopened(fresh)
    badge = "node => getComputedStyle(node, '::before').content + node.style.background"
    badges = page.locator("#scope .pick i")
    expect(badges).to_have_count(12)
    assert len({each.evaluate(badge) for each in badges.all()}) == 12


def test_an_object_that_is_said_again_is_marked_and_faint(stand, fresh):
    *_, last = answer(stand)
    page = reopened(fresh)
    without_heat(page)
    chip(page, "p1").click()
    box_y = 512 / 1024

    def drawn() -> int:
        xs = np.linspace(0.45, 0.64, 30)  # along the top of the dog
        return sum(shows(page, x, box_y, SKY) for x in xs)

    assert drawn() == 30
    again = [dict(thing) for thing in last["objects"]]
    again[1]["duplicate"] = 0
    show(stand, {**last, "objects": again})
    reopened(page)
    without_heat(page)
    chip(page, "p1").click()
    assert drawn() == 0
    note = page.locator("#scope .pick small")
    expect(note).to_have_text(["", "again: same as 1", ""])


def test_masks_are_soft_until_they_are_cut(stand, fresh):
    page = fresh
    expect(page.locator("#scope .threshold")).not_to_be_visible()
    answer(stand, "segment cat", engine=Segmenting())
    reopened(page)
    without_heat(page)
    chip(page, "p1").click()
    page.get_by_role("button", name="Show 1, cat, on the picture").click()
    bare = [blue(page, x) for x in (0.3, 0.7)]
    page.get_by_role("button", name="Show 1, cat, on the picture").click()
    soft = [was - blue(page, x) for x, was in zip((0.3, 0.7), bare)]
    assert 20 < soft[0] < soft[1]
    page.locator("#scope .threshold input").fill("0.5")
    expect(page.locator("#scope .threshold output")).to_have_text("cut at 0.50")
    cut = [was - blue(page, x) for x, was in zip((0.3, 0.7), bare)]
    assert cut[0] == 0
    assert cut[1] > soft[1] + 10


def blue(page: Page, x: float) -> int:
    """Orange takes it away from the sky."""
    return int(pixels(page, x, 0.1)[0, 2])


# What the run took


def test_the_memory_of_the_run_is_told(stand, page):
    told = stand.plays().__next__()
    length = 8 * 8 + 1 + len(told["prompt"]) + len(told["tokens"])
    expect(page.locator("#scope .meta")).to_contain_text(f"cache {length} kB")


def test_each_try_has_a_button_with_its_score(stand, fresh):
    told = answer(stand, "caption en", style="Temperature", tries=3, max_tokens=5)[-1]
    told = {**told, "tries": [dict(one) for one in told["tries"]], "try": 1}
    for number, one in enumerate(told["tries"]):
        one.update(score=-0.21 - number, text=f"answer {number}")
    show(stand, told)
    page = reopened(fresh)
    buttons = page.locator("#scope .tries button")
    expect(buttons).to_have_text(["1−0.21", "2−1.21", "3−2.21"])
    expect(buttons.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(buttons.nth(2)).to_have_attribute("title", "answer 2")
    buttons.nth(2).click()
    until(page, lambda: stand.heard)
    assert stand.heard == [("try", {"run": told["tries"][2]["run"]})]


def test_tries_have_their_place_before_they_come(stand, fresh):
    told = answer(stand, "caption en", style="Temperature", tries=3, max_tokens=5)
    show(stand, told[1])
    fresh.reload()
    buttons = fresh.locator("#scope .tries button")
    expect(buttons).to_have_text(["1…", "2…", "3…"], timeout=PATIENT)
    expect(buttons.first).to_be_disabled()
    answer(stand, "caption en", tries=3)  # greedy gives the same each time
    reopened(fresh)
    expect(fresh.locator("#scope .tries")).not_to_be_visible()


# While tokens stream


def test_selection_focus_and_scroll_survive_the_stream(stand, page, held):
    engine = held
    ask = Ask(engine.name, PICTURE, "caption forever", "", Settings(max_tokens=400))
    stand.plays = lambda: views(engine, stand.store, ask)
    engine.let.release(90)
    page.reload()
    page.wait_for_selector("#scope .chip[data-key=a80]", timeout=PATIENT)
    box = page.locator("#scope .tokens")
    assert box.evaluate("node => node.scrollTop") > 0  # it runs with the answer
    here = box.evaluate("node => (node.scrollTop -= 16)")  # less than a line
    engine.let.release(30)
    page.wait_for_selector("#scope .chip[data-key=a110]", timeout=PATIENT)
    assert box.evaluate("node => node.scrollTop") == pytest.approx(here, abs=1)
    box.evaluate("node => (node.scrollTop = 0)")
    engine.let.release(60)  # they come while the reader clicks
    chip(page, "a2").click()
    page.mouse.move(5, 5)
    before = [chip(page, "a2").bounding_box(), box.bounding_box()]
    page.wait_for_selector("#scope .chip[data-key=a160]", timeout=PATIENT)
    assert page.locator("#scope [data-phase=running]").count() == 1
    assert [chip(page, "a2").bounding_box(), box.bounding_box()] == before
    assert box.evaluate(
        "node => [node.scrollTop, node === document.activeElement]"
    ) == [
        0,
        True,
    ]
    expect(chip(page, "a2")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#scope .chip[aria-selected=true]")).to_have_count(1)
    expect(title(page)).to_contain_text("Token 3 of")
    page.keyboard.press("Escape")  # would stop the model, so it does not let go
    expect(chip(page, "a2")).to_have_attribute("aria-selected", "true")
    assert all(button.is_disabled() for button in page.locator("#scope .branch").all())


def test_cards_keep_their_place_while_objects_come(stand, page):
    engine = FakeEngine(delay=0.05)
    ask = Ask(engine.name, PICTURE, THREE)
    stand.plays = lambda: views(engine, stand.store, ask)
    page.reload()
    page.wait_for_selector("#scope .chip[data-key=a0]", timeout=PATIENT)

    def places() -> list[dict]:
        cards = page.locator("#scope .card, #scope .meta, #scope .alternatives").all()
        return [card.bounding_box() for card in cards]

    before = places()
    for key in ("a5", "a11"):
        page.wait_for_selector(f"#scope .chip[data-key={key}]", timeout=PATIENT)
        assert places() == before
    ready(page)
    assert places() == before
