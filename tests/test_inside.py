"""The Inside tab: its figures against the model, and what a reader sees of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import Pair
from fake_engine import FakeEngine
from pages import EXAMPLES, PATIENT, PICTURE, answered, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors import safe_open

import vlm
from vlm.cache import KVCache
from vlm.image import pixels
from vlm.layers import rope
from vlm.ui import figures, inside
from vlm.ui.asking import Ask
from vlm.ui.store import Run

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
MARKUP = (ROOT / "vlm" / "ui" / "inside.html").read_text("utf-8")
PENGUINS = EXAMPLES / "penguins.webp"
VIEW = {
    "width": 640,
    "height": 480,
    "tokens": [
        {"id": 7, "text": text}
        for text in ("<loc0512>", "<loc0122>", "<loc0860>", "<loc0337>", " cat")
    ],
    "objects": [
        {
            "label": "cat",
            "box": [76.2, 240.0, 210.6, 403.1],
            "tokens": [0, 1, 2, 3, 4],
            "mask": None,
        }
    ],
}


@pytest.fixture(scope="module")
def tiny() -> vlm.Engine:
    return vlm.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def site(tiny) -> Iterator[SimpleNamespace]:
    with serve(tiny) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


def look_inside(page: Page) -> None:
    """Open the tab, and wait until it shows what was asked for."""
    root = page.locator("#inside .inside")
    before = root.get_attribute("data-updates") if root.count() else None
    page.get_by_role("tab", name="Inside").click()
    page.wait_for_function(
        """before => {
          const root = document.querySelector("#inside .inside");
          return root && root.dataset.updates && root.dataset.updates !== before;
        }""",
        arg=before,
        timeout=PATIENT,
    )


def fact(page: Page, name: str) -> str:
    return page.locator(f"#inside [data-fact={name}]").first.inner_text()


# --- figures -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "gemma2"])
def test_every_figure_that_is_told_of_is_there(name, tiny, pairs: dict[str, Pair]):
    engine = tiny if name == "tiny" else pairs[name].engine
    facts = inside.shown(engine, str(PICTURE), "detect cat", None)["facts"]
    # A figure may lack only inside of something that is left out with it.
    markup = re.sub(r'<(\w+)[^>]* data-if="(\w+)">.*?</\1>', "", MARKUP, flags=re.S)
    assert set(re.findall(r'data-fact="(\w+)"', markup)) <= set(facts)
    assert all(facts.values())


def test_figures_of_the_embedded_model_are_those_of_its_files(tiny):
    facts = inside.shown(tiny, str(PENGUINS), "detect cat", None)["facts"]
    with safe_open(TINY / "model.safetensors", "pt") as file:
        names = list(file.keys())
        shape = {name: file.get_slice(name).get_shape() for name in names}
    (embedding,) = (shape[name] for name in names if "embed_tokens" in name)
    (kernel,) = (shape[n] for n in names if n.endswith("patch_embedding.weight"))
    gates = [shape[name] for name in names if name.endswith("gate_proj.weight")]
    norms = [n for n in names if "language_model" in n and "norm" in n]
    total = sum(int(np.prod(each)) for each in shape.values())
    assert facts["vocabulary"] == f"{embedding[0]:,}"
    assert facts["width"] == str(embedding[1])
    assert facts["patch"] == str(kernel[2])
    assert facts["patch_numbers"] == str(np.prod(kernel[1:]))
    assert (facts["depth"], facts["mlp_width"]) == (str(len(gates)), str(gates[0][0]))
    assert facts["norms"] == str(len(norms))
    assert facts["parameters"] == f"{total:,}"
    assert facts["embedding_share"] == f"{100 * np.prod(embedding) / total:.0f} %"
    assert facts["grid"] == "8"
    assert facts["patches"] == "64"


def test_the_cache_has_the_size_of_a_real_one(tiny, monkeypatch):
    caches = []

    class Seen(KVCache):
        def __init__(self, *arguments: int) -> None:
            super().__init__(*arguments)
            caches.append(self)

    monkeypatch.setattr("vlm.cache.KVCache", Seen)
    value = inside.shown(tiny, str(PENGUINS), "detect cat", None)
    next(tiny.stream(Image.open(PENGUINS), "detect cat", max_tokens=512, stop=()))
    now, most = value["cache"]
    assert most["tokens"] == caches[0].capacity
    assert most["size"] == figures.size(caches[0].nbytes)
    assert now["tokens"] == caches[0].length
    row = caches[0].nbytes // caches[0].capacity
    assert value["facts"]["cache_row"] == f"{row:,} bytes"


def test_the_slowest_pair_of_a_head_turns_once_in_so_many_tokens(tiny):
    decoder = tiny.config.decoder
    count = int(inside.shown(tiny, None, "", None)["facts"]["slowest"].replace(",", ""))
    at = [[0, count]]
    cos, sin = rope(torch.tensor(at), decoder.head_size, decoder.rope_base)
    last = decoder.head_size // 2 - 1
    assert float(cos[0, 0, 1, last]) == pytest.approx(1, abs=1e-5)
    assert float(sin[0, 0, 1, last]) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (9_999, "9,999 bytes"),
        (171_500, "172 kB"),
        (1_256_916, "1.26 MB"),
        (99_960_000, "100 MB"),
        (5_900_000_000, "5.9 GB"),
    ],
)
def test_bytes_are_told_in_three_digits(number, words):
    assert figures.size(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(37_056, "37,056"), (2_015_040, "2.02 M"), (412_442_352, "412 M"), (3e9, "3 B")],
)
def test_parameters_are_told_in_three_digits(number, words):
    assert figures.short(number) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((512, 512), "stay as they are"),
        ((640, 480), "1.33 times narrower"),
        ((300, 600), "2.00 times flatter"),
    ],
)
def test_proportions_are_told_as_they_change(size, words):
    assert words in figures.of_picture(size, np.zeros((8, 8, 3)))["squeeze"]


# --- what is shown -------------------------------------------------------------------


def test_the_square_picture_is_exactly_what_the_model_gets(tiny):
    value = inside.shown(tiny, str(PICTURE), "detect cat", None)
    shown = np.asarray(Image.open(value["picture"]["square"]["path"]), np.float32)
    given = pixels(Image.open(PICTURE), 128)[0].permute(1, 2, 0).numpy()
    assert shown.shape == (128, 128, 3)
    assert np.allclose(shown / 127.5 - 1, given, atol=1e-6)
    greys = ", ".join(str(int(grey)) for grey in shown[0, 0])
    assert value["facts"]["first_pixel"] == f"({greys})"


def test_the_tokens_are_those_that_the_model_reads(tiny):
    value = inside.shown(tiny, str(PICTURE), "detect cat", None)
    assert [id for id, _, _ in value["tokens"]] == tiny.ids("detect cat")
    assert value["images"] == 64
    assert value["facts"]["tokens"] == "68"


def test_ids_of_the_vocabulary_are_all_there_once(tiny):
    ids = inside.shown(tiny, None, None, None)["ids"]
    ends = [each["first"] + each["count"] for each in ids]
    assert [each["first"] for each in ids] == [0, *ends[:-1]]
    assert ends[-1] == tiny.tokenizer.size
    places = {each["name"]: each["first"] for each in ids}
    for name, piece in (("<loc>", "<loc0000>"), ("<seg>", "<seg000>")):
        assert tiny.tokenizer.piece(places[name]) == piece


def test_a_mask_is_condensed_to_a_band_and_the_text():
    mask = np.array(
        [
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],
        ],
        dtype=bool,
    )
    assert inside.condensed(mask, 2) == ["9990", "9990", "9990", "4999"]


def test_a_window_that_hides_something_has_a_mask_of_its_own(pairs: dict[str, Pair]):
    engine = pairs["gemma2"].engine
    tokens = engine.ids("", "a long answer of many words, further than windows reach")
    view = {**VIEW, "tokens": [{"id": id, "text": ""} for id in tokens], "objects": []}
    prompt = "detect cat"
    run = Run(Ask(engine.name, str(PICTURE), prompt), view=view)
    value = inside.shown(engine, str(PICTURE), prompt, run)
    told = {layer: mask for mask in value["masks"] for layer in mask["layers"]}
    windows = engine.config.decoder.windows
    assert sorted(told) == list(range(len(windows)))
    for layer, window in enumerate(windows):
        hides = told[layer]["rows"][-1] != "9" * len(told[layer]["rows"])
        assert hides == (window is not None)
    assert re.fullmatch(r"hides [1-9][\d,]* places", value["facts"]["window_cut"])


def test_an_answer_to_another_question_is_not_shown(tiny):
    run = Run(Ask("tiny", str(PICTURE), "detect cat"), view=VIEW)

    def answers(path: Path, prompt: str) -> int:
        tokens = inside.shown(tiny, str(path), prompt, run)["tokens"]
        return sum(kind == "answer" for _, _, kind in tokens)

    assert answers(PICTURE, " detect  cat") == 5  # as it is asked, once cleaned
    assert answers(PICTURE, "detect dog") == 0
    assert answers(PENGUINS, "detect cat") == 0


def test_a_box_is_worked_out_edge_by_edge():
    box = inside.worked_box(VIEW)
    assert box["label"] == "cat"
    assert box["rows"] == [
        ["top", "<loc0512>", "512 / 1024 · 480", "240.0"],
        ["left", "<loc0122>", "122 / 1024 · 640", "76.2"],
        ["bottom", "<loc0860>", "860 / 1024 · 480", "403.1"],
        ["right", "<loc0337>", "337 / 1024 · 640", "210.6"],
    ]
    assert inside.worked_box({**VIEW, "objects": []}) is None


@pytest.mark.parametrize(
    ("path", "prompt", "words"),
    [
        (None, "detect cat", "Choose a picture first"),
        (str(PICTURE), "  ", "Write a prompt first"),
        (str(TINY / "README.md"), "detect cat", "not a picture"),
    ],
)
def test_what_is_missing_is_told_and_the_model_is_shown(tiny, path, prompt, words):
    value = inside.shown(tiny, path, prompt, None)
    assert words in value["notice"]
    assert value["facts"]["parameters"] == "4,027,200"
    assert "tokens" not in value


# --- in a browser --------------------------------------------------------------------


def test_the_tab_follows_the_question_through_the_model(page):
    answered(page, "segment penguin")
    text = page.evaluate("document.querySelector('#scope .tokens').innerText")
    look_inside(page)
    assert fact(page, "patches") == "64"
    chips = page.locator("#inside .chip")
    pieces = [chip.split("\n")[0] for chip in chips.all_inner_texts()]
    assert pieces[:5] == ["‹image› × 64", "<bos>", "segment", "·penguin", "⏎"]
    assert pieces[5].startswith("<loc")
    assert all(piece.strip() in text for piece in pieces[2:])
    square = page.locator("#inside .square")
    expect(square).to_have_js_property("naturalWidth", 128)
    rows = page.locator("#inside .edges tbody tr").all_inner_texts()
    cells = [row.split("\t") for row in rows]
    assert [row[1].strip() for row in cells] == pieces[5:9]
    for _, _, arithmetic, place in cells:
        bin, whole, side = map(int, re.findall(r"\d+", arithmetic))
        assert float(place) == pytest.approx(bin / whole * side, abs=0.05)
    codes = page.locator("#inside .codes span").all_inner_texts()
    assert [f"<seg{int(code):03d}>" for code in codes] == pieces[9:25]


def test_keys_move_over_patches_and_tokens(page, tiny):
    look_inside(page)
    told = page.locator("#inside .patches .told")
    expect(told).to_contain_text("Patch 36, in row 5 and column 5: 64 × 64 pixels")
    page.focus("#inside canvas.grid")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(told).to_contain_text("Patch 29, in row 4 and column 6")
    expect(page.locator("#inside .through .at").last).to_have_text("29")
    page.focus("#inside .strip")
    page.keyboard.press("ArrowLeft")
    token = page.locator("#inside .token")
    (word,) = tiny.tokenizer.answer_ids(" penguin")
    expect(token).to_contain_text(f"Position 66: id {word}, “·penguin”, prompt.")
    page.focus("#inside .masks canvas")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    image = tiny.config.image_token
    expect(token).to_contain_text(f"Positions 0 to 63: id {image}")
    expect(page.locator("#inside .sees")).to_have_text(
        "A patch may look at the whole image, at 4 of 4 prompt tokens."
    )


def test_pointing_chooses_a_patch_and_a_token(page):
    look_inside(page)
    box = page.locator("#inside canvas.grid").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] - 3)
    expect(page.locator("#inside .patches .told")).to_contain_text("Patch 56, ")
    page.locator("#inside .chip").nth(1).hover()
    expect(page.locator("#inside .token")).to_contain_text("Position 64: id 2, “<bos>”")


def test_the_mask_is_drawn_as_the_model_has_it(page):
    answered(page, "detect penguin")
    look_inside(page)
    rows = page.evaluate("""async () => {
      const canvas = document.querySelector("#inside .masks canvas");
      const cell = Number(canvas.dataset.cell);
      const ratio = canvas.width / canvas.getBoundingClientRect().width;
      const count = document.querySelectorAll("#inside .chip").length;
      const middle = (i) => Math.round((i ? 64 + (i - 0.5) * cell : 10) * ratio);
      const pen = canvas.getContext("2d");
      const empty = pen.getImageData(middle(count - 1), middle(1), 1, 1).data.join();
      return [...Array(count).keys()].map((r) => [...Array(count).keys()].map(
        (c) => pen.getImageData(middle(c), middle(r), 1, 1).data.join() !== empty));
    }""")
    count = len(rows)
    prefix = 5  # the image, <bos>, two words and the newline
    assert count > prefix + 4
    expected = [[c < prefix or c <= r for c in range(count)] for r in range(count)]
    assert rows == expected


def test_an_answer_that_ends_while_one_looks_is_shown(page):
    look_inside(page)
    expect(page.locator("#inside .chip[data-kind=answer]")).to_have_count(0)
    page.evaluate("document.querySelector('#run').click()")  # the tab stays open
    chips = page.locator("#inside .chip[data-kind=answer]")
    expect(chips.first).to_contain_text("<loc", timeout=PATIENT)
    expect(page.locator("#inside .found")).to_be_visible()


def test_text_is_never_markup(page, tiny, monkeypatch):
    hostile = "<img src=x onerror=window.pwned=1> ${window.pwned=2}"
    monkeypatch.setattr(tiny.tokenizer, "piece", lambda token: hostile)
    monkeypatch.setattr(tiny, "name", hostile)
    look_inside(page)
    expect(page.locator("#inside .chip").nth(1)).to_contain_text(hostile)
    assert fact(page, "model") == hostile
    assert page.locator("#inside img[src=x]").count() == 0
    assert page.evaluate("window.pwned") is None


def test_without_a_picture_the_tab_says_what_to_do_and_recovers(page):
    page.get_by_label("Remove Image").click()
    expect(page.locator("#scope .invite")).to_be_visible()
    look_inside(page)
    expect(page.locator("#inside .notice")).to_contain_text("Choose a picture first")
    assert fact(page, "parameters") == "4,027,200"
    page.get_by_role("tab", name="Probe").click()
    page.locator("#picture input[type=file]").set_input_files(PICTURE)
    page.wait_for_selector("#picture img[src*=meadow]")
    look_inside(page)
    expect(page.locator("#inside .notice")).to_be_hidden()
    assert fact(page, "picture") == "640 × 480 pixels"


def test_a_phone_scrolls_only_down(site, browser):
    for phone in opened(site, browser, width=360, height=740, has_touch=True):
        answered(phone, "segment penguin")
        look_inside(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") == 360


def test_an_engine_that_tells_nothing_is_shown_as_far_as_it_is_known(browser):
    with serve(FakeEngine()) as served:
        for page in opened(served, browser, width=1280, height=860):
            answered(page, "detect cat")
            look_inside(page)
            notice = page.locator("#inside .notice")
            expect(notice).to_contain_text("does not tell what it is made of")
            square = page.locator("#inside .square")
            expect(square).to_have_js_property("naturalWidth", 128)
            expect(page.locator("#inside-gemma")).to_be_hidden()
            expect(page.locator("#inside .edges tbody tr")).to_have_count(4)
            expect(page.locator("#inside .unfold")).to_be_hidden()  # a box, no mask
            assert fact(page, "grid") == "8"


# --- the vision tower's own attention ------------------------------------------------


def test_a_clicked_patch_shows_where_it_looks_in_every_layer_and_head(page, tiny):
    look_inside(page)
    grid, tower = page.locator("#inside canvas.grid"), page.locator("#inside .tower")
    expect(tower).to_be_hidden()
    before = grid.evaluate("canvas => canvas.toDataURL()")
    side = grid.bounding_box()["width"]
    row, column = 3, 5
    grid.click(position={"x": (column + 0.5) * side / 8, "y": (row + 0.5) * side / 8})
    expect(tower).to_be_visible()
    expect(tower).to_contain_text("Where patch 29 looks")
    expect(tower).to_contain_text("Layer 4, head 0 lies on the picture.")
    assert grid.evaluate("canvas => canvas.toDataURL()") != before

    maps = vlm.probes.patch_attention(tiny, Image.open(PENGUINS), 29)
    row, column = divmod(int(maps[4, 0].argmax()), 8)
    red, green, blue = grid.evaluate(
        """(canvas, [x, y]) => {
          const pen = canvas.getContext("2d");
          return [...pen.getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
        }""",
        [(column + 0.25) / 8, (row + 0.25) / 8],
    )[:3]
    assert red > 180 and green > 180 and blue < 150  # the brightest of the scale
    shown = page.locator("#inside .tower-maps")
    hottest = shown.evaluate(
        """(canvas, [layers, heads]) => {
          const pen = canvas.getContext("2d");
          const cell = [canvas.width / heads, canvas.height / layers];
          return Array.from({ length: layers * heads }, (_, map) => {
            const greens = Array.from({ length: 64 }, (_, patch) => {
              const [row, column] = [Math.floor(patch / 8), patch % 8];
              const x = ((map % heads) + (column + 0.5) / 8) * cell[0];
              const y = (Math.floor(map / heads) + (row + 0.5) / 8) * cell[1];
              return pen.getImageData(x, y, 1, 1).data[1];
            });
            return greens.indexOf(Math.max(...greens));
          });
        }""",
        list(maps.shape[:2]),
    )
    expected = maps.flatten(2).argmax(-1).flatten().tolist()
    same = sum(one == other for one, other in zip(hottest, expected))
    assert same >= 0.8 * len(expected)  # a frame or a gap may hide a patch at the edge
    shown.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(tower).to_contain_text("Layer 3, head 1 lies on the picture.")


def test_the_keyboard_asks_where_a_patch_looks(page):
    look_inside(page)
    page.focus("#inside canvas.grid")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    tower = page.locator("#inside .tower")
    expect(tower).to_contain_text("Where patch 28 looks")


@pytest.mark.parametrize("data", [None, [], {}, {"patch": "1"}, {"patch": True}])
def test_what_is_no_patch_is_refused(tiny, data):
    with pytest.raises(ValueError, match="Choose a patch"):
        inside.looked(tiny, str(PENGUINS), data)


def test_a_patch_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match="patch 64 of 64"):
        inside.looked(tiny, str(PENGUINS), {"patch": 64})
    with pytest.raises(ValueError, match="Choose a picture"):
        inside.looked(tiny, None, {"patch": 1})
