"""The page in a real browser, and its endpoint, with an engine that has no model."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import (
    EXAMPLES,
    PATIENT,
    PICTURE,
    answered,
    ask,
    heat,
    opened,
    ready,
    serve,
    spot,
)
from PIL import Image
from playwright.sync_api import Page, expect

HOSTILE = "caption <img src=x onerror=window.pwned=1> ${window.pwned=2} {{value}} `'\\"


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine()) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=390, height=844, has_touch=True)


def test_an_uploaded_picture_is_answered_with_tokens_and_boxes(page, tmp_path):
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "mine.png")
    page.get_by_label("Remove Image").click()
    expect(page.locator("#scope .invite")).to_be_visible()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "mine.png")
    page.wait_for_selector("#picture img[src*=mine]")
    page.evaluate("""() => {
      const list = document.querySelector("#scope .objects");
      const note = () => (window.seen = (window.seen || "") + list.textContent);
      new MutationObserver(note).observe(list, { childList: true, subtree: true });
    }""")
    answered(page, "detect cat ; dog ; ball")
    assert "(decoding)" in page.evaluate("window.seen")  # boxes grow edge by edge
    boxes = page.locator("#scope .objects .pick").all_inner_texts()
    assert [text.split("\n")[0] for text in boxes] == ["cat", "dog", "ball"]
    assert "36, 100, 99, 168" in boxes[0]  # pixels of 300 x 200
    assert page.locator("#scope .chip.said").count() == 17
    assert "%" in page.locator("#scope .chip.said").first.get_attribute("aria-label")


def test_a_click_on_a_token_shows_where_it_looked(page):
    answered(page, "detect cat ; dog ; ball")
    before = heat(page)
    page.click("#scope .chip[data-key=a0]")
    assert heat(page) != before
    expect(page.locator("#scope .role")).to_have_text("top edge of “cat”")
    page.click("#scope .chip[data-key=p2]")
    expect(page.locator("#scope .token h2").first).to_have_text("Prompt token 2 of 7")
    expect(page.locator("#scope .stage canvas")).to_have_attribute("data-heat", "p2")


def test_layers_heads_tokens_and_patches_need_no_server(page):
    answered(page, "detect cat ; dog ; ball")
    page.wait_for_timeout(300)
    page.requests.clear()
    seen = {heat(page)}
    slider = page.locator("#scope .layer input")
    for layer in "013":
        slider.fill(layer)
        seen.add(heat(page))
    for head in page.locator("#scope .heads button").all():
        head.click()
        seen.add(heat(page))
    page.focus("#scope .tokens")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "2", "m"):
        page.keyboard.press(key)
    for x in (0.2, 0.5, 0.9):
        page.mouse.move(*spot(page, x, 0.6))
    heat(page)
    assert len(seen) >= 8
    assert page.requests == []


def test_a_head_is_previewed_by_pointing_and_kept_by_clicking(page):
    answered(page, "detect cat")
    mean = heat(page)
    page.hover("#scope .heads [data-head='1']")
    assert heat(page) != mean
    page.mouse.move(5, 5)
    assert heat(page) == mean
    page.click("#scope .heads [data-head='1']")
    page.mouse.move(5, 5)
    assert heat(page) != mean
    expect(page.locator("#scope .where")).to_contain_text("head 1")


def test_pointing_at_a_patch_tints_the_tokens_that_looked_there(page):
    answered(page, "detect cat ; dog ; ball")
    page.mouse.move(*spot(page, 0.22, 0.67))  # the cat
    page.wait_for_selector("#scope .chip.looked")
    look = "el => parseFloat(el.style.getPropertyValue('--look'))"
    at_cat = page.locator("#scope .chip[data-key=a1]").evaluate(look)
    at_ball = page.locator("#scope .chip[data-key=a13]").evaluate(look)
    assert at_cat > 60 > 20 > at_ball
    page.mouse.move(5, 5)
    expect(page.locator("#scope .chip.looked")).to_have_count(0)


def test_a_box_and_its_row_choose_the_tokens_of_the_object(page):
    answered(page, "detect cat ; dog ; ball")
    page.mouse.click(*spot(page, 0.5, 0.68))  # the dog
    chosen = page.locator("#scope .chip[aria-selected=true]")
    expect(chosen).to_have_text(
        ["<loc0512>", "<loc0399>", "<loc0880>", "<loc0665>", "·dog"]
    )
    page.locator("#scope .objects .pick").nth(2).click()
    expect(chosen).to_have_count(5)
    expect(page.locator("#scope .piece")).to_have_text("ball")


def test_raw_heat_differs_from_heat_over_the_image(page):
    answered(page, "detect cat")
    before = heat(page)
    page.click("#scope [data-scale=raw]")
    assert heat(page) != before
    page.locator("#scope .heat input").fill("0")
    faint = heat(page)
    page.click("#scope [data-scale=image]")
    assert heat(page) == faint  # no heat at all is the same in both


def test_stop_closes_the_generator(site, page):
    for how in ("button", "escape", "leave"):
        ask(page, "caption forever")
        running = "#scope [data-phase=running] .chip[data-key=a5]"
        page.wait_for_selector(running)
        assert site.engine.live == 1
        if how == "button":
            page.click("#stop", force=True)  # a busy page is never quite still
        elif how == "escape":
            page.keyboard.press("Escape")
        else:
            page.goto("about:blank")
        deadline = time.monotonic() + PATIENT / 1000
        while site.engine.live and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        assert site.engine.live == 0, how
        if how != "leave":
            expect(page.locator("#scope .state")).to_have_text("stopped")
            answered(page, "caption en")  # and the page goes on


def test_what_is_asked_at_once_after_a_stop_is_answered(page):
    for number in range(8):
        ask(page, "caption forever")
        running = "#scope [data-phase=running] .chip[data-key=a2]"
        page.wait_for_selector(running)
        page.fill("#prompt textarea", f"markup number{number}")
        page.keyboard.press("Escape")
        page.wait_for_timeout(20 * number)  # before and after the stop is carried out
        page.press("#prompt textarea", "Enter")
        chips = page.locator("#scope [data-phase=done] .tokens")
        expect(chips).to_contain_text(f"number{number}", timeout=PATIENT)


def test_text_of_users_and_models_is_never_markup(page):
    answered(page, HOSTILE.replace("caption", "markup"))
    assert page.evaluate("window.pwned") is None
    assert page.locator("#scope .tokens img").count() == 0
    assert "<img" in page.inner_text("#scope .tokens")
    assert "${window.pwned=2}" in page.inner_text("#scope .tokens")


def test_bad_prompts_give_a_message_and_the_page_goes_on(page):
    for prompt, message in [
        ("   ", "Write a prompt first"),
        ("caption " + "x" * 600, "at most 512"),
        ("broken", "The model is broken"),
    ]:
        ask(page, prompt)
        expect(page.get_by_text(message).first).to_be_visible()
        answered(page, "caption en")


def test_what_was_wrong_is_told_until_the_next_question(site, browser):
    # In a context of its own, as its clock stays another.
    for page in opened(site, browser, width=1280, height=860, locale="en-GB"):
        page.clock.install()
        told = page.get_by_test_id("toast-text")
        for prompt, message in [("   ", "Write a prompt first"), ("broken", "broken")]:
            ask(page, prompt)
            expect(told).to_contain_text(message)
            page.clock.fast_forward(9_900)
        page.clock.fast_forward(60_000)
        page.wait_for_timeout(500)  # what goes is seen for a moment
        expect(told).to_contain_text("broken")
        answered(page, "caption en")
        expect(told).to_have_count(0)


def test_a_task_that_the_model_never_learnt_says_so(page):
    page.get_by_text("Read text", exact=True).click()
    expect(page.locator("#hint")).to_contain_text("not trained for it")
    page.get_by_text("Caption", exact=True).click()
    expect(page.locator("#hint")).not_to_contain_text("not trained for it")
    expect(page.locator("#note")).to_have_text("Knows <b>nothing</b>.")


def test_an_example_brings_its_picture_and_prompt(page):
    shown = page.locator("#picture img").get_attribute("src")
    prompt = json.loads((EXAMPLES / "examples.json").read_text())[1]["prompt"]
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#prompt textarea")).to_have_value(prompt)
    expect(page.locator("#picture img")).not_to_have_attribute("src", shown)


def test_an_example_that_goes_wrong_says_so(page):
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    wrong = [number for number, entry in enumerate(entries) if entry.get("fails")]
    assert wrong
    buttons = page.locator("#examples button")
    expect(buttons).to_have_count(len(entries))
    for number in range(len(entries)):
        badge = buttons.nth(number).get_by_text("fails", exact=True)
        expect(badge).to_have_count(int(number in wrong))


def test_a_chip_brings_its_prompt_and_keeps_what_was_named(page):
    page.fill("#prompt textarea", "detect apple ; banana")
    page.get_by_text("Segment", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value("segment apple ; banana")
    expect(page.locator("#hint")).to_contain_text("mask")


def test_nothing_moves_while_tokens_stream(page):
    parts = ("stage", "look", "bar", "tokens", "meta", "token")
    where = [f"#scope .{part}" for part in parts] + ["#ask", "#scope .found h2"]

    def places() -> list[dict]:
        return [page.locator(part).bounding_box() for part in where]

    before = places()
    ask(page, "detect cat ; dog ; ball")
    for key in ("a1", "a6", "a11"):
        page.wait_for_selector(f"#scope .chip[data-key={key}]")
        assert places() == before
    ready(page)
    assert places() == before


def test_a_phone_shows_all_without_scrolling_sideways(phone):
    answered(phone, "detect cat ; dog ; ball")
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    expect(phone.locator("#scope .stage")).to_be_in_viewport()
    phone.touchscreen.tap(*spot(phone, 0.22, 0.67))
    phone.wait_for_selector("#scope .chip.looked")


def test_a_client_streams_with_just_a_picture_and_a_prompt(site):
    client = Client(site.url, verbose=False)
    job = client.submit(handle_file(PICTURE), "detect cat", api_name="/probe")
    last = job.result(timeout=20)
    assert len(job.outputs()) > 5
    assert last["done"] is True
    assert last["text"].startswith("<loc0512><loc0122><loc0860><loc0337> cat ;")
    word = site.engine.tokenizer.id(" cat")
    assert last["tokens"][4] == {
        "text": " cat",
        "id": word,
        "probability": 0.41,
        "image_share": 0.4,
    }
    cat = last["objects"][0]
    assert cat["label"] == "cat"
    assert cat["tokens"] == [0, 1, 2, 3, 4]
    assert cat["box"] == pytest.approx([76.3, 240, 210.6, 403.1], abs=0.1)


def test_maps_of_an_unknown_run_are_not_given(site, page):
    answered(page, "caption en")
    reply = page.evaluate("""async () => {
      const config = window.gradio_config;
      const scope = config.components.find((c) => c.props.elem_id === "scope");
      const ask = (data) => fetch("/gradio_api/component_server", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(
          { session_hash: "x", component_id: scope.id, fn_name: "attention", data }),
      }).then((response) => response.json());
      const guess = { run: "guess", keys: ["a0"] };
      return [await ask(guess), await ask("nonsense"), await ask(null)];
    }""")
    assert reply == [None, None, None]


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def cut() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    return file.getvalue()[:600]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text.png", b"not a picture at all", "not a picture"),
        ("bomb.png", bomb(), "at most 25 million"),
        ("cut.png", cut(), "damaged or cut short"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_bad_pictures_give_a_message(site, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    client = Client(site.url, verbose=False)
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(tmp_path / name), "caption en", api_name="/probe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "Choose a picture first"),
        ({"max_tokens": 10**9}, "512"),
        ({"max_tokens": 0}, "1"),
        ({"style": "Top-p", "seed": -1}, "Seed is -1"),
    ],
)
def test_bad_options_give_a_message(site, options, message):
    client = Client(site.url, verbose=False)
    asked = {"image": handle_file(PICTURE), "prompt": "caption en", **options}
    with pytest.raises(AppError, match=message):
        client.predict(**asked, api_name="/probe")
