"""The Compare tab in a browser, and `/compare`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import SENTENCE, FakeEngine
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import EXAMPLES, PATIENT, PICTURE, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect

import vlm
from vlm.ui import difference

TINY = Path(__file__).parents[1] / "assets" / "tiny"
SURE = (0.96, 0.88, 0.74, 0.93, 0.41)  # what FakeEngine gives to its tokens, in turn
HOSTILE = "markup <img src=x onerror=window.pwned=1> ${window.pwned=2} {{value}}"
DETECT, CAPTION = "detect cat ; dog ; ball", "caption en"  # 17 and 13 tokens


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """Two models: with vocabularies of their own, and of another shape."""
    engines = [FakeEngine(name="first"), FakeEngine(name="second", grid=6, heads=3)]
    engines[1].tokenizer.id("its own")  # so it counts on from another number
    with serve(engines) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    for page in opened(site, browser, width=1280, height=860):
        yield at_compare(page)


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    for page in opened(site, browser, width=360, height=740, has_touch=True):
        yield at_compare(page)


def at_compare(page: Page) -> Page:
    page.get_by_role("tab", name="Compare").click()
    for part in ("scope-a", "scope-b", "difference"):
        page.wait_for_selector(f"#{part} [data-mounted]", timeout=PATIENT)
    return page


def start(page: Page, a: str, b: str) -> None:
    page.fill("#prompt-a textarea", a)
    page.fill("#prompt-b textarea", b)
    page.click("#compare-run")


def compare(page: Page, a: str, b: str) -> None:
    """Compare, and wait for both answers with their maps and for the difference."""
    forget(page)
    start(page, a, b)
    page.wait_for_selector("#difference [data-phase=done]", timeout=PATIENT)
    for side in "ab":
        ready = f"#scope-{side} [data-phase=done][data-ready]"
        page.wait_for_selector(ready, timeout=PATIENT)


def forget(page: Page) -> None:
    """Mark what is shown, so that what comes can be waited for."""
    page.evaluate("""() => {
      for (const each of document.querySelectorAll("#compare [data-ready]")) {
        delete each.dataset.ready;
      }
      document.querySelector("#difference [data-phase]").dataset.phase = "waited for";
    }""")


def chosen(page: Page, side: str) -> list[str]:
    chips = page.locator(f"#scope-{side} .chip[aria-selected=true]")
    return chips.evaluate_all("chips => chips.map((chip) => chip.dataset.key)")


def expect_chosen(page: Page, side: str, key: str) -> None:
    chip = page.locator(f"#scope-{side} .chip[data-key={key}]")
    expect(chip).to_have_attribute("aria-selected", "true")
    assert chosen(page, side) == [key]


def test_two_prompts_are_answered_side_by_side_with_what_differs(page):
    compare(page, DETECT, CAPTION)
    expect(page.locator("#scope-a .chip.said")).to_have_count(17)
    expect(page.locator("#scope-b .chip.said")).to_have_count(13)
    told = page.locator("#difference")
    # Words: B's sentence has none of A's places, and both name a dog.
    words = told.locator(".words")
    assert "".join(words.locator("ins").all_inner_texts()).startswith("A cat, a")
    expect(words.locator("del").first).to_have_text("<loc0512>")
    boxes = told.locator(".pairs li")
    expect(boxes).to_have_count(3)
    expect(boxes.first).to_contain_text("only A")
    # Likelihood: FakeEngine is as sure of any text, so the longer one is less likely.
    a, b = (sum(log(SURE[i % 5]) for i in range(n)) for n in (17, 13))
    expect(told.locator(".answer p").first).to_contain_text(
        f"A −{-a:.2f} (−{-a / 17:.2f} a token)"
    )
    ratio = np.exp(b - a)
    expect(told.locator(".sentences li").first).to_have_text(
        f"B finds A’s answer {ratio:.1f} times less likely than its own."
    )
    expect(told.locator(".strip").first.locator("li")).to_have_count(17)
    # Looks: tokens in the same place, four layers.
    expect(told.locator("td")).to_have_count(4 * 13)


def test_what_is_left_empty_in_b_is_as_in_a(page):
    assert page.locator("#prompt-b textarea").get_attribute("placeholder") == (
        "Same as A"
    )
    expect(page.locator("#picture-b")).to_contain_text("Same as A")
    compare(page, DETECT, " ")
    expect(page.locator("#scope-b .chip.said")).to_have_count(17)
    told = page.locator("#difference")
    expect(told.locator(".sentences")).to_have_text(
        "Both say the same. B finds it as likely as A does."
    )
    expect(told.locator(".pairs li").first).to_contain_text("1.00")
    expect(told.locator(".words ins, .words del")).to_have_count(0)
    parts = told.locator("td").evaluate_all(
        "cells => cells.map((cell) => cell.style.getPropertyValue('--part'))"
    )
    assert len(parts) == 4 * 17 and set(parts) == {"0%"}


def test_layer_head_and_tokens_move_together_and_are_told_once(page):
    compare(page, DETECT, CAPTION)
    page.evaluate("""() => {
      window.told = [];
      document.addEventListener("paliscope:look", (event) => {
        const { group, layer, head, keys } = event.detail;
        window.told.push({ group, layer, head, keys });
      });
    }""")
    page.locator("#scope-a .layer input").fill("1")
    expect(page.locator("#scope-b .layer input")).to_have_value("1")
    page.click("#scope-b .heads [data-head='2']")
    expect(page.locator("#scope-a .heads [data-head='2']")).to_have_attribute(
        "aria-checked", "true"
    )
    page.click("#scope-a .chip[data-key=a3]")
    expect_chosen(page, "b", "a3")
    page.click("#scope-a .chip[data-key=a16]")  # B has but 13 tokens
    expect_chosen(page, "b", "a12")
    expect_chosen(page, "a", "a16")
    page.click("#scope-b .chip[data-key=p2]")
    expect_chosen(page, "a", "p2")
    told = page.evaluate("window.told")
    assert [(one["layer"], one["head"], one["keys"]) for one in told] == [
        (1, -1, None),
        (1, 2, None),
        (1, 2, ["a3"]),
        (1, 2, ["a16"]),
        (1, 2, ["p2"]),
    ]
    assert {one["group"] for one in told} == {"compare"}
    # The viewer of another tab is of no group.
    assert page.locator("#scope .layer input").input_value() == "2"


def test_a_cell_shows_its_layer_and_token_in_both_viewers(page):
    compare(page, DETECT, CAPTION)
    cell = page.locator("#difference td[data-layer='3'][data-token='4']")
    cell.hover()
    readout = page.locator("#difference .readout")
    expect(readout).to_contain_text("layer 3, token 5, “cat” of A, “and” of B")
    cell.click()
    for side in "ab":
        expect_chosen(page, side, "a4")
        expect(page.locator(f"#scope-{side} .layer input")).to_have_value("3")
    page.locator("#difference td[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    expect(readout).to_contain_text("layer 0, token 3")
    page.keyboard.press("Enter")
    for side in "ab":
        expect_chosen(page, side, "a2")
        expect(page.locator(f"#scope-{side} .layer input")).to_have_value("0")
    page.click("#scope-a .chip[data-key=a7]")
    marked = page.locator("#difference td[aria-selected=true]")
    expect(marked).to_have_attribute("data-token", "7")


def test_a_comparison_is_stopped_and_the_page_goes_on(site, page):
    for how in ("button", "escape"):
        start(page, "caption forever", CAPTION)
        begun = "#scope-a [data-phase=running] .chip[data-key=a5]"
        page.wait_for_selector(begun)
        if how == "button":
            page.click("#compare-stop", force=True)
        else:
            page.keyboard.press("Escape")
        wait = page.locator("#difference .wait")
        expect(wait).to_contain_text("Stopped")
        expect(page.locator("#scope-a .state")).to_have_text("stopped")
        expect(page.locator("#compare [data-phase=running]")).to_have_count(0)
        deadline = time.monotonic() + PATIENT / 1000
        while site.engine[0].live and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        assert site.engine[0].live == 0
        compare(page, CAPTION, DETECT)


def test_a_preset_fills_in_both_questions_and_runs_them(site, page):
    for _ in range(2):  # the same once more is asked once more
        forget(page)
        page.get_by_role("button", name="Two pictures").click()
        expect(page.locator("#prompt-a textarea")).to_have_value(CAPTION)
        page.wait_for_selector("#picture-b img[src*=penguins]")
        page.wait_for_selector("#difference [data-phase=done]", timeout=PATIENT)
        said = page.locator("#scope-b .chip.said")
        expect(said).to_have_count(len(SENTENCE.split()))


def test_what_is_compared_next_ends_the_comparison_that_is_running(site, page):
    for name in ("Two pictures", "Compare"):
        forget(page)
        start(page, "caption forever", CAPTION)
        begun = "#scope-a [data-phase=running] .chip[data-key=a5]"
        page.wait_for_selector(begun)
        page.fill("#prompt-a textarea", CAPTION)
        whole = site.engine[0].whole
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_selector("#difference [data-phase=done]", timeout=PATIENT)
        for side in "ab":
            said = page.locator(f"#scope-{side} .chip.said")
            expect(said).to_have_count(len(SENTENCE.split()))
        # Both answers, but not the one that was running. (To score ends early as well.)
        assert (site.engine[0].live, site.engine[0].whole) == (0, whole + 2)


def choose_model(page: Page, side: str, name: str) -> None:
    page.click(f"#model-{side} input")
    page.get_by_role("option", name=name).click()


def test_two_models_are_compared_by_the_text_and_looks_only_on_one_grid(page):
    choose_model(page, "b", "second")
    compare(page, CAPTION, "")
    expect(page.locator("#scope-b .heads button")).to_have_count(6)  # three together
    expect(page.locator("#difference .retold")).to_be_visible()
    expect(page.locator("#difference .why")).to_contain_text("differ in grid")
    expect(page.locator("#difference td")).to_have_count(0)
    page.click("#scope-a .heads [data-head='3']")
    expect(page.locator("#scope-b .heads [data-head='2']")).to_have_attribute(
        "aria-checked", "true"
    )
    choose_model(page, "b", "first")
    compare(page, CAPTION, "")
    expect(page.locator("#difference .retold")).to_be_hidden()
    expect(page.locator("#difference .why")).to_be_hidden()


def test_text_is_never_markup(page):
    compare(page, HOSTILE, CAPTION)
    assert page.evaluate("window.pwned") is None
    assert page.locator("#difference img").count() == 0
    assert "onerror=window.pwned=1>" in page.inner_text("#difference .words")


def test_bad_prompts_give_a_message_and_the_page_goes_on(page):
    for a, b, message in [
        ("   ", CAPTION, "Write a prompt first"),
        (CAPTION, "x" * 600, "at most 512"),
        (CAPTION, "broken", "The model is broken"),
    ]:
        start(page, a, b)
        expect(page.get_by_text(message).first).to_be_visible()
        expect(page.locator("#compare [data-phase=running]")).to_have_count(0)
        compare(page, CAPTION, DETECT)


def test_an_empty_answer_is_said_to_be_empty(page):
    compare(page, CAPTION, "nothing")
    told = page.locator("#difference")
    expect(told.locator(".sentences")).to_contain_text("B’s answer is empty")
    expect(told.locator(".answer").nth(1)).to_contain_text("It is empty.")
    expect(told.locator(".why")).to_contain_text("empty")


def test_nothing_moves_while_tokens_stream(page):
    parts = [f"#scope-{s} .{p}" for s in "ab" for p in ("stage", "tokens", "found")]

    def places() -> list[dict]:
        return page.evaluate(
            """parts => parts.map((part) => {
              const box = document.querySelector(part).getBoundingClientRect();
              const tab = document.querySelector("#compare").getBoundingClientRect();
              return [box.x, box.y - tab.y, box.width, box.height];
            })""",
            [*parts, "#difference", "#questions"],
        )

    start(page, DETECT, CAPTION)
    page.wait_for_selector("#scope-a .chip[data-key=a1]")
    before = places()
    for chip in ("#scope-a .chip[data-key=a11]", "#scope-b .chip[data-key=a5]"):
        page.wait_for_selector(chip)
        # All but the panel's height stays; the panel is last and grows at the end.
        assert [place[:3] for place in places()] == [place[:3] for place in before]
    page.wait_for_selector("#difference [data-phase=done]", timeout=PATIENT)
    assert [place[:3] for place in places()] == [place[:3] for place in before]


def test_a_phone_shows_one_below_the_other_without_scrolling_sideways(phone):
    compare(phone, DETECT, CAPTION)
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    a, b = (phone.locator(f"#scope-{side}").bounding_box() for side in "ab")
    assert a["x"] == b["x"] and b["y"] >= a["y"] + a["height"]
    cell = phone.locator("#difference td").first.bounding_box()
    assert min(cell["width"], cell["height"]) >= 32


def test_ids_of_three_viewers_are_their_own(page):
    compare(page, CAPTION, CAPTION)
    twice = page.evaluate("""() => {
      const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
      return ids.filter((id, at) => id && ids.indexOf(id) !== at);
    }""")
    assert twice == []


@pytest.fixture(scope="module")
def client(site) -> Client:
    return Client(site.url, verbose=False)


def test_a_client_compares_two_prompts(client):
    told = client.predict(
        handle_file(PICTURE), DETECT, prompt_b=CAPTION, api_name="/compare"
    )
    assert told["a"]["text"].startswith("<loc0512>") and told["b"]["text"] == SENTENCE
    differs = told["difference"]
    assert len(differs["boxes"]["a"]) == 3 and not differs["boxes"]["pairs"]
    given = differs["likelihood"]["b"]
    assert given["total"]["a"] == pytest.approx(
        sum(log(SURE[i % 5]) for i in range(13)), abs=1e-3
    )
    assert np.shape(differs["attention"]["bits"]) == (4, 13)
    assert "phase" not in differs


def test_a_client_compares_two_pictures_and_two_models(client, tmp_path):
    Image.new("RGB", (300, 100), "teal").save(tmp_path / "other.png")
    asked = handle_file(PICTURE), DETECT, handle_file(tmp_path / "other.png")
    told = client.predict(*asked, model_b="second", api_name="/compare")
    edges = [told[side]["objects"][0]["box"][2] for side in "ab"]
    assert edges[0] / 640 == pytest.approx(edges[1] / 300, abs=1e-3)
    pairs = told["difference"]["boxes"]["pairs"]
    assert [pair["iou"] for pair in pairs] == pytest.approx([1, 1, 1], abs=0.01)
    assert told["difference"]["retokenised"] is True
    assert told["difference"]["attention"]["bits"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_b": "third"}, "no model 'third'"),
        ({"prompt_a": " "}, "Write a prompt first"),
        ({"image_a": "/etc/passwd"}, "Send the picture as a file"),
        ({"image_b": {"path": "/etc/passwd"}}, "Send the picture as a file"),
    ],
)
def test_bad_requests_give_a_message(client, options, message):
    asked = {"image_a": handle_file(PICTURE), "prompt_a": CAPTION, **options}
    with pytest.raises(AppError, match=message):
        client.predict(**asked, api_name="/compare")


def test_the_embedded_model_weighs_the_other_answer_as_its_logits_do(browser):
    engine = vlm.load(TINY)
    image = Image.open(EXAMPLES / "meadow.webp").convert("RGB")
    prompts = "detect cat", "detect dog"
    with serve(engine) as site:
        told = Client(site.url, verbose=False).predict(
            handle_file(EXAMPLES / "meadow.webp"),
            prompts[0],
            prompt_b=prompts[1],
            api_name="/compare",
        )
        for page in opened(site, browser, width=1280, height=860):
            compare(at_compare(page), *prompts)
            shown = page.locator("#difference .sentences li").all_inner_texts()
    assert shown == told["difference"]["sentences"]
    assert all(" less likely than its own." in sentence for sentence in shown)

    for said in "ab":
        ids = [token["id"] for token in told[said]["tokens"]]
        for judge, prompt in zip("ab", prompts):
            rows = engine.logits(image, prompt, ids).log_softmax(-1)[-len(ids) - 1 : -1]
            total = sum(float(row[id]) for row, id in zip(rows, ids))
            given = told["difference"]["likelihood"][said]
            assert given["total"][judge] == pytest.approx(total, abs=2e-3)
            assert given["mean"][judge] == pytest.approx(total / len(ids), abs=2e-3)

    maps = []
    bits = [row[2] for row in told["difference"]["attention"]["bits"]]
    for side, prompt in zip("ab", prompts):
        trace = vlm.Trace()
        ids = [token["id"] for token in told[side]["tokens"]]
        engine.score(image, prompt, ids, tap=trace)
        maps.append(vlm.probes.image_attention(trace, 2).numpy())
    exact = difference.attention(*maps)
    assert [bit is None for bit in bits] == list(np.isnan(exact))
    np.testing.assert_allclose(np.array(bits, float), exact, atol=1e-3)
