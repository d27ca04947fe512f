"""Putting a token to the test, on the page; and what the server makes of requests."""

from __future__ import annotations

import re
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
    opened,
    ready,
    serve,
    thumb,
)
from PIL import Image
from playwright.sync_api import Page, expect

import vlm
from vlm.probes import METHODS, TRIALS, Asked, image_attention
from vlm.probes.methods import recorded
from vlm.ui import again, trying
from vlm.ui.asking import Ask, views
from vlm.ui.explaining import explained
from vlm.ui.scope import Scope
from vlm.ui.store import Store
from vlm.ui.trying import passes, tried

TINY = Path(__file__).parents[1] / "assets" / "tiny"
PENGUINS = EXAMPLES / "penguins.webp"
PROMPT, TOKEN = "detect fish", 1


@pytest.fixture(scope="module")
def engine() -> vlm.Engine:
    return vlm.load(TINY)


@pytest.fixture(scope="module")
def asked(engine) -> Asked:
    image = Image.open(PENGUINS)
    ids = tuple(step.token for step in engine.stream(image, PROMPT))
    return Asked(engine, image, PROMPT, ids)


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


def chosen(page: Page, kind: str) -> None:
    """The second token of an answer, and one of the tests."""
    answered(page, PROMPT)
    page.click(f"#scope .chip[data-key=a{TOKEN}]")
    page.click(f"#scope .kinds [data-kind={kind}]")


def press(page: Page) -> None:
    page.click("#scope .try")
    done(page)


def done(page: Page) -> None:
    expect(page.locator("#scope .try")).to_be_disabled()
    # What a test before it said last may come late, and looks like an end for a moment.
    ended = """() => {
      const { dataset } = document.querySelector("#scope .scope");
      const button = document.querySelector("#scope .try");
      return !dataset.busy && button.disabled && button.textContent === "Test";
    }"""
    page.wait_for_function(ended, timeout=PATIENT)


FRAME = "() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"


def texts(page: Page, selector: str) -> list[str]:
    """As they are once the next frame is drawn."""
    page.evaluate(FRAME)
    return page.locator(f"#scope .trial {selector}").all_inner_texts()


def end(name: str, asked: Asked, **options) -> dict:
    *_, last = TRIALS[name].run(asked, TOKEN, **options)
    return last.found


def map_shown(asked: Asked) -> torch.Tensor:
    """What lies on the picture at first: the mean of heads of the third layer."""
    return image_attention(recorded(asked), TOKEN)[2].mean(0)


def map_sent(page: Page) -> torch.Tensor:
    """The map that goes along when the test is asked for. It is then done."""
    with page.expect_request(lambda request: "queue/join" in request.url) as asking:
        # The first of two: it ends what was running.
        with page.expect_request(
            lambda request: '"trial"' in (request.post_data or "")
        ) as second:
            page.click("#scope .try")
    assert asking.value
    done(page)
    return torch.tensor(second.value.post_data_json["event_data"]["heat"])


def spaced(share: float) -> str:
    """As the page writes it."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f} %"


def signed(value: float) -> str:
    digits = f"{abs(value):.2f}"
    return f"{'' if not float(digits) else '−' if value < 0 else '+'}{digits}"


def test_each_layer_shows_what_the_lens_reads_and_where_attention_lay(page, asked):
    chosen(page, "layers")
    subject = page.locator("#scope .subject")
    expect(subject).to_contain_text(f"token {TOKEN + 1} of {len(asked.answer)}")
    press(page)
    found = end("layers", asked)
    names = ["embedding", "layer 0", "layer 1", "layer 2", "layer 3"]
    assert texts(page, ".lens > div > b") == names
    shown = texts(page, ".lens > div > span")
    assert shown == [spaced(chance) for chance in found["probability"]]
    pieces = texts(page, ".lens code > span > b")
    assert pieces == [piece["text"] for pieces in found["top"] for piece in pieces]
    labels = page.locator("#scope .lens .balance").evaluate_all(
        "all => all.map((each) => each.ariaLabel)"
    )
    assert labels[0] == "no attention yet"
    for label, row in zip(labels[1:], found["balance"], strict=True):
        assert label == ", ".join(
            f"{name} {spaced(part)}"
            for name, part in zip(("image", "bos", "prompt", "answer"), row)
        )


@pytest.mark.parametrize("rows", ["answer", "all"])
def test_what_is_cut_and_every_head_show_what_the_knockout_gives(page, asked, rows):
    chosen(page, "knockout")
    page.click(f"#scope .trial [data-rows={rows}]")
    press(page)
    (thing,) = vlm.objects(
        list(asked.engine.stream(asked.image, PROMPT)), asked.image.size
    )
    box = tuple(round(edge, 1) / 512 for edge in thing.box)
    found = end("knockout", asked, heat=map_shown(asked), box=box, rows=rows)
    before = found["probability"]

    def words(change: float) -> str:
        after = min(1, before * 2.718281828459045**change)
        return f"{spaced(before)} → {spaced(after)} ({signed(change)})"

    assert texts(page, ".cuts > div > span") == [
        words(each["change"]) for each in found["cuts"]
    ]
    assert texts(page, ".cuts small") == [
        f"{each['count']} patches; as many random: {signed(each['random'])}"
        for each in found["cuts"]
    ]
    cells = page.locator("#scope .headless [role=gridcell]")
    for at, change in enumerate(sum(found["heads"], [])):
        name = f"layer {at // 4}, head {at % 4}: {words(change)}"
        expect(cells.nth(at)).to_have_attribute("aria-label", name)
    colours = cells.evaluate_all(
        """all => all.map((each) => [
          each.classList.contains("falls"),
          parseFloat(each.style.getPropertyValue("--part")),
        ])"""
    )
    changes = sum(found["heads"], [])
    most = max(map(abs, changes))
    for (falls, part), change in zip(colours, changes, strict=True):
        assert falls is (change < 0)
        assert part == pytest.approx(100 * abs(change) / most, abs=0.6)


def test_curves_show_what_deletion_and_insertion_give(page, asked):
    chosen(page, "faithfulness")
    expect(page.locator("#scope .trial .told-of").nth(2)).to_contain_text("layer 2")
    heat = map_sent(page)
    # Kept in a byte for each head, so the order of faint patches is the map's own.
    torch.testing.assert_close(heat, map_shown(asked), atol=2e-3, rtol=0)
    found = end("faithfulness", asked, heat=heat)
    for way in ("deletion", "insertion"):
        for name in ("heat", "random"):
            area = f"[data-chart={way}] .of-{name}"
            assert texts(page, area) == [f"{found[way][name]['area']:.3f}"]
            line = page.locator(f"#scope [data-chart={way}] .by-{name}")
            points = [
                [float(number) for number in point.split(",")]
                for point in line.get_attribute("points").split()
            ]
            left, right = points[0][0], points[-1][0]
            assert (left, right) == (34, 232)
            chances = [1 - (y - 8) / 120 for _, y in points]
            known = found[way][name]["probabilities"]
            assert chances == pytest.approx(known, abs=0.001)


def test_each_way_is_shown_beside_itself_on_shuffled_weights(page, asked):
    chosen(page, "shuffled")
    assert texts(page, ".alike > div > span") == ["–"] * len(METHODS)
    press(page)
    found = end("shuffled", asked)["ways"]
    assert texts(page, ".alike b") == [each["title"] for each in found]
    shown = texts(page, ".alike > div > span")
    assert shown == [signed(each["alike"]) for each in found]
    for at, each in enumerate(found, start=1):
        row = f"#scope .alike > div:nth-child({at})"
        for side, name in ((1, "own"), (2, "shuffled")):
            colours = thumb(page, row, 8, place=f".thumb:nth-child({side})")
            hottest = torch.tensor(each[name]).argmax().item()
            assert colours[:, 1].argmax() == hottest, (each["name"], name)


def test_what_noise_takes_and_states_bring_back_is_shown(page, asked):
    chosen(page, "patching")
    expect(page.locator("#scope .places > div")).to_have_count(2 + 3 + TOKEN)
    press(page)
    found = end("patching", asked, layer=2)
    shown = texts(page, ".mended > div > span")
    assert shown[::2] == [signed(score) for score in found["image"]]
    assert shown[1::2] == [signed(score) for score in found["last"]]
    scores = [signed(each["score"]) for each in found["positions"]]
    assert texts(page, ".places > div > span") == scores
    change = f"{spaced(found['clean'])} → {spaced(found['corrupt'])}"
    told = page.locator("#scope [data-trial=patching] .told-of")
    expect(told).to_have_text(f"With noise on the image: {change}")
    page.locator("#scope .at-layer input").fill("-1")
    expect(told).to_have_text("")  # that has not been asked yet
    press(page)
    found = end("patching", asked, layer=-1)
    scores = [signed(each["score"]) for each in found["positions"]]
    assert texts(page, ".places > div > span") == scores


def test_what_was_painted_over_can_be_put_back(page):
    chosen(page, "patching")
    before = page.locator("#scope [data-by=before]")
    expect(before).to_be_disabled()
    run = page.locator("#scope .scope").get_attribute("data-ready")
    page.click("#scope [data-tool=paint]")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Space", "Enter"):
        page.keyboard.press(key)
    ready(page, run)
    page.click("#scope .chip[data-key=a0]")
    before.click()
    expect(before).to_have_attribute("aria-pressed", "true")
    press(page)
    told = page.locator("#scope [data-trial=patching] .told-of")
    expect(told).to_contain_text("On the picture before: ")


def test_results_belong_to_a_token_a_choice_and_a_map(page):
    chosen(page, "knockout")
    press(page)
    shown = texts(page, ".cuts > div > span")
    page.click("#scope .trial [data-rows=text]")
    assert set(texts(page, ".cuts > div > span")) == {"–"}
    expect(page.locator("#scope .try")).to_be_enabled()
    page.click("#scope .trial [data-rows=answer]")
    assert texts(page, ".cuts > div > span") == shown
    expect(page.locator("#scope .try")).to_be_disabled()
    # Of another map it can be asked again; till then the words say of which it is.
    page.focus("#scope .tokens")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#scope .try")).to_be_enabled()
    assert texts(page, ".cuts > div > span") == shown
    page.click("#scope .chip[data-key=a2]")
    assert set(texts(page, ".cuts > div > span")) == {"–"}
    page.click("#scope .chip[data-key=p1]")
    expect(page.locator("#scope .try")).to_be_disabled()
    expect(page.locator("#scope .tells")).to_contain_text("Choose a token")


def take_long(monkeypatch) -> None:
    """Of a test's passes each one, so that it still runs when it is to be ended."""

    def slow(*given, **options):
        for news in passes(*given, **options):
            time.sleep(0.2)
            yield news

    monkeypatch.setattr(trying, "passes", slow)


def test_one_sees_how_far_it_is_and_escape_ends_it(page, monkeypatch):
    chosen(page, "faithfulness")
    take_long(monkeypatch)
    page.click("#scope .try")
    button = page.locator("#scope .try")
    expect(button).to_have_text(re.compile(r"^\d+ of 36$"))
    page.keyboard.press("Escape")
    expect(button).to_have_text("Test")
    expect(button).to_be_enabled()
    assert texts(page, "[data-chart=insertion] .of-random") == ["–"]
    chosen_chip = page.locator(f"#scope .chip[data-key=a{TOKEN}]")
    expect(chosen_chip).to_have_attribute("aria-selected", "true")
    monkeypatch.undo()
    press(page)
    assert texts(page, "[data-chart=insertion] .of-random") != ["–"]


def test_news_that_comes_late_does_not_undo_a_stop(page, monkeypatch):
    delay(monkeypatch, b'"process_generating"', 0.3)
    chosen(page, "faithfulness")
    take_long(monkeypatch)
    button = page.locator("#scope .try")
    button.click()
    expect(button).to_have_text(re.compile(r"^\d+ of 36$"))
    page.keyboard.press("Escape")
    expect(button).to_have_text("Test")
    page.wait_for_timeout(1000)  # what was on its way has come
    expect(button).to_have_text("Test")
    monkeypatch.undo()
    press(page)


def test_a_question_ends_the_test_and_an_explanation_does(page, monkeypatch):
    chosen(page, "faithfulness")
    take_long(monkeypatch)
    page.click("#scope .try")
    running = re.compile(r"^\d+ of 36$")
    expect(page.locator("#scope .try")).to_have_text(running, timeout=PATIENT)
    page.click("#scope .why")
    ways = page.locator("#scope .ways button:enabled")
    expect(ways).to_have_count(9, timeout=PATIENT)
    expect(page.locator("#scope .try")).to_be_enabled()
    before = page.locator("#scope .scope").get_attribute("data-ready")
    page.click("#scope .try")
    ask(page, "caption en")
    ready(page, before)
    page.click("#scope .chip[data-key=a1]")
    assert set(texts(page, ".of-heat")) == {"–"}
    monkeypatch.undo()
    press(page)


def test_the_map_of_a_way_is_tested_when_it_lies_on_the_picture(page, asked):
    chosen(page, "faithfulness")
    page.click("#scope .why")
    ways = page.locator("#scope .ways button:enabled")
    expect(ways).to_have_count(9, timeout=PATIENT)
    page.click("#scope [data-way=gradient]")
    told = page.locator("#scope [data-trial=faithfulness] .told-of")
    expect(told).to_have_text("Map: Gradient × attention")
    press(page)
    heat = vlm.probes.METHODS["gradient"].heat(asked, [TOKEN])
    area = end("faithfulness", asked, heat=heat)["deletion"]["heat"]["area"]
    shown = texts(page, "[data-chart=deletion] .of-heat")
    assert [float(each) for each in shown] == pytest.approx([area], abs=2e-3)


def test_the_keyboard_walks_tests_and_heads(page):
    chosen(page, "layers")
    page.focus("#scope .kinds [data-kind=layers]")
    page.keyboard.press("ArrowRight")
    knockout = page.locator("#scope .kinds [data-kind=knockout]")
    expect(knockout).to_be_focused()
    expect(knockout).to_have_attribute("aria-pressed", "true")
    press(page)
    page.locator("#scope .headless [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    cell = page.locator("#scope .headless > div").nth(1).locator("span").nth(1)
    expect(cell).to_be_focused()
    reading = page.locator("#scope .reading-of")
    expect(reading).to_have_text(re.compile(r"^layer 1, head 1: .+→"))
    assert page.locator("#scope .headless [tabindex='0']").count() == 1


def test_nothing_jumps_when_results_come(page):
    chosen(page, "layers")
    for kind in TRIALS:
        page.click(f"#scope .kinds [data-kind={kind}]")
        page.mouse.move(2, 2)
        before = heights(page)
        press(page)
        assert heights(page) == before, kind


def heights(page: Page) -> list[list[int]]:
    """Of what a test's card is made of, on a phone and as wide as it was."""
    found = []
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 1100})
        found += page.evaluate("""() => ["trial", "words", "set", "halves"].map(
          (name) => [...document.querySelectorAll(`#scope .${name}`)].map(
            (each) => Math.round(each.getBoundingClientRect().height)))""")
        assert page.evaluate("document.documentElement.scrollWidth") == width
    return found


def test_a_model_that_cannot_be_tested_says_so_and_the_page_goes_on(fake_page):
    answered(fake_page, "detect cat")
    fake_page.click("#scope .chip[data-key=a0]")
    fake_page.click("#scope .try")
    words = fake_page.get_by_text("cannot be asked why").first
    expect(words).to_be_visible()
    expect(fake_page.locator("#scope .try")).to_be_enabled()
    answered(fake_page, "caption en")


def test_a_saved_page_has_no_test(page, tmp_path):
    answered(page, PROMPT)
    run = page.evaluate("document.querySelector('#scope .scope').dataset.ready")
    assert run
    page.click("#scope .save")
    with page.expect_download() as saved:
        page.click("#scope [data-save=html]")
    saved.value.save_as(tmp_path / "run.html")
    page.goto((tmp_path / "run.html").as_uri())
    expect(page.locator(".chip").first).to_be_visible()
    expect(page.locator(".trial")).to_be_hidden()
    page.requests.clear()


# --- the server ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(engine) -> tuple[Store, str]:
    store = Store(2**24)
    (*_, end) = views(engine, store, Ask("tiny", str(PENGUINS), PROMPT))
    return store, end["run"]


HEAT = [[1.0] * 8] * 8


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"trial": "magic"}, "only layers, knockout, faithfulness, patching, shuffled"),
        ({"trial": ["layers"]}, "no such test"),
        ({"token": 99}, "Choose a token"),
        ({"token": True}, "Choose a token"),
        ({"token": -1}, "Choose a token"),
        ({"token": None}, "Choose a token"),
        ({"run": "guess"}, "no longer kept"),
        ({"run": {}}, "no longer kept"),
        ({"trial": "knockout", "heat": None}, "8 rows of 8"),
        ({"trial": "knockout", "heat": HEAT[:7]}, "8 rows of 8"),
        ({"trial": "faithfulness", "heat": [[1.0] * 7] * 8}, "none below zero"),
        ({"trial": "faithfulness", "heat": [[-1.0] * 8] * 8}, "none below zero"),
        ({"trial": "faithfulness", "heat": [[float("nan")] * 8] * 8}, "none below"),
        ({"trial": "faithfulness", "heat": [["1"] * 8] * 8}, "none below zero"),
        ({"trial": "knockout", "heat": HEAT, "rows": "some"}, "rows are 'some'"),
        ({"trial": "knockout", "heat": HEAT, "rows": ["all"]}, "rows are"),
        ({"trial": "knockout", "heat": HEAT, "box": [0, 0, 1]}, "four edges"),
        ({"trial": "knockout", "heat": HEAT, "box": [0, 0, 2, 1]}, "leaves"),
        ({"trial": "knockout", "heat": HEAT, "box": [0.5, 0, 0.5, 1]}, "empty"),
        ({"trial": "patching", "layer": 4}, "from -1 to 3"),
        ({"trial": "patching", "layer": "last"}, "from -1 to 3"),
        ({"trial": "patching", "layer": 1, "before": True}, "Paint a part"),
    ],
)
def test_what_cannot_be_tested_is_told(engine, kept, sent, words):
    store, run = kept
    data = {"run": run, "token": TOKEN, "trial": "layers", **sent}
    with pytest.raises(ValueError, match=words):
        next(tried({"tiny": engine}, store, data))


@pytest.mark.parametrize("data", [None, [], "run", {}])
def test_what_is_no_request_is_told(engine, kept, data):
    with pytest.raises(ValueError, match="no longer kept"):
        next(tried({"tiny": engine}, kept[0], data))


def test_a_run_that_has_not_ended_is_not_tested(engine):
    store = Store(2**24)
    run = store.open(Ask("tiny", str(PENGUINS), PROMPT))
    with pytest.raises(ValueError, match="no end yet"):
        next(tried({"tiny": engine}, store, {"run": run}))


def test_what_was_painted_over_spoils_the_pass_with_the_picture_before(engine, kept):
    store, run = kept
    strokes = [{"x": 0.5, "y": 0.5, "r": 0.1}]
    wanted = again.painted_over(store, {"run": run, "strokes": strokes})
    (*_, now) = wanted.views({"tiny": engine}, store)
    data = {"run": now["run"], "token": 0, "trial": "patching", "layer": 0}
    (*_, told) = tried({"tiny": engine}, store, {**data, "before": True})
    ids = tuple(token["id"] for token in now["tokens"])
    painted = Image.open(store.get(now["run"]).ask.picture)
    asked = Asked(engine, painted, PROMPT, ids)
    other = Image.open(PENGUINS)
    *_, last = TRIALS["patching"].run(asked, 0, layer=0, other=other)
    assert told["found"] == last.found
    (*_, noise) = tried({"tiny": engine}, store, data)
    assert noise["found"]["corrupt"] != told["found"]["corrupt"]


def test_the_picture_before_that_is_no_longer_kept_is_told(engine, kept):
    store, run = kept
    wanted = again.painted_over(store, {"run": run, "strokes": [dict(x=0, y=0, r=0.1)]})
    (*_, now) = wanted.views({"tiny": engine}, store)
    store.get(now["run"]).view["before"]["run"] = "dropped"
    data = {"run": now["run"], "token": 0, "trial": "patching", "layer": 0}
    with pytest.raises(ValueError, match="no longer kept"):
        next(tried({"tiny": engine}, store, {**data, "before": True}))


def test_the_viewer_is_told_all_words():
    told = Scope(None, store=Store(0)).props["trials"]
    assert [each["name"] for each in told["each"]] == list(TRIALS)
    assert all(each["shows"] and each["hides"] for each in told["each"])


def test_a_slow_way_tells_its_part(engine, kept, monkeypatch):
    monkeypatch.setattr("vlm.ui.explaining.PAUSE", 0)
    store, run = kept
    news = list(explained({"tiny": engine}, store, {"run": run, "tokens": [0]}))
    parts = [each["part"] for each in news if each["part"]]
    assert len(parts) == 48 and parts == sorted(parts)  # 49 squares, the last is whole
    assert {len(each["heats"]) for each in news if each["part"]} == {8}
