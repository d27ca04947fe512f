"""Several pictures in one question: what the server makes of them, and `/probe`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import EXAMPLES, PATIENT, answered, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect

import vlm
from vlm import picture_file
from vlm.probes import METHODS, image_attention
from vlm.ui import again, export, inside, pictures
from vlm.ui.asking import Ask, views
from vlm.ui.explaining import answered as asked_of
from vlm.ui.explaining import explained
from vlm.ui.store import Store, unpack
from vlm.ui.trying import tried

TINY = Path(__file__).parents[1] / "assets" / "tiny"
PENGUINS, MEADOW, KITCHEN = (
    str(EXAMPLES / f"{name}.webp") for name in ("penguins", "meadow", "kitchen")
)
THREE = (PENGUINS, MEADOW, KITCHEN)
PROMPT = "detect fish"
ONE = "This is for one picture"


@pytest.fixture(scope="module")
def tiny() -> vlm.Engine:
    return vlm.load(TINY)


@pytest.fixture(scope="module")
def run(tiny) -> SimpleNamespace:
    """A question about three pictures, answered."""
    store = Store(2**26)
    ask = Ask("tiny", PENGUINS, PROMPT, more=THREE[1:])
    *_, last = views(tiny, store, ask)
    return SimpleNamespace(store=store, ask=ask, view=last, engines={"tiny": tiny})


def opened_all() -> list[Image.Image]:
    return [pictures.read(path) for path in THREE]


def clip_at(path: Path, count: int, size: tuple[int, int] = (24, 16)) -> Path:
    frames = [Image.new("RGB", size, (9 * n, 200 - 9 * n, 90)) for n in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


# --- on the server -------------------------------------------------------------------


def test_the_maps_of_all_pictures_are_kept_under_each_other(run, tiny) -> None:
    trace = vlm.Trace()
    ids = [token["id"] for token in run.view["tokens"]]
    tiny.score(opened_all(), PROMPT, ids, tap=trace)
    shape = (4, 4, 3 * 8, 8)
    for key, index in (("a0", 0), ("a2", 2)):
        entry = run.store.get(run.view["run"]).entries[key]
        maps, _ = unpack(entry.maps, shape)
        for number in range(3):
            own = image_attention(trace, index, image=number).numpy()
            part = maps[:, :, 8 * number : 8 * (number + 1)]
            np.testing.assert_allclose(part, own, atol=4e-3 * maps.max())
    told = [run.view, *run.view["more"]]
    sizes = [(each["width"], each["height"]) for each in told]
    assert sizes == [image.size for image in opened_all()]
    rows = 8 * 8
    assert run.view["memory"] == (
        (3 * rows + 1 + len(run.view["prompt"]) + len(ids))
        * tiny.describe()["cache_bytes"]
    )


def test_a_view_of_one_picture_names_no_others(tiny) -> None:
    *_, last = views(tiny, Store(2**26), Ask("tiny", PENGUINS, PROMPT))
    assert last["more"] == []


def test_more_pictures_than_are_asked_are_refused() -> None:
    Ask("tiny", PENGUINS, PROMPT, more=(MEADOW,) * 15)
    with pytest.raises(ValueError, match="These are 17 pictures; at most 16"):
        Ask("tiny", PENGUINS, PROMPT, more=(MEADOW,) * 16)


def test_pictures_that_are_too_large_together_are_refused(monkeypatch) -> None:
    first, second, third = (image.width * image.height for image in opened_all())
    # Bytes that WebP's decoder takes at its peak, beside what is read already.
    most = max(18 * second + 4 * first, 18 * third + 4 * (first + second))
    monkeypatch.setattr(picture_file, "MEMORY", most)
    assert len(pictures.read_all(THREE)) == 3
    monkeypatch.setattr(picture_file, "MEMORY", most - 1)
    with pytest.raises(ValueError, match="at most .* million"):
        pictures.read_all(THREE)


def test_what_is_for_one_picture_says_so(run) -> None:
    name = run.view["run"]
    strokes = [{"x": 0.5, "y": 0.5, "r": 0.1}]
    with pytest.raises(ValueError, match=ONE):
        again.painted_over(run.store, {"run": name, "strokes": strokes})
    box = [0.1, 0.1, 0.6, 0.6]
    how = ("Greedy", 1.0, 0.9, 40, 0, 1, 8, "")
    with pytest.raises(ValueError, match=ONE):
        again.in_region(run.store, {"run": name, "box": box}, "tiny", PENGUINS, *how)


def test_a_branch_is_about_the_same_pictures(run) -> None:
    ids = [run.view["tokens"][0]["id"]]
    wanted = again.branched(run.store, {"run": run.view["run"], "ids": ids})
    assert wanted.ask == replace(run.ask, start=tuple(ids))


def test_ways_and_tests_are_of_the_picture_that_is_shown(run) -> None:
    data = {"run": run.view["run"], "tokens": [1], "picture": 2}
    ids = tuple(token["id"] for token in run.view["tokens"])
    news = explained(run.engines, run.store, data)
    first = next(now for now in news if len(now["heats"]) == 2)
    news.close()
    assert first["picture"] == 2
    asked = asked_of(run.engines, run.ask, ids, 2)
    for name, rows in first["heats"].items():
        expected = METHODS[name].heat(asked, [1])
        np.testing.assert_allclose(rows, expected, rtol=1e-2, atol=1e-6)
        other = METHODS[name].heat(replace(asked, focus=0), [1])
        assert not np.allclose(rows, other, rtol=0.1)

    test = {"run": run.view["run"], "token": 1, "trial": "layers", "number": 1}
    *_, told = tried(run.engines, run.store, {**test, "picture": 2})
    assert (told["picture"], told["ended"]) == (2, True)
    for ask in (explained, tried):
        for picture, words in ((3, "image 3 of 3"), ("1", "which is meant")):
            with pytest.raises(ValueError, match=words):
                list(ask(run.engines, run.store, {**data, **test, "picture": picture}))


def test_a_saved_run_carries_all_its_pictures(run) -> None:
    told = export.data(run.store.get(run.view["run"]))["view"]
    assert len(told["more"]) == 2
    for each, image in zip([told, *told["more"]], opened_all()):
        coded = each["image"]["url"].partition(",")[2]
        shown = Image.open(io.BytesIO(base64.b64decode(coded)))
        assert shown.width / shown.height == pytest.approx(
            image.width / image.height, 0.01
        )
    assert "path" not in str(told["more"])


def test_inside_says_that_it_shows_the_first_alone(run, tiny) -> None:
    value = inside.shown(tiny, PENGUINS, PROMPT, run.store.get(run.view["run"]))
    assert value["notice"] == inside.SEVERAL
    assert value["images"] == 64
    assert all(kind != "answer" for *_, kind in value["tokens"])


def test_a_clip_becomes_frames_and_a_picture_does_not(tmp_path, monkeypatch) -> None:
    path = str(clip_at(tmp_path / "clip.gif", 20, size=(960, 32)))
    files = pictures.clip(path, 8)
    frames = [pictures.read(file) for file in files]
    assert [frame.size for frame in frames] == [(896, 30)] * 8
    reds = [frame.getpixel((5, 5))[0] for frame in frames]
    assert reds == pytest.approx([9 * n for n in (1, 3, 6, 8, 11, 13, 16, 18)], abs=4)
    assert pictures.clip(PENGUINS, 8) == []
    monkeypatch.setattr(pictures, "MAX_CLIP", 20 * 960 * 32 - 1)
    with pytest.raises(ValueError, match="20 frames of 960 x 32 pixels. Make it"):
        pictures.clip(path, 8)


# --- the endpoint, and the page -------------------------------------------------------


@pytest.fixture(scope="module")
def site(tiny) -> Iterator[SimpleNamespace]:
    with serve(tiny) as served:
        yield served


def test_probe_takes_further_pictures(site, tiny, tmp_path) -> None:
    api = Client(site.url, verbose=False)
    first, *others = map(handle_file, THREE)
    how = {"images": others, "max_tokens": 6, "api_name": "/probe"}
    told = api.predict(first, PROMPT, **how)
    steps = list(tiny.stream(opened_all(), PROMPT, max_tokens=6))
    assert [token["id"] for token in told["tokens"]] == [step.token for step in steps]
    many = [tmp_path / f"{number}.png" for number in range(16)]
    for number, path in enumerate(many):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    with pytest.raises(AppError, match="These are 17 pictures"):
        api.predict(first, PROMPT, **{**how, "images": [*map(handle_file, many)]})
    with pytest.raises(AppError, match="Send the picture as a file"):
        api.predict(first, PROMPT, **{**how, "images": [MEADOW]})


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=1000)


def test_the_page_shows_what_the_model_saw_of_each_picture(page, tiny) -> None:
    page.locator("#more input[type=file]").set_input_files(THREE[1:])
    expect(page.locator("#more li")).to_have_count(2, timeout=PATIENT)
    answered(page, "detect cat")
    page.click("#scope .chip[data-key=a0]")
    trace = vlm.Trace()
    list(tiny.stream(opened_all(), "detect cat", tap=trace))
    for layer in (1, 2):
        page.locator("#scope .layer input").fill(str(layer))
        expect(page.locator("#scope .layer output")).to_have_text(f"{layer} / 3")
        for number in range(3):
            share = image_attention(trace, 0, layer=layer, image=number)
            seen = 100 * float(share.sum(dim=(-2, -1)).mean())
            words = page.locator("#scope .reel span").nth(number).inner_text()
            if words == "< 0.1 %":
                assert seen < 0.06
            else:
                assert float(words.split()[0]) == pytest.approx(seen, rel=0.03, abs=0.6)
