"""The Pairs tab in a browser, and `/pairs`."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fake_engine import FakeEngine
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import EXAMPLES, PATIENT, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect
from test_axe import CONTROLS, SHIFTS, SMALL, grave

import vlm
from vlm.ui import matching, pairs

PAIR = Path(__file__).parents[1] / "assets" / "tiny-pair"
ROWS, COLUMNS = len(pairs.BEGIN), len(pairs.TEXTS)
HOSTILE = "<img src=x onerror=window.pwned=1> ${window.pwned=2} {{value}}"
# Every figure of a way, by rows.
VALUES = """way => {
  const rows = [];
  for (const cell of document.querySelectorAll(`#matrix table[data-way=${way}] td`)) {
    const { row, column, value } = cell.dataset;
    (rows[row] ??= [])[column] = value === "" ? null : Number(value);
  }
  return rows;
}"""


@pytest.fixture(scope="module")
def pair() -> vlm.Pair:
    return vlm.load_pair(PAIR, device="cpu")


@pytest.fixture(scope="module")
def site(pair) -> Iterator[SimpleNamespace]:
    with serve(FakeEngine(), pair=lambda: pair) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    for page in opened(site, browser, width=1280, height=860):
        yield at_pairs(page)


@pytest.fixture
def phone(site, browser) -> Iterator[Page]:
    for page in opened(site, browser, width=360, height=740, has_touch=True):
        yield at_pairs(page)


def at_pairs(page: Page) -> Page:
    page.get_by_role("tab", name="Pairs").click()
    page.wait_for_selector("#album [data-mounted]", timeout=PATIENT)
    done(page)
    return page


def done(page: Page) -> None:
    page.wait_for_selector("#matrix [data-phase=done]", timeout=PATIENT)


def matched(page: Page, texts: list[str]) -> None:
    page.fill("#texts textarea", "\n".join(texts))
    page.evaluate("document.querySelector('#matrix .matrix').dataset.phase = 'old'")
    page.click("#pairs-run")
    done(page)


def cell(page: Page, row: int, column: int, way: str = "softmax"):
    at = f"[data-row='{row}'][data-column='{column}']"
    return page.locator(f"#matrix table[data-way={way}] {at}")


def images() -> list[Image.Image]:
    return [Image.open(EXAMPLES / name) for name in pairs.BEGIN]


def test_the_scripts_arithmetic_is_that_of_the_library(pair, page):
    for way in ("sigmoid", "softmax"):
        known = pair.scores(images(), pairs.TEXTS, loss=way).numpy()
        assert page.evaluate(VALUES, way) == pytest.approx(known, rel=1e-4, abs=1e-7)
    # What is read is what was computed.
    expect(cell(page, 0, 0, "sigmoid")).to_have_text("97")
    expect(cell(page, 0, 1, "sigmoid")).to_have_text("<0.1")
    expect(page.locator("#matrix .state")).to_have_text("3 pictures, 5 texts.")


def test_a_text_that_is_off_changes_the_softmax_and_no_sigmoid(pair, page):
    before = {way: page.evaluate(VALUES, way) for way in ("sigmoid", "softmax")}
    requests = len(page.requests)
    cell(page, -1, 1).click()  # two bananas
    expect(cell(page, -1, 1, "sigmoid")).to_have_attribute("aria-pressed", "false")
    assert page.evaluate(VALUES, "sigmoid") == before["sigmoid"]
    left = [text for text in pairs.TEXTS if text != "two bananas"]
    known = pair.scores(images(), left, loss="softmax").numpy()
    now = page.evaluate(VALUES, "softmax")
    assert [row.pop(1) for row in now] == [None] * ROWS
    assert now == pytest.approx(known, rel=1e-4, abs=1e-7)
    assert now[1][1] > 0.99 > before["softmax"][1][2]  # three bananas wins now
    expect(cell(page, 1, 1)).to_have_text("off")
    told = page.locator("#matrix .told")
    expect(told).to_have_text(
        "“two bananas” is off: the softmax is now among 4 of 5 texts; "
        "no sigmoid has changed."
    )
    cell(page, -1, 1, "sigmoid").click()
    assert {way: page.evaluate(VALUES, way) for way in before} == before
    assert len(page.requests) == requests  # the server was not asked


def test_all_texts_can_be_off(page):
    for column in range(COLUMNS):
        cell(page, -1, column).click()
    assert page.evaluate(VALUES, "softmax") == [[None] * COLUMNS] * ROWS
    expect(page.locator("#matrix .told")).to_contain_text("no text is left")


def test_a_chosen_cell_shows_its_picture_its_look_and_its_figures(pair, page):
    seen, read = pair.images(images()), pair.texts(list(pairs.TEXTS))
    cosine = float((seen @ read.T)[2, 3])
    logit = float(pair.model.logits(seen, read)[2, 3])
    cell(page, 2, 3).click()
    for way in ("sigmoid", "softmax"):
        expect(cell(page, 2, 3, way)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#matrix td[aria-selected=true]")).to_have_count(2)
    expect(page.locator("#matrix .text")).to_have_text(pairs.TEXTS[3])
    figures = {
        name: page.inner_text(f"#matrix dd.{name}").replace("−", "-")
        for name in ("cosine", "logit", "sigmoid", "softmax")
    }
    assert float(figures["cosine"]) == pytest.approx(cosine, abs=6e-4)
    assert float(figures["logit"]) == pytest.approx(logit, abs=6e-3)
    told = page.inner_text("#matrix .sum").removeprefix("Logit = ")
    scale, bias = (float(each) for each in told.split(" × cosine − "))
    assert scale == pytest.approx(pair.model.logit_scale.exp().item(), abs=6e-3)
    assert -bias == pytest.approx(pair.model.logit_bias.item(), abs=6e-3)
    for way in ("sigmoid", "softmax"):
        assert figures[way] == f"{cell(page, 2, 3, way).inner_text()} %"
    kitchen = page.locator("#matrix .look img").get_attribute("src")
    assert kitchen == page.locator("#matrix th img").nth(2).get_attribute("src")


def test_the_heat_is_where_the_pooling_head_looked(pair, page):
    match = matching.matched(pair, images(), ["a boat"])
    ramp = np.array(
        [[38, 6, 70], [72, 48, 135], [38, 120, 142], [60, 188, 116], [253, 231, 37]]
    )
    for row in range(ROWS):
        cell(page, row, 0).click()
        painted = page.evaluate("""() => {
          const canvas = document.querySelector("#matrix .look canvas");
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          return [height, width, [...data]];
        }""")
        height, width, data = painted
        pixels = np.reshape(data, (height, width, 4))
        look = match.looks[row] / match.looks[row].max()
        assert (height, width) == look.shape
        assert pixels.sum(-1).argmax() == look.argmax()
        at = look * (len(ramp) - 1)
        low = np.minimum(len(ramp) - 2, at.astype(int))[..., None]
        part = at[..., None] - low
        color = ramp[low[..., 0]] + (ramp[low[..., 0] + 1] - ramp[low[..., 0]]) * part
        opaque = pixels[..., 3] > 200  # where colours keep their precision
        assert opaque.any()
        assert np.abs(pixels[..., :3] - color)[opaque].max() <= 5
        peak = 100 * match.looks[row].max()
        told = f"{peak:.0f} %" if peak >= 9.95 else f"{peak:.1f} %"
        expect(page.locator("#matrix .peak")).to_contain_text(told)


def test_arrow_keys_walk_cells_and_texts_and_space_switches_one_off(page):
    table = page.locator("#matrix table[data-way=softmax]")
    expect(table.locator("[tabindex='0']")).to_have_count(1)
    cell(page, 0, 0).click()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    expect(cell(page, 2, 0)).to_be_focused()
    expect(page.locator("#matrix #cell-title")).to_have_text("Picture 3 and text 1")
    for _ in range(ROWS):
        page.keyboard.press("ArrowUp")
    expect(cell(page, -1, 0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(cell(page, -1, 1)).to_have_attribute("aria-pressed", "false")
    expect(cell(page, -1, 1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(cell(page, 0, 1)).to_be_focused()
    expect(page.locator("#matrix dd.softmax")).to_have_text("this text is off")
    expect(table.locator("[tabindex='0']")).to_have_count(1)


def test_a_screen_reader_finds_a_table_with_names(page):
    grid = page.get_by_role("grid", name="Softmax of each picture")
    expect(grid.get_by_role("row")).to_have_count(1 + ROWS)
    expect(grid.get_by_role("columnheader")).to_have_count(1 + COLUMNS)
    expect(grid.get_by_role("rowheader", name="Picture 2")).to_have_count(1)
    expect(grid.get_by_role("gridcell")).to_have_count(ROWS * COLUMNS)
    expect(grid.get_by_role("button", name="two bananas", pressed=True)).to_have_count(
        1
    )


def test_pictures_come_from_examples_and_files_and_go_one_by_one(page, tmp_path):
    chosen = page.locator("#album .chosen img")
    expect(chosen).to_have_count(ROWS)
    page.get_by_role("button", name="Remove picture 2: bananas").click()
    expect(page.locator("#album .say")).to_have_text("bananas is removed.")
    expect(page.locator("#album .remove").nth(1)).to_be_focused()
    page.get_by_role("button", name="Add harbour").click()
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "teal.png")
    page.set_input_files("#album input[type=file]", tmp_path / "teal.png")
    expect(page.locator("#album .say")).to_have_text("teal: added.")
    names = [image.get_attribute("alt") for image in chosen.all()]
    assert [name.split(": ")[1] for name in names] == [
        "penguins",
        "kitchen",
        "harbour",
        "teal",
    ]
    matched(page, ["two boats and a fish", "two penguins and a fish"])
    expect(page.locator("#matrix .state")).to_have_text("4 pictures, 2 texts.")
    assert page.evaluate(VALUES, "sigmoid")[2][0] > 0.9


def test_dropped_pictures_are_taken_as_long_as_there_is_room(page, tmp_path):
    with open(EXAMPLES / "meadow.webp", "rb") as file:
        data = list(file.read())
    page.evaluate(
        """([data, count]) => {
          const files = new DataTransfer();
          for (let i = 0; i < count; i++) {
            files.items.add(new File([new Uint8Array(data)], `meadow${i}.webp`));
          }
          document.querySelector("#album .album").dispatchEvent(
            new DragEvent("drop", { dataTransfer: files, bubbles: true }));
        }""",
        [data, 7],
    )
    expect(page.locator("#album .chosen img")).to_have_count(8)
    expect(page.locator("#album .say")).to_contain_text("2 more had no room.")
    expect(page.locator("#album .add")).to_have_count(0)
    expect(page.get_by_role("button", name="Add harbour")).to_be_disabled()
    matched(page, ["a cat"])
    assert len(page.evaluate(VALUES, "softmax")) == 8


def test_text_is_never_markup(page):
    matched(page, [HOSTILE, "a cat"])
    assert page.evaluate("window.pwned") is None
    expect(cell(page, -1, 0)).to_have_text(HOSTILE)
    cell(page, 0, 0).click()
    expect(page.locator("#matrix .text")).to_have_text(HOSTILE)
    cell(page, -1, 0).click()
    expect(page.locator("#matrix .told")).to_contain_text(HOSTILE[:40])
    assert page.locator("#matrix img").count() == 2 * ROWS + 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "Write a text first"),
        ("\n".join(["a cat"] * 13), "13 texts; at most 12"),
        ("a cat\n" + "b" * 10_000, "Text 2: It has 10000 characters"),
    ],
)
def test_bad_texts_give_a_message_and_the_page_goes_on(page, texts, message):
    page.fill("#texts textarea", texts)
    page.click("#pairs-run")
    expect(page.get_by_text(message).first).to_be_visible()
    expect(page.locator("#matrix [data-phase=done]")).to_have_count(1)
    matched(page, ["a cat"])


def test_a_text_file_is_no_picture_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture at all")
    page.set_input_files("#album input[type=file]", tmp_path / "notes.png")
    expect(page.locator("#album .say")).to_have_text("notes: added.")
    page.click("#pairs-run")
    message = page.get_by_text("Picture 4: This file is not a picture").first
    expect(message).to_be_visible()
    page.get_by_role("button", name="Remove picture 4: notes").click()
    matched(page, ["a cat"])


def test_a_pair_that_fails_leaves_no_wait_behind(browser):
    def broken():
        raise ValueError("The pair is broken. Load another.")

    with serve(FakeEngine(), pair=broken) as site:
        for page in opened(site, browser, width=1280, height=860):
            page.get_by_role("tab", name="Pairs").click()
            expect(page.get_by_text("The pair is broken").first).to_be_visible(
                timeout=PATIENT
            )
            state = page.locator("#matrix .state")
            expect(state).to_contain_text("no figures")


def test_logits_of_any_size_are_probabilities(pair, browser):
    sharp = vlm.load_pair(PAIR, device="cpu")
    sharp.model.logit_scale.fill_(np.log(20_000))  # logits of thousands
    with serve(FakeEngine(), pair=lambda: sharp) as site:
        for page in opened(site, browser, width=1280, height=860):
            at_pairs(page)
            for way in ("sigmoid", "softmax"):
                known = sharp.scores(images(), pairs.TEXTS, loss=way).numpy()
                now = page.evaluate(VALUES, way)
                assert now == pytest.approx(known, rel=1e-3, abs=1e-7)


def test_the_pair_is_loaded_when_the_tab_is_first_visited(pair, browser):
    asked = []

    def loading():
        asked.append("pair")
        return pair

    with serve(FakeEngine(), pair=loading) as site:
        for page in opened(site, browser, width=1280, height=860):
            page.get_by_role("tab", name="Compare").click()
            page.wait_for_selector("#difference [data-mounted]", timeout=PATIENT)
            assert asked == []
            at_pairs(page)
            page.get_by_role("tab", name="Probe").click()
            page.get_by_role("tab", name="Pairs").click()
            expect(page.locator("#matrix")).to_be_visible()
            assert asked == ["pair"]


def test_without_a_pair_the_tab_says_what_to_do(browser):
    with serve(FakeEngine()) as site:
        for page in opened(site, browser, width=1280, height=860):
            page.get_by_role("tab", name="Pairs").click()
            told = page.locator("#no-pair")
            expect(told).to_contain_text("python app.py --pair google/siglip")


@pytest.mark.parametrize("size", [(1280, 860), (360, 740)], ids=str)
def test_nothing_jumps_when_figures_come(site, browser, size):
    width, height = size
    for page in opened(site, browser, width=width, height=height):
        at_pairs(page)
        assert page.evaluate(SHIFTS) <= 0.05
        assert page.evaluate("document.documentElement.scrollWidth") == width
        parts = [f"#matrix .{name}" for name in ("scroll", "look", "told", "cell")]
        before = [page.locator(part).first.bounding_box() for part in parts]
        cell(page, 2, 3, "sigmoid").click()
        cell(page, -1, 1, "sigmoid").click()
        matched(page, [*pairs.TEXTS])
        after = [page.locator(part).first.bounding_box() for part in parts]
        for one, other in zip(before, after):
            assert (one["x"], one["width"], one["height"]) == (
                other["x"],
                other["width"],
                other["height"],
            )


def test_a_phone_shows_one_way_at_a_time_for_fingers(phone):
    both = [
        phone.locator(f"#matrix .way[data-way={w}]") for w in ("sigmoid", "softmax")
    ]
    expect(both[0]).to_be_visible()
    expect(both[1]).to_be_hidden()
    phone.get_by_role("button", name="Softmax", exact=True).click()
    expect(both[0]).to_be_hidden()
    expect(both[1]).to_be_visible()
    assert phone.evaluate(SMALL, CONTROLS) == []


@pytest.mark.parametrize("width", [1280, 360], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_tab_has_no_grave_finding(site, browser, theme, width):
    how = {"width": width, "height": 860, "color_scheme": theme}
    for page in opened(site, browser, **how):
        at_pairs(page)
        found = [grave(page)]
        cell(page, 1, 2, "sigmoid").click()
        cell(page, -1, 0, "sigmoid").click()
        found.append(grave(page))
        assert found == [[], []]


def test_an_album_that_names_a_file_of_this_machine_is_refused(site, tmp_path):
    Image.open(EXAMPLES / "meadow.webp").save(tmp_path / "secret.png")
    secret = str(tmp_path / "secret.png")
    known = {
        "path": str(EXAMPLES / "meadow.webp"),
        "meta": {"_type": "gradio.FileData"},
    }
    assert sent_as_album(site, known)["success"]
    for file in (secret, {"path": secret}, {**known, "path": secret}):
        assert not sent_as_album(site, file)["success"]


def sent_as_album(site: SimpleNamespace, file: object) -> dict:
    """What comes of it, past the page's script."""
    config = httpx.get(f"{site.url}/config").json()
    (album,) = (
        each["id"]
        for each in config["components"]
        if each["props"].get("elem_id") == "album"
    )
    index = next(
        each["id"] for each in config["dependencies"] if each["inputs"][:1] == [album]
    )
    session = {"session_hash": secrets.token_hex(6)}
    asked = {"data": [{"chosen": [file]}, "a cat"], "fn_index": index, **session}
    httpx.post(f"{site.url}/gradio_api/queue/join", json=asked).raise_for_status()
    address = f"{site.url}/gradio_api/queue/data"
    with httpx.stream("GET", address, params=session, timeout=60) as told:
        for line in told.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data: "))
    raise AssertionError("no end was told")


@pytest.fixture(scope="module")
def asked(site):
    return functools.partial(Client(site.url, verbose=False).predict, api_name="/pairs")


def test_a_client_is_told_all_four_tables(pair, asked):
    sent = [handle_file(EXAMPLES / name) for name in pairs.BEGIN]
    told = asked(sent, list(pairs.TEXTS))
    for way in ("sigmoid", "softmax"):
        known = pair.scores(images(), pairs.TEXTS, loss=way).numpy()
        assert np.array(told[way]) == pytest.approx(known, rel=1e-4, abs=1e-7)
    logits = np.array(told["cosines"]) * told["scale"] + told["bias"]
    assert np.array(told["logits"]) == pytest.approx(logits, abs=1e-4)


def test_a_clients_mistakes_are_told_in_a_sentence(asked, tmp_path):
    (tmp_path / "notes.png").write_text("no picture at all")
    good = handle_file(EXAMPLES / "meadow.webp")
    for pictures, texts, message in (
        ([], ["a cat"], "Add a picture first"),
        ([good] * 9, ["a cat"], "9 pictures; at most 8"),
        (["/etc/passwd"], ["a cat"], "Send the picture as a file"),
        ([{"path": "/etc/passwd"}], ["a cat"], "Send the picture as a file"),
        ([handle_file(tmp_path / "notes.png")], ["a cat"], "not a picture"),
        (good, ["a cat"], "Add a picture first"),
        ([good], [], "Write a text first"),
        ([good], "a cat", "Write a text first"),
        ([good], [1], "no text"),
        ([good], ["a cat"] * 13, "13 texts; at most 12"),
        ([good], ["c" * 10_000], "10000 characters; at most 200"),
    ):
        with pytest.raises(AppError, match=message):
            asked(pictures, texts)


def test_the_endpoint_says_what_it_gives(site):
    api = Client(site.url, verbose=False).view_api(return_format="dict")
    about = api["named_endpoints"]["/pairs"]
    assert "each row sums to 1" in " ".join(about["description"].split())
    assert [each["parameter_name"] for each in about["parameters"]] == [
        "images",
        "texts",
    ]
    assert json.dumps(about)
