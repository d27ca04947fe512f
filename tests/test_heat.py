"""The heat: how maps travel, what its colours and numbers say, and the sheet of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine
from pages import answered, opened, serve, spot, thumb
from PIL import Image
from playwright.sync_api import Page, expect

import vlm
from vlm.ui.store import Entry, Store, pack, unpack

LAYERS, HEADS, GRID = 4, 4, 8
PROMPT = "detect cat ; dog ; ball"
DARKEST, BRIGHTEST = [38, 6, 70], [253, 231, 37]
SINKS = (0, 11)  # patches


class Sinking(FakeEngine):
    """Head 1 looks at two patches whatever is asked; `free` rows do not."""

    free: tuple[float, float] | None = None

    def _row(self, layer: int, place: tuple[float, float], keys: int) -> torch.Tensor:
        row = super()._row(layer, place, keys)
        if place != self.free:
            image = row[1, : self.grid**2]
            share = image.sum()
            image[list(SINKS)] += share
            image *= share / image.sum()
        return row


class Deep(FakeEngine):
    """As many layers as PaliGemma 2 of 28B has."""

    def __init__(self, heads: int) -> None:
        super().__init__(layers=46, heads=heads, grid=4, delay=0)

    def _row(self, layer: int, place: tuple[float, float], keys: int) -> torch.Tensor:
        return torch.full((self.heads, keys), 1 / keys)


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(Sinking(layers=LAYERS, heads=HEADS, grid=GRID)) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=1100)


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Of answer token 7, the dog's left edge: attention and shares, straight."""
    trace = vlm.Trace()
    engine = Sinking(layers=LAYERS, heads=HEADS, grid=GRID, delay=0)
    list(engine.stream(None, PROMPT, tap=trace))
    attention = vlm.probes.image_attention(trace, 7).numpy()
    return attention, vlm.probes.attention_shares(trace, 7).numpy()


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("kind", ["noisy", "even", "smooth"])
def test_maps_take_at_most_1_4_of_their_bytes_on_the_wire(grid, kind):
    attention = some_attention(kind, grid)
    bins = np.random.default_rng(1).dirichlet(np.full(1024, 0.2)).astype(np.float32)
    candidate = {"text": "<loc0512>", "id": 256512, "probability": 0.1234}
    store = Store(2**30)
    run = store.open(None)
    shares = np.full((*attention.shape[:2], 4), 0.25, np.float32)
    entry = Entry(pack(attention, shares), [candidate] * 5, bins)
    store.add(run, "a0", entry)
    sent = len(json.dumps(store.read(run, ["a0"])))
    # The bins have their own bytes: 1024 of them.
    assert sent <= 1.4 * (attention.size + bins.size)


def test_packed_maps_come_back_whatever_their_size():
    attention = some_attention("noisy", 16)
    sizes = 10.0 ** -np.arange(8)
    attention = (attention * sizes[:, None, None, None]).astype(np.float32)
    shares = np.random.default_rng(2).dirichlet(np.ones(4), (8, 8)).astype(np.float32)
    peaks = attention.max(axis=(2, 3), keepdims=True)
    back, told = unpack(pack(attention, shares), attention.shape)
    np.testing.assert_allclose(told, shares, atol=3e-4)
    np.testing.assert_allclose(back.max(axis=(2, 3)), peaks[..., 0, 0], rtol=2e-3)
    # Half a step of 255 in the root of a part of the peak.
    assert (np.abs(np.sqrt(back / peaks) - np.sqrt(attention / peaks)) < 3e-3).all()


def test_pointing_at_a_patch_tells_its_attention(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    choose_layer_and_head(page, 2, 3)
    page.mouse.move(*spot(page, 0.52, 0.68))
    row, column, here, percentage = told_patch(page)
    assert (row, column) == (6, 5)  # counted from 1
    attention = truth[0][2, 3]
    assert here == pytest.approx(attention[5, 4], rel=5e-3)
    assert percentage == pytest.approx(
        100 * attention[5, 4] / attention.sum(), rel=5e-3
    )
    page.focus("#scope .stage canvas")
    page.keyboard.press("ArrowUp")
    row, column, here, _ = told_patch(page)
    assert (row, column) == (5, 5)
    told = page.locator("#scope .note").inner_text()
    expect(page.locator("#scope .say")).to_contain_text(f"{told}. Looked here most: ")
    assert here == pytest.approx(attention[4, 4], rel=5e-3)


@pytest.mark.parametrize("patch", [SINKS[0], 5 * GRID + 4])
def test_the_maximum_of_heads_is_taken_for_each_patch(page, truth, patch):
    """Head 1 looks at the sinks most, head 3 at the dog."""
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    page.locator("#scope .layer input").fill("2")
    page.click("#scope .heads [data-head='-2']")
    most = truth[0][2].max(axis=0)
    row, column = divmod(patch, GRID)
    page.mouse.move(*spot(page, (column + 0.5) / GRID, (row + 0.5) / GRID))
    *where, here, percentage = told_patch(page)
    assert where == [row + 1, column + 1]
    assert here == pytest.approx(most[row, column], rel=5e-3)
    share = most[row, column] / most.sum()
    assert percentage == pytest.approx(100 * share, rel=5e-3)


def test_the_head_that_varies_most_is_found_in_each_layer(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    page.click("#scope .heads [data-head='-3']")
    page.mouse.move(5, 5)
    widest = vlm.probes.head_of_largest_variance(torch.from_numpy(truth[0]))
    for layer, head in enumerate(widest.tolist()):
        page.locator("#scope .layer input").fill(str(layer))
        where = f"Where it looked, layer {layer}, head {head}, which varies most"
        expect(page.locator("#scope .where")).to_have_text(where)
        assert (thumbnail(page, -3) == thumbnail(page, head)).all()
    page.focus("#scope .heads [data-head='-3']")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#scope .heads [data-head='-2']")).to_be_checked()


def test_contrast_bends_colours_and_no_number(page):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    page.mouse.move(*spot(page, 0.52, 0.68))
    before, words = thumbnail(page, 3), page.inner_text("#scope .bar")
    brightness = {}
    for contrast in (-100, 0, 100):
        page.locator("#scope .contrast input").fill(str(contrast))
        brightness[contrast] = thumbnail(page, 3).sum()
        assert page.inner_text("#scope .bar") == words
    assert brightness[-100] > brightness[0] > brightness[100]
    page.locator("#scope .contrast input").fill("0")
    assert (thumbnail(page, 3) == before).all()


def test_the_scales_say_what_their_brightest_colour_means(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    attention = truth[0]
    peak, seen = page.locator("#scope .peak"), page.locator("#scope .seen")
    for number in (0, 1):
        head = attention[2, number]
        rest = np.delete(head.ravel(), SINKS if number == 1 else ())
        expected = {
            "image": head.max() / head.sum(),
            "sinks": rest.max() / rest.sum(),
            "raw": attention.max(),
        }
        choose_layer_and_head(page, 2, number)
        for scale, full in expected.items():
            page.click(f"#scope [data-scale={scale}]")
            expect(peak).to_have_text(percent(full))
            expect(seen).to_have_text(percent(head.sum()))


def test_sinks_are_left_out_and_told(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    choose_layer_and_head(page, 2, 1)
    dog = 5 * GRID + 4
    assert thumbnail(page, 1)[SINKS[0]].tolist() == BRIGHTEST
    page.click("#scope [data-scale=sinks]")
    shown = thumbnail(page, 1)
    assert [shown[patch].tolist() for patch in SINKS] == [DARKEST] * 2
    assert shown[dog].tolist() == BRIGHTEST
    head = truth[0][2, 1].ravel()
    gone = head[list(SINKS)].sum() / head.sum()
    left_out = page.locator("#scope .left-out")
    expect(left_out).to_have_text(f"2 sinks left out: {percent(gone)}")
    page.click("#scope .heads [data-head='2']")
    expect(left_out).to_have_text("no sinks here")
    assert thumbnail(page, 2)[dog].tolist() == BRIGHTEST


def test_a_patch_that_one_row_does_not_look_at_is_no_sink(browser):
    engine = Sinking(layers=LAYERS, heads=HEADS, grid=GRID)
    engine.free = engine._answer(PROMPT)[-1][1]  # the rows that look for the ball
    with serve(engine) as site:
        for page in opened(site, browser, width=1280, height=900):
            answered(page, PROMPT)
            page.click("#scope .chip[data-key=a7]")
            choose_layer_and_head(page, 2, 1)
            page.click("#scope [data-scale=sinks]")
            expect(page.locator("#scope .left-out")).to_have_text("no sinks here")


def test_the_patches_are_told_in_the_pictures_own_pixels(page, tmp_path):
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "mine.png")
    note = page.locator("#scope .note")
    expect(note).to_have_text("8 × 8 patches of 64 × 64 px, at 128 × 128 for the model")
    page.get_by_label("Remove Image").click()
    expect(note).to_have_text("")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "mine.png")
    words = "8 × 8 patches of 37.5 × 25 px, squeezed to 128 × 128 for the model"
    expect(note).to_have_text(words)


def test_the_sheet_previews_and_keeps_a_layer_and_head(page):
    answered(page, PROMPT)
    where = page.locator("#scope .where")
    before = where.inner_text()
    page.mouse.move(*cell(page, 3, 2))
    expect(where).to_have_text("Where it looked, layer 3, head 2")
    page.mouse.move(5, 5)
    expect(where).to_have_text(before)
    page.mouse.click(*cell(page, 3, 2))
    page.mouse.move(5, 5)
    expect(where).to_have_text("Where it looked, layer 3, head 2")
    expect(page.locator("#scope .heads [data-head='2']")).to_be_checked()
    page.focus("#scope .cells")
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    expect(where).to_have_text("Where it looked, layer 2, head 0")
    expect(page.locator("#scope .say")).to_contain_text("layer 2, head 0: ")
    page.keyboard.press("Escape")
    expect(where).to_have_text("Where it looked, layer 3, head 2")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.focus("#scope .tokens")
    expect(where).to_have_text("Where it looked, layer 3, head 3")


def test_the_sheet_shows_every_map(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    sheet_shows(page, "maps:a7")
    attention = truth[0]
    for layer in range(LAYERS):
        for head in range(HEADS):
            here = attention[layer, head]
            assert color_at(page, layer, head, here.argmax()) == BRIGHTEST
            assert color_at(page, layer, head, here.argmin()) != BRIGHTEST


def test_the_sheet_tells_how_much_is_in_the_box(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    page.click("#scope [data-view=box]")
    sheet_shows(page, "box:a7")
    x1, y1, x2, y2 = (edge / 1024 for edge in (399, 512, 665, 880))  # the dog
    fine = 128  # points to a patch's side
    at = (np.arange(GRID * fine) + 0.5) / (GRID * fine)
    inside = np.outer((y1 <= at) & (at < y2), (x1 <= at) & (at < x2))
    parts = inside.reshape(GRID, fine, GRID, fine).mean(axis=(1, 3))
    attention = truth[0]
    shares = (attention * parts).sum(axis=(2, 3)) / attention.sum(axis=(2, 3))
    reading = page.locator("#scope .reading")
    layer, head = np.unravel_index(shares.argmax(), shares.shape)
    most = f"layer {layer}, head {head}: {percent(shares.max())} in the box"
    expect(reading).to_have_text(f"Most: {most}")
    assert color_at(page, layer, head) == BRIGHTEST
    page.mouse.move(*cell(page, 1, 1))
    told = f"layer 1, head 1: {percent(shares[1, 1])} in the box"
    expect(reading).to_have_text(told)
    page.mouse.move(5, 5)
    page.click("#scope .chip[data-key=p2]")  # belongs to no object
    expect(reading).to_have_text("Choose an object, or a token of one.")


def test_the_sheet_tells_how_much_is_on_the_image(page, truth):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    page.click("#scope [data-view=image]")
    sheet_shows(page, "image:a7")
    shares = truth[1][..., 0]
    reading = page.locator("#scope .reading")
    for layer, head in ((0, 0), (2, 3)):
        page.mouse.move(*cell(page, layer, head))
        told = (
            f"layer {layer}, head {head}: {percent(shares[layer, head])} on the image"
        )
        expect(reading).to_have_text(told)


def test_moving_over_the_sheet_paints_none_of_it_again(page):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    sheet_shows(page, "maps:a7")
    page.evaluate("""() => {
      window.painted = 0;
      const paint = CanvasRenderingContext2D.prototype.putImageData;
      CanvasRenderingContext2D.prototype.putImageData = function (...pixels) {
        if (this.canvas.width === 4 * 8) window.painted += 1;
        return paint.apply(this, pixels);
      };
    }""")
    for layer, head in ((0, 0), (1, 2), (3, 3)):
        page.mouse.move(*cell(page, layer, head))
        expect(page.locator("#scope .where")).to_contain_text(f"layer {layer}, head")
    assert page.evaluate("window.painted") == 0
    page.click("#scope .chip[data-key=a1]")
    sheet_shows(page, "maps:a1")
    assert page.evaluate("window.painted") == LAYERS


@pytest.mark.parametrize("heads", [8, 32])
def test_46_layers_have_room(browser, heads):
    with serve(Deep(heads)) as site:
        for page in opened(site, browser, width=1280, height=900):
            answered(page, "detect cat")
            page.click("#scope [data-view=image]")
            room = page.locator("#scope .sheet").bounding_box()
            assert room["height"] < 620
            for part in (".cells", ".sheet-room", ".heads"):
                wide, shown = page.locator(f"#scope {part}").evaluate(
                    "el => [el.scrollWidth, el.clientWidth]"
                )
                assert wide <= shown, part
            page.mouse.click(*cell(page, 45, heads - 1, layers=46, heads=heads))
            where = page.locator("#scope .where")
            expect(where).to_contain_text(f"layer 45, head {heads - 1}")
            last = page.locator("#scope .heads button").last
            expect(last).to_be_checked()
            expect(last).to_be_in_viewport()


def test_nothing_moves_when_the_heat_is_looked_at(page):
    answered(page, PROMPT)
    page.click("#scope .chip[data-key=a7]")
    parts = ("stage", "look", "heat", "legend", "patches", "tokens", "cells")

    def places() -> list[dict]:
        return [page.locator(f"#scope .{part}").bounding_box() for part in parts]

    before = places()
    for button in ("scale=sinks", "scale=raw", "view=box", "view=image", "scale=image"):
        page.click(f"#scope [data-{button}]")
        assert places() == before
    page.click("#scope .patches")
    page.mouse.move(*spot(page, 0.5, 0.7))
    assert told_patch(page)
    assert places() == before


def some_attention(kind: str, grid: int) -> np.ndarray:
    """Float32 [8, 8, grid, grid], rows of a softmax that spends 0.4 on the image."""
    random = np.random.default_rng(0)
    if kind == "smooth":
        at = (np.arange(grid) + 0.5) / grid
        x, y, width = random.uniform(0.1, 0.9, (3, 8, 8, 1, 1))
        distance = (at - x) ** 2 + (at[:, None] - y) ** 2
        weights = np.exp(-distance / width**2) + 0.01
    else:
        sharpness = {"noisy": 0.3, "even": 20.0}[kind]
        weights = random.gamma(sharpness, size=(8, 8, grid, grid))
    total = weights.sum(axis=(2, 3), keepdims=True)
    return (0.4 * weights / total).astype(np.float32)


def choose_layer_and_head(page: Page, layer: int, head: int) -> None:
    page.locator("#scope .layer input").fill(str(layer))
    page.click(f"#scope .heads [data-head='{head}']")
    page.mouse.move(5, 5)
    where = f"Where it looked, layer {layer}, head {head}"
    expect(page.locator("#scope .where")).to_have_text(where)


def told_patch(page: Page) -> tuple[int, int, float, float]:
    """Row, column, attention and percentage, as the page tells them."""
    note = page.locator("#scope .note")
    expect(note).to_contain_text("Row")
    drawn(page)
    words = note.inner_text().replace(",", " ").replace(":", " ").split()
    return int(words[1]), int(words[3]), float(words[4]), float(words[5])


def thumbnail(page: Page, head: int) -> np.ndarray:
    """Colours of a head's patches, [patches, 3]."""
    drawn(page)
    return thumb(page, f"#scope .heads [data-head='{head}']", GRID)


def color_at(page: Page, layer: int, head: int, patch: int | None = None) -> list[int]:
    """In the middle of a cell of the sheet, or of one of its patches."""
    row, column = (0.5, 0.5) if patch is None else np.array(divmod(patch, GRID)) + 0.5
    side = 1 if patch is None else GRID
    color = page.locator("#scope .cells canvas").evaluate(
        """(canvas, [x, y]) => [...canvas.getContext("2d").getImageData(
          Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data]""",
        [(head + column / side) / HEADS, (layer + row / side) / LAYERS],
    )
    return color[:3]


def cell(
    page: Page, layer: int, head: int, *, layers: int = LAYERS, heads: int = HEADS
) -> tuple[float, float]:
    """Where a cell of the sheet is on the page, once it is in sight."""
    canvas = page.locator("#scope .cells canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x = box["x"] + (head + 0.5) / heads * box["width"]
    return x, box["y"] + (layer + 0.5) / layers * box["height"]


def sheet_shows(page: Page, what: str) -> None:
    expect(page.locator("#scope .cells")).to_have_attribute("data-shows", what)


def drawn(page: Page) -> None:
    page.evaluate(
        "() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"
    )


def percent(share: float) -> str:
    """As the page writes it."""
    return f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f} %"
