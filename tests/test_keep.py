"""What is taken away from the page, and what comes back to it."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from gradio.utils import get_upload_folder
from pages import EXAMPLES, PATIENT, PICTURE, answered, ask, heat, opened, serve
from PIL import Image, ImageChops
from playwright.sync_api import Page, expect

from vlm.ui import export
from vlm.ui.asking import Ask, Settings, views
from vlm.ui.examples import listed
from vlm.ui.keep import restored
from vlm.ui.scope import FOLDER, SCRIPTS, STYLES, joined
from vlm.ui.store import Store

HOSTILE = "</script><img src=x onerror=window.pwned=1><!--"
SETTINGS = Settings(style="Top-k", top_k=7, seed=11, tries=2, max_tokens=99)
ASKED = {
    "model": "fake",
    "prompt": "detect cat",
    "start": "",
    "settings": {"style": "Top-k", "top_k": 7},
    "picture": {"example": "meadow.webp"},
}
VIEWER = {
    "markup": (FOLDER / "scope.html").read_text("utf-8"),
    "style": joined(STYLES),
    "script": joined(SCRIPTS),
}


class Hostile(FakeEngine):
    """Finds a thing that is named like markup."""

    def _answer(self, prompt):
        if HOSTILE not in prompt:
            return super()._answer(prompt)
        locs = ("<loc0100>", "<loc0200>", "<loc0500>", "<loc0600>")
        return [(text, (0.4, 0.3)) for text in (*locs, f" {HOSTILE}")]


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(Hostile(delay=0.01)) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    rights = ["clipboard-read", "clipboard-write"]
    yield from opened(site, browser, width=1280, height=860, permissions=rights)


@pytest.fixture
def elsewhere(site, browser) -> Iterator[Page]:
    """Another reader's browser."""
    yield from opened(site, browser, width=1280, height=860)


@pytest.fixture
def offline(browser) -> Iterator[Page]:
    """A browser with no network at all, for files."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_offline(True)
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda line: line.type == "error" and errors.append(line.text))
    yield page
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def finished() -> SimpleNamespace:
    """A run of the library, with its store."""
    store = Store(10**8)
    asked = Ask("fake", str(EXAMPLES / "penguins.webp"), "detect cat", "", SETTINGS)
    *_, last = views(FakeEngine(delay=0), store, asked)
    return SimpleNamespace(store=store, run=last["run"], view=last)


def test_a_run_as_data_has_all_maps_and_no_place_of_a_file(finished):
    reply = export.exported(finished.store, {"run": finished.run, "kind": "json"})
    data = reply["json"]
    assert (data["format"], data["version"]) == ("paliscope-run", 1)
    count, prompt = len(finished.view["tokens"]), len(finished.view["prompt"])
    keys = {f"a{i}" for i in range(count)} | {f"p{i + 1}" for i in range(prompt)}
    assert set(data["maps"]) == keys
    assert data["maps"] == finished.store.read(finished.run, list(keys))
    assert data["view"]["settings"]["top_k"] == 7
    assert data["view"]["image"]["url"].startswith("data:image/webp;base64,")
    text = json.dumps(data)
    assert get_upload_folder() not in text
    assert str(EXAMPLES) not in text


@pytest.mark.parametrize(
    "request_", [None, "x", {}, {"run": "guess", "kind": "json"}, {"run": []}]
)
def test_a_run_that_is_not_kept_gives_a_message(finished, request_):
    reply = export.exported(finished.store, request_, **VIEWER)
    assert "Run it again" in reply["error"]


def test_an_unknown_kind_or_an_unfinished_run_gives_a_message(finished):
    unfinished = finished.store.open("something")
    for request in (
        {"run": finished.run, "kind": "exe"},
        {"run": unfinished, "kind": "json"},
    ):
        assert "error" in export.exported(finished.store, request, **VIEWER)


def test_a_run_too_large_to_save_says_so(finished, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 100)
    reply = export.exported(finished.store, {"run": finished.run, "kind": "json"})
    assert "shorter answer" in reply["error"]


def test_no_part_of_the_viewer_can_end_the_page_it_is_written_into():
    assert "</script" not in VIEWER["script"] + joined(["export.js"])
    assert "<!--" not in VIEWER["script"] + joined(["export.js"])
    assert "</style" not in VIEWER["style"] + joined(["palette.css"])


def test_what_is_restored_is_what_was_asked():
    ask = restored(ASKED, listed(EXAMPLES))
    assert ask.picture == str(PICTURE)
    assert (ask.prompt, ask.settings.top_k) == ("detect cat", 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": {"path": "/etc/passwd"}}, "damaged or cut short"),
        ({"picture": {"path": str(PICTURE)}}, "damaged or cut short"),
        ({"picture": {"path": f"{get_upload_folder()}/../x"}}, "damaged or cut short"),
        ({"picture": {"example": "../../tests/conftest.py"}}, "example of this link"),
        ({"picture": {"example": ["x"]}}, "damaged or cut short"),
        ({"picture": None}, "damaged or cut short"),
        ({"prompt": 7}, "damaged or cut short"),
        ({"prompt": " "}, "Write a prompt"),
        ({"prompt": "x" * 1000}, "at most 512"),
        ({"start": [1, 2]}, "damaged or cut short"),
        ({"start": "x" * 1000}, "at most 512"),
        ({"settings": {"style": "Worst"}}, "Draw by one of"),
        ({"settings": {"max_tokens": 10**9}}, "from 1 to 512"),
        ({"settings": {"temperature": float("nan")}}, "from 0.05 to 5"),
        ({"settings": {"rogue": 1}}, "damaged or cut short"),
    ],
)
def test_what_is_wrong_with_what_comes_back_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        restored({**ASKED, **change}, listed(EXAMPLES))


def test_a_saved_page_lives_with_no_network(page, offline, tmp_path):
    answered(page, "detect cat ; dog ; ball")
    file = saved(page, "html", tmp_path)
    assert file.name == "paliscope-detect-cat-dog-ball.html"
    look_into(offline, file)
    expect(offline).to_have_title("detect cat ; dog ; ball")
    assert chips(offline) == chips(page)
    seen = {shown(offline)}
    for layer in "013":
        offline.locator("#viewer .layer input").fill(layer)
        seen.add(shown(offline))
    offline.locator("#viewer .heads [data-head='2']").click()
    seen.add(shown(offline))
    offline.locator("#viewer .chip[data-key=p2]").click()
    seen.add(shown(offline))
    assert len(seen) == 6
    offline.locator("#viewer .objects button").first.click()
    expect(offline.locator("#viewer .branch:visible")).to_have_count(0)
    offline.locator("#viewer .save").click()
    kinds = offline.locator("#viewer [role=menuitem]:visible")
    expect(kinds).to_have_text(["Picture with caption PNG", "Data JSON"])
    assert json.loads(saved(offline, "json", tmp_path).read_text())["view"]["text"]


def test_data_can_be_drawn_again(page, offline, tmp_path):
    answered(page, "detect cat ; dog ; ball")
    data = json.loads(saved(page, "json", tmp_path).read_text())
    (tmp_path / "again.html").write_text(export.page(data, **VIEWER))
    look_into(offline, tmp_path / "again.html")
    assert chips(offline) == chips(page)
    assert offline.locator("#viewer .objects").inner_text().count("cat") == 1


def test_a_hostile_prompt_and_label_are_text_in_a_saved_page(page, offline, tmp_path):
    answered(page, f"detect {HOSTILE}")
    file = saved(page, "html", tmp_path)
    assert file.name == "paliscope-detect-script-img-src-x-onerror-window-pwned-1.html"
    look_into(offline, file)
    expect(offline).to_have_title(f"detect {HOSTILE}")
    expect(offline.locator("h1")).to_have_text(f"detect {HOSTILE}")
    assert HOSTILE in offline.locator("#viewer .objects").inner_text()
    assert offline.evaluate("window.pwned") is None
    assert offline.locator("img").count() == 0


def test_a_saved_page_may_ask_nothing_of_anyone(page, offline, tmp_path):
    answered(page, "caption en")
    look_into(offline, saved(page, "html", tmp_path))
    policy = offline.locator("meta[http-equiv=Content-Security-Policy]")
    assert policy.get_attribute("content").startswith("default-src 'none';")


def test_a_saved_picture_has_a_strip_that_says_what_it_shows(page, tmp_path):
    answered(page, "detect cat ; dog ; ball")
    page.mouse.move(5, 5)
    heat(page)
    stage = page.locator("#scope .stage canvas")
    on_page = Image.open(io.BytesIO(stage.screenshot())).convert("RGB")
    file = saved(page, "png", tmp_path)
    assert file.name == "paliscope-detect-cat-dog-ball.png"
    picture = Image.open(file).convert("RGB")
    side = on_page.height  # of the picture, which is square and as high as the stage
    assert picture.width >= side
    assert picture.height > side + 60
    middle = ((picture.width - side) // 2, 0)
    top = picture.crop((*middle, middle[0] + side, side))
    left = (on_page.width - side) // 2
    there = on_page.crop((left, 0, left + side, side))
    difference = ImageChops.difference(top, there).convert("L").resize((32, 32))
    assert difference.getextrema()[1] < 40  # the rounded corners and half pixels
    strip = picture.crop((0, side, *picture.size)).convert("L")
    assert strip.getpixel((2, 10)) == 255
    ink = [strip.crop((0, y, *strip.size)).getextrema()[0] for y in (0, 50)]
    assert max(ink) < 128  # more lines than one


def test_a_narrow_picture_still_has_a_wide_strip(page, tmp_path):
    Image.new("RGB", (100, 800), "teal").save(tmp_path / "tall.png")
    choose_picture(page, tmp_path / "tall.png")
    answered(page, "caption en")
    assert Image.open(saved(page, "png", tmp_path)).width == 480


def test_the_menu_is_worked_by_keys(page):
    button, menu = page.locator("#scope .save"), page.locator("#scope .keep .menu")
    expect(button).to_be_disabled()
    answered(page, "caption en")
    button.press("ArrowUp")
    expect(menu.get_by_role("menuitem", name="Copy a link")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(menu.get_by_role("menuitem", name="Picture")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(button).to_be_focused()
    expect(button).to_have_attribute("aria-expanded", "false")
    button.press("Enter")
    page.keyboard.press("Tab")
    expect(menu).to_be_hidden()


def test_a_link_brings_back_an_example_and_the_settings(page, elsewhere, tmp_path):
    set_sampling(page)
    answered(page, "detect dog ; ball")
    link = copied(page)
    assert len(link) < 400
    expect(page.locator("#scope .told")).to_have_text("Link copied.")
    elsewhere.goto("about:blank")
    elsewhere.goto(link)
    finished_run(elsewhere)
    expect(elsewhere.locator("#prompt textarea")).to_have_value("detect dog ; ball")
    view = json.loads(saved(elsewhere, "json", tmp_path).read_text())["view"]
    assert view["question"] == "detect dog ; ball"
    assert view["settings"]["style"] == "Top-k"
    assert view["settings"]["seed"] == 11
    assert elsewhere.url == elsewhere.url.split("#")[0]  # it is taken


def test_a_link_brings_back_a_small_copy_of_a_picture(page, elsewhere, tmp_path):
    noise = Image.effect_noise((448, 224), 120).resize((1792, 896), 0).convert("RGB")
    noise.paste("red", (0, 0, 448, 896))
    noise.save(tmp_path / "mine.png")
    choose_picture(page, tmp_path / "mine.png")
    answered(page, "detect cat")
    link = copied(page)
    expect(page.locator("#scope .told")).to_contain_text("copy of the picture of")
    assert len(link) < 45_000  # 32 kB, six bits in each letter, and the question
    elsewhere.goto(link)  # only the fragment is another: the page is not loaded anew
    finished_run(elsewhere)
    data = json.loads(saved(elsewhere, "json", tmp_path).read_text())
    width, height = data["view"]["width"], data["view"]["height"]
    assert width <= 448
    assert width == pytest.approx(2 * height, abs=2)
    shown = elsewhere.locator("#picture img")
    red = shown.evaluate("""image => {
      const pen = document.createElement("canvas").getContext("2d");
      pen.drawImage(image, 0, 0, 4, 2);
      return [...pen.getImageData(0, 0, 1, 1).data];
    }""")
    assert red[0] > 200 > 60 > red[1]


def test_a_refused_clipboard_leaves_the_link_to_copy(elsewhere):
    answered(elsewhere, "caption en")
    elsewhere.evaluate("""() => {
      navigator.clipboard.writeText = async () => { throw new Error("refused"); };
    }""")
    elsewhere.locator("#scope .save").click()
    elsewhere.locator("#scope [data-save=link]").click()
    field = elsewhere.get_by_label("Link, to copy by hand")
    expect(field).to_be_focused()
    assert "#ask=" in field.input_value()


def test_a_broken_link_gives_a_message_and_the_page_goes_on(elsewhere):
    for fragment in ("#ask=", "#ask=nonsense", "#ask=eJwlj"):
        elsewhere.evaluate("fragment => { location.hash = fragment; }", fragment)
        message = elsewhere.get_by_text("damaged or cut short")
        expect(message).to_be_visible()
        elsewhere.get_by_test_id("toast-close").click()
        expect(message).to_have_count(0)
        answered(elsewhere, "caption en")


def test_a_link_that_unpacks_to_far_more_than_a_question_is_refused(elsewhere):
    follow(elsewhere, json.dumps(ASKED) + " " * 20_000_000)
    message = elsewhere.get_by_text("damaged or cut short").first
    expect(message).to_be_visible()


def test_a_link_to_a_model_that_is_not_here_says_who_answers(elsewhere):
    follow(elsewhere, json.dumps({**ASKED, "model": "<b>other</b>"}))
    message = elsewhere.get_by_text("Here fake answers").first
    expect(message).to_be_visible()
    expect(message).to_contain_text("<b>other</b>")
    finished_run(elsewhere)


def test_markup_in_a_link_is_text_in_the_message(elsewhere):
    markup = "<img src=//192.0.2.1/x onerror=window.pwned=1>"
    follow(elsewhere, json.dumps({**ASKED, "settings": {"style": markup}}))
    expect(elsewhere.get_by_text(markup).first).to_be_visible()
    assert elsewhere.evaluate("window.pwned") is None


def test_history_survives_a_reload_and_asks_again(page, tmp_path):
    summary = page.locator("#history summary")
    expect(summary).to_have_text("History")
    summary.click()
    expect(page.locator("#history .calm")).to_contain_text("will be listed here")
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "mine.png")
    choose_picture(page, tmp_path / "mine.png")
    set_sampling(page)
    answered(page, "detect cat")
    expect(summary).to_have_text("History (1)")
    page.reload()
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    answered(page, "caption en")
    expect(summary).to_have_text("History (2)")
    summary.click()
    rows = page.locator("#history li")
    expect(rows.first).to_contain_text("caption en")
    expect(rows.first).to_contain_text("A cat, a dog")
    page.requests.clear()
    rows.nth(1).locator(".again").click()
    expect(page.locator("#prompt textarea")).to_have_value("detect cat")
    expect(summary).to_have_text("History (3)", timeout=PATIENT)
    view = json.loads(saved(page, "json", tmp_path).read_text())["view"]
    assert (view["width"], view["height"]) == (300, 200)
    assert view["settings"]["top_k"] == 7


def test_history_is_removed_one_by_one_and_at_once(page):
    for prompt in ("caption en", "detect cat", "detect dog"):
        answered(page, prompt)
    summary, rows = page.locator("#history summary"), page.locator("#history li")
    expect(summary).to_have_text("History (3)")
    summary.click()
    page.get_by_label("Remove “detect cat” from the history").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(rows).to_have_count(0)
    expect(summary).to_have_text("History")
    page.reload()
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    expect(page.locator("#history li")).to_have_count(0)


def test_history_keeps_thirty(page):
    answered(page, "caption en")
    expect(page.locator("#history summary")).to_have_text("History (1)")
    page.evaluate("""async () => {
      const url = document.querySelector("#history img").src;
      for (let i = 0; i < 31; i++) {
        const detail = { prompt: `caption ${i}`, start: "", settings: {}, model: "fake",
          answer: "", example: "meadow.webp", url };
        document.dispatchEvent(new CustomEvent("paliscope:done", { detail }));
      }
    }""")
    summary, rows = page.locator("#history summary"), page.locator("#history li")
    summary.click()
    expect(rows.first).to_contain_text("caption 30")
    expect(rows).to_have_count(30)
    expect(summary).to_have_text("History (30)")


def test_history_is_off_where_the_browser_keeps_nothing(site, browser):
    context = browser.new_context()
    context.add_init_script(
        "indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }"
    )
    page = context.new_page()
    page.goto(site.url)
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    page.locator("#history summary").click()
    expect(page.locator("#history .calm")).to_contain_text("history is off here")
    answered(page, "caption en")
    context.close()


def test_a_stopped_run_is_not_in_the_history(page):
    ask(page, "caption forever")
    page.wait_for_selector("#scope .chip[data-key=a5]")
    page.click("#stop", force=True)
    expect(page.locator("#scope .state")).to_have_text("stopped")
    answered(page, "caption en")
    expect(page.locator("#history summary")).to_have_text("History (1)")


def test_a_stopped_run_can_be_taken_away(page, tmp_path):
    ask(page, "caption forever")
    page.wait_for_selector("#scope .chip[data-key=a5]")
    expect(page.locator("#scope .save")).to_be_disabled()
    page.click("#stop", force=True)
    expect(page.locator("#scope .state")).to_have_text("stopped")
    shown = page.locator("#scope .chip.said").count()
    told = json.loads(saved(page, "json", tmp_path).read_text())
    # More may have been said than had come to the page.
    assert told["view"]["stopped"] and len(told["view"]["tokens"]) >= shown > 5
    assert f"a{shown - 1}" in told["maps"]


def saved(page: Page, kind: str, folder: Path) -> Path:
    menu = page.locator(".keep .menu").first
    if menu.is_hidden():
        page.locator(".keep .save").first.click()
    with page.expect_download() as download:
        page.locator(f".keep [data-save={kind}]").first.click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def copied(page: Page) -> str:
    page.evaluate("navigator.clipboard.writeText('')")
    page.locator("#scope .save").click()
    page.locator("#scope [data-save=link]").click()
    expect(page.locator("#scope .told")).to_be_visible()
    return page.evaluate("navigator.clipboard.readText()")


def follow(page: Page, asked: str) -> None:
    """A link, made here from the format that it has."""
    letters = base64.urlsafe_b64encode(zlib.compress(asked.encode())).decode()
    page.evaluate("letters => { location.hash = `#ask=${letters}`; }", letters)


def choose_picture(page: Page, file: Path) -> None:
    page.get_by_label("Remove Image").click()
    expect(page.locator("#scope .invite")).to_be_visible()
    page.locator("#picture input[type=file]").set_input_files(file)
    expect(page.locator("#scope .invite")).to_be_hidden()


def set_sampling(page: Page) -> None:
    """Top-k 7 with seed 11."""
    page.locator("#sampling .label-wrap").click()
    page.locator("#sampling").get_by_text("Top-k", exact=True).first.click()
    page.get_by_label("number input for Top-k").fill("7")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("Seed").blur()


def finished_run(page: Page) -> None:
    """Wait until a run that the page began by itself is done."""
    page.wait_for_selector(
        "#scope .scope[data-phase=done][data-ready]", timeout=PATIENT
    )


def look_into(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    page.wait_for_selector("#viewer .scope[data-ready]")


def chips(page: Page) -> list[Any]:
    return page.locator(".chip").evaluate_all(
        "all => all.map((chip) => [chip.textContent, chip.getAttribute('aria-label')])"
    )


def shown(page: Page) -> str:
    """What the stage of a saved page shows, once it has been drawn."""
    page.evaluate(
        "() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"
    )
    return page.evaluate("document.querySelector('.stage canvas').toDataURL()")
