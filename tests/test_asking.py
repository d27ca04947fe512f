"""Asking: settings and their limits, several tries, branches, regions and paint."""

from __future__ import annotations

import base64
import functools
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from PIL import Image

import vlm
from vlm.probes import prompt_attention, prompt_shares
from vlm.ui import again, pictures
from vlm.ui.answering import BLOCK
from vlm.ui.asking import MAX_TOKENS, Ask, Settings, asked_for, views
from vlm.ui.store import Store, pack, unpack

ASSETS = Path(__file__).parents[1] / "assets"
PENGUINS = str(ASSETS / "examples" / "penguins.webp")
MEADOW = str(ASSETS / "examples" / "meadow.webp")


@pytest.fixture(scope="module")
def tiny() -> vlm.Engine:
    return vlm.load(ASSETS / "tiny")


@pytest.fixture
def store() -> Store:
    return Store(2**26)


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(delay=0)


def last(engine: Any, store: Store, prompt: str, **how: Any) -> dict:
    """The last view of a question about penguins."""
    settings = Settings(**how.pop("settings", {}))
    ask = Ask("one", how.pop("picture", PENGUINS), prompt, settings=settings, **how)
    return list(views(engine, store, ask))[-1]


def follow(engine: Any, store: Store, wanted: again.Again) -> list[dict]:
    return list(wanted.views({"one": engine}, store))


# --- settings ------------------------------------------------------------------------


def test_every_token_of_a_long_prompt_has_its_maps(tiny, store):
    """They come in blocks, and are those of each token by itself."""
    prompt = "caption " + " ".join("abcdefghij" * (BLOCK // 4))
    run = last(tiny, store, prompt, settings={"max_tokens": 1})["run"]
    trace, image = vlm.Trace(), pictures.read(PENGUINS)
    list(tiny.stream(image, prompt, max_tokens=1, tap=trace))
    count = trace.where.prompt
    assert count > 2 * BLOCK + 1
    entries = store.get(run).entries
    found = {at: entries[f"p{at}"].maps for at in range(1, count)}
    assert len(entries) == len(found) + 1
    for at in found:
        maps = prompt_attention(trace, at).numpy()
        alone = pack(maps, prompt_shares(trace, at).numpy())
        for told, known in zip(*(unpack(e, maps.shape) for e in (found[at], alone))):
            # One level of 255 at most, which are those of the square root.
            np.testing.assert_allclose(told**0.5, known**0.5, atol=1.01 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "Beam"}, "Draw by one of Greedy"),
        ({"temperature": 0}, "Temperature is 0; give a number from 0.05 to 5"),
        ({"temperature": math.nan}, "Temperature is nan"),
        ({"top_p": 1.5}, "Top-p is 1.5"),
        ({"top_k": 2.5}, "Top-k is 2.5; give a whole number"),
        ({"seed": None}, "Seed is None"),
        ({"tries": 9}, "Best of is 9; give a whole number from 1 to 8"),
        ({"max_tokens": "all"}, "Maximum tokens is all"),
        ({"max_tokens": 1.5}, "Maximum tokens is 1.5; give a whole number"),
    ],
)
def test_a_setting_out_of_its_range_is_named_with_its_range(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_the_controls_are_the_fields_of_settings_and_then_the_start():
    values = ("Top-k", 0.7, 0.8, 20, 5, 3, 64)
    ask = asked_for("one", PENGUINS, " detect  cat ", *values, None)
    assert ask.settings == Settings("Top-k", 0.7, 0.8, 20, 5, 3, 64)
    assert (ask.prompt, ask.start) == ("detect cat", "")


def test_whole_numbers_may_come_as_floats(fake, store):
    end = last(fake, store, "caption forever", settings={"max_tokens": 3.0})
    assert (len(end["tokens"]), end["cut"]) == (3, True)


# --- forced starts -------------------------------------------------------------------


def test_only_tokens_that_the_model_said_are_timed(store):
    slow = FakeEngine(delay=0.02)
    start = [slow.tokenizer.id(f" given{i}") for i in range(40)]
    seen = list(
        views(
            slow,
            store,
            Ask(
                "one",
                PENGUINS,
                "caption forever",
                start=tuple(start),
                settings=Settings(max_tokens=5),
            ),
        )
    )
    assert seen[-1]["forced"] == 40
    # 5 tokens of 20 ms each: 50 a second at most, however many were given.
    assert 5 < seen[-1]["timing"]["rate"] <= 50.5
    early = [now for now in seen if 0 < len(now["tokens"]) <= 40]
    assert early, "given tokens are shown before the first one is said"
    assert all(now["timing"] is None and now["forced"] == 40 for now in early)


# --- several tries -------------------------------------------------------------------


def test_of_several_tries_the_most_probable_is_shown_last_and_all_are_kept(tiny, store):
    how = {"style": "Temperature", "temperature": 3.0, "tries": 6, "max_tokens": 12}
    end = last(tiny, store, "caption en", settings=how)
    tries = end["tries"]
    assert len({one["text"] for one in tries}) > 1, "they are drawn apart"
    assert end["run"] == tries[end["try"]]["run"]
    assert tries[end["try"]]["score"] == max(one["score"] for one in tries)
    for number, one in enumerate(tries):
        kept = again.another_try(store, {"run": one["run"]})
        assert (kept["text"], kept["try"]) == (one["text"], number)
        assert kept["tries"] == tries
        assert kept["done"] is True


@pytest.mark.parametrize(
    ("prompt", "start"),
    # The answer to the second is empty; what is given counts for nothing.
    [("caption en", ""), ("detect pizza", ""), ("caption en", "a dog ,")],
)
def test_a_tries_score_is_the_mean_over_what_was_said_and_its_end(
    tiny, store, prompt, start
):
    how = {"style": "Temperature", "temperature": 2.0, "seed": 3, "max_tokens": 40}
    end = last(tiny, store, prompt, start=start, settings=how)
    ids = [token["id"] for token in end["tokens"]]
    assert bool(end["forced"]) is bool(start)
    logits = tiny.logits(pictures.read(PENGUINS), prompt, ids)
    rows = logits[-len(ids) - 1 :].double().log_softmax(-1)
    chosen = [*ids, *([] if end["cut"] else tiny.config.eos[:1])]
    logs = [float(rows[at, token]) for at, token in enumerate(chosen)]
    truth = np.mean(logs[end["forced"] :])
    assert end["tries"][0]["score"] == pytest.approx(truth, abs=0.01)


def test_greedy_is_tried_once(fake, store):
    end = last(fake, store, "caption en", settings={"tries": 8})
    assert len(end["tries"]) == 1


def test_what_was_said_before_a_stop_can_be_looked_at(fake, store):
    drawn = Settings("Temperature", tries=3)
    stream = views(fake, store, Ask("one", PENGUINS, "caption en", settings=drawn))
    now = next(stream)
    while now["try"] == 0 or len(now["tokens"]) < 2:
        now = next(stream)
    stream.close()
    first, second = (
        store.get(run).view for run in (now["tries"][0]["run"], now["run"])
    )
    assert second == {**now, "stopped": True, "done": True}
    assert (first["done"], first["stopped"], first["tries"]) == (
        True,
        False,
        now["tries"],
    )
    assert again.another_try(store, {"run": first["run"]}) == first


# --- branches ------------------------------------------------------------------------


def test_a_branch_asks_the_same_with_the_answer_begun(tiny, store):
    end = last(tiny, store, "caption en")
    other = [token["id"] for token in end["tokens"][:1]]
    other.append(tiny.ids("", " dog")[-1])
    wanted = again.branched(store, {"run": end["run"], "ids": other})
    asked = store.get(end["run"]).ask
    assert wanted.ask == replace(asked, start=tuple(other))
    new = follow(tiny, store, wanted)[-1]
    assert [token["id"] for token in new["tokens"][:2]] == other
    assert new["forced"] == 2
    assert new["text"].startswith(end["tokens"][0]["text"] + " dog")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "0 tokens"),
        ([1] * (MAX_TOKENS + 1), f"1 to {MAX_TOKENS}"),
        ([True], "whole numbers"),
        ([1.5], "whole numbers"),
        ("1", "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_a_branch_is_checked(fake, store, ids, message):
    run = last(fake, store, "caption en")["run"]
    with pytest.raises(ValueError, match=message):
        again.branched(store, {"run": run, "ids": ids})


@pytest.mark.parametrize("token", [-1, 10**9, 10**30])
def test_a_branch_of_no_token_of_the_vocabulary_says_so(tiny, store, token):
    run = last(tiny, store, "caption en")["run"]
    wanted = again.branched(store, {"run": run, "ids": [token]})
    with pytest.raises(ValueError, match=str(token)):
        follow(tiny, store, wanted)


@pytest.mark.parametrize("data", [None, [], "run", {}, {"run": "guess"}, {"run": [1]}])
@pytest.mark.parametrize(
    "way",
    [
        again.branched,
        again.painted_over,
        again.another_try,
        functools.partial(again.begun_by_mask, {}),
    ],
)
def test_a_run_that_is_not_kept_says_what_to_do(store, way, data):
    with pytest.raises(ValueError, match="no longer kept. Press Run"):
        way(store, data)


# --- regions -------------------------------------------------------------------------

HOW = ("Greedy", 1, 0.9, 40, 0, 1, 256, "a forced start")


def test_the_embedded_model_tells_what_is_in_a_drawn_region(tiny, store):
    # By hand, and not on the places that the model has learnt.
    boxes = {"penguin": [0.13, 0.33, 0.42, 0.87], "fish": [0.43, 0.71, 0.71, 0.93]}
    for name, box in boxes.items():
        wanted = again.in_region(store, {"box": box}, "one", PENGUINS, *HOW)
        assert name in follow(tiny, store, wanted)[-1]["text"]


def test_a_region_is_asked_of_the_picture_that_was_shown(fake, store):
    run = last(fake, store, "caption en", picture=MEADOW)["run"]
    data = {"run": run, "box": [0.1, 0.2, 0.5, 0.6]}
    wanted = again.in_region(store, data, "one", PENGUINS, *HOW)
    assert wanted.ask.picture == MEADOW
    assert wanted.ask.start == ""


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.1, 0.1, 0.11, 0.9], "too small"),
        ([0.9, 0.1, 0.1, 0.9], "too small"),
        ([0, 0, 1], "four edges"),
        ([0, 0, 1, 1.5], "four edges"),
        ([0, 0, 1, math.nan], "four edges"),
        ([0, 0, 1, "1"], "four edges"),
        ([0, 0, 1, 10**400], "four edges"),
        (None, "four edges"),
    ],
)
def test_a_region_is_checked(store, box, message):
    with pytest.raises(ValueError, match=message):
        again.in_region(store, {"box": box}, "one", PENGUINS, *HOW)


# --- paint ---------------------------------------------------------------------------


def test_a_picture_that_two_ask_about_is_whole_whenever_it_is_read():
    image = pictures.read(MEADOW)
    place = Path(pictures.shown(image)["path"])
    whole = place.read_bytes()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(lambda: [pictures.shown(image) for _ in range(20)])
        while not again.done():
            assert place.read_bytes() == whole
    assert {each["path"] for each in again.result()} == {str(place)}
    place.unlink()  # as Gradio does with what is old
    assert Path(pictures.shown(image)["path"]).read_bytes() == whole
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_paint_is_the_models_zero_and_changes_nothing_else():
    discs = [(0.25, 0.5, 0.1), (0.9, 0.05, 0.02)]
    before = np.asarray(pictures.read(MEADOW)).astype(int)
    after = np.asarray(pictures.read(pictures.painted(MEADOW, discs))).astype(int)
    height, width, _ = before.shape
    rows, columns = np.mgrid[:height, :width]
    far = [
        np.hypot(columns - x * width, rows - y * width) - r * width for x, y, r in discs
    ]
    inside, outside = np.min(far, axis=0) < -1.5, np.min(far, axis=0) > 1.5
    assert (after[inside] == 127).all()
    assert (after[outside] == before[outside]).all()
    seen = vlm.image.pixels(Image.new("RGB", (8, 8), pictures.GREY), 8)
    assert abs(seen).max() < 0.005


def test_painting_over_what_was_asked_for_makes_the_answer_less_likely(tiny, store):
    old = last(tiny, store, "detect fish")
    assert [thing["label"] for thing in old["objects"]] == ["fish"]

    def change(x: float, y: float) -> tuple[dict, float]:
        data = {"run": old["run"], "strokes": [{"x": x, "y": y, "r": 0.17}]}
        views = follow(tiny, store, again.painted_over(store, data))
        before = views[-1]["before"]
        assert views[0]["before"] == before, "it is told at once"
        logs = [
            np.sum(np.log([one["probability"] for one in each]))
            for each in (before["tokens"], before["now"])
        ]
        return views[-1], logs[1] - logs[0]

    hidden, on_fish = change(0.57, 0.81)
    shown, on_sky = change(0.5, 0.18)
    assert on_fish < -3 < -0.5 < on_sky
    assert hidden["objects"] == []
    assert [thing["label"] for thing in shown["objects"]] == ["fish"]
    assert hidden["before"]["text"] == old["text"]


def test_what_the_model_thinks_now_is_its_own_score_of_the_old_ids(fake, store):
    old = last(fake, store, "detect cat", start="A cat")
    data = {"run": old["run"], "strokes": [{"x": 0.5, "y": 0.5, "r": 0.1}]}
    end = follow(fake, store, again.painted_over(store, data))[-1]
    ids = [token["id"] for token in old["tokens"]]
    scored = fake.score(pictures.read(PENGUINS), "detect cat", ids)
    told = end["before"]
    assert [each["probability"] for each in told["now"]] == [
        pytest.approx(step.probability, rel=0.01) for step in scored
    ]
    assert [token["id"] for token in told["tokens"]] == ids
    assert end["start"] == old["start"]


def test_a_painted_picture_can_be_painted_again(fake, store):
    first = last(fake, store, "caption en")
    for x in (0.2, 0.8):
        data = {"run": first["run"], "strokes": [{"x": x, "y": 0.5, "r": 0.1}]}
        first = follow(fake, store, again.painted_over(store, data))[-1]
    image = pictures.read(store.get(first["run"]).ask.picture)
    for x in (0.2, 0.8):
        assert image.getpixel((int(x * image.width), image.width // 2)) == pictures.GREY


DAB = {"x": 0.5, "y": 0.5, "r": 0.1}


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "Paint something first"),
        (None, "Paint something first"),
        ([DAB] * 2001, "1 to 2000"),
        ([{**DAB, "x": 1.1}], "outside the picture"),
        ([{**DAB, "y": 1.1}], "outside the picture"),
        ([{**DAB, "r": 5}], "outside the picture"),
        ([{**DAB, "r": math.inf}], "outside the picture"),
        ([{"x": 0.5}], "outside the picture"),
        (["dab"], "outside the picture"),
    ],
)
def test_strokes_are_checked(fake, store, strokes, message):
    run = last(fake, store, "caption en")["run"]
    with pytest.raises(ValueError, match=message):
        again.painted_over(store, {"run": run, "strokes": strokes})


def test_a_run_without_an_end_cannot_be_painted_yet(store):
    run = store.open(SimpleNamespace(picture=PENGUINS, more=()))
    with pytest.raises(ValueError, match="Let it finish"):
        again.painted_over(store, {"run": run, "strokes": [DAB]})


# --- a mask --------------------------------------------------------------------------

FISH = [{"x": 0.52, "y": 0.82, "r": 0.08}, {"x": 0.6, "y": 0.82, "r": 0.09}]


def test_what_is_painted_begins_the_answer_as_a_mask(tiny, store):
    old = last(tiny, store, "detect penguin ; fish")
    data = {"run": old["run"], "strokes": FISH}
    seen = follow(tiny, store, again.begun_by_mask({"one": tiny}, store, data))
    end = seen[-1]
    assert end["question"] == "segment penguin ; fish"
    assert end["forced"] == 20
    kinds = [tiny.tokenizer.loc(each["id"]) is not None for each in end["tokens"][:20]]
    assert kinds == [True] * 4 + [False] * 16
    given = tiny.score(pictures.read(PENGUINS), end["question"], end["start"])
    chances = [token["probability"] for token in end["tokens"][:20]]
    assert chances == pytest.approx([step.probability for step in given], abs=1e-3)
    first = end["objects"][0]
    assert (first["label"], first["duplicate"]) == ("fish", None)
    assert end["before"] is None and end["image"] == old["image"]
    # The discs' own bounds to a band of places, and their shape.
    size = end["width"]
    known = np.multiply([0.44, 0.73, 0.69, 0.91], size)
    assert first["box"] == pytest.approx(known, abs=8.5 / 1024 * size)
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    truth = np.any(
        [np.hypot(columns - d["x"], rows - d["y"]) < d["r"] for d in FISH], axis=0
    )
    png = view_mask(first["mask"], first["box"], size)
    iou = (png & truth).sum() / (png | truth).sum()
    assert all(now["mask_iou"] == end["mask_iou"] for now in seen)
    assert end["mask_iou"] == pytest.approx(iou, abs=0.02)
    assert iou > 0.9
    assert store.get(end["run"]).view["mask_iou"] == end["mask_iou"]
    assert type(end["mask_iou"]) is float  # or it would be sent as text


def view_mask(url: str, box: list[float], size: int) -> np.ndarray:
    """A mask of the view over a square picture, bool [H, W]."""
    inside = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    x1, y1, x2, y2 = (round(edge) for edge in box)
    whole = np.zeros((size, size), bool)
    soft = inside.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    whole[y1:y2, x1:x2] = np.asarray(soft) >= 128
    return whole


def test_a_mask_over_a_wide_picture_lies_where_it_was_painted(tiny, store):
    old = last(tiny, store, "segment cat", picture=MEADOW)  # 640 x 480
    disc = {"x": 0.8, "y": 0.6, "r": 0.1}  # all in shares of the width
    data = {"run": old["run"], "strokes": [disc]}
    wanted = again.begun_by_mask({"one": tiny}, store, data)
    assert wanted.ask.prompt == "segment cat"
    end = follow(tiny, store, wanted)[-1]
    assert end["objects"][0]["box"] == pytest.approx([448, 320, 576, 448], abs=6)
    assert end["mask_iou"] > 0.9


def test_how_it_was_asked_is_kept_for_a_mask(tiny, store):
    how = {"style": "Top-k", "top_k": 3, "seed": 5, "max_tokens": 7}
    old = last(tiny, store, "segment fish", settings=how, start="<loc0008>")
    data = {"run": old["run"], "strokes": FISH}
    wanted = again.begun_by_mask({"one": tiny}, store, data)
    asked = store.get(old["run"]).ask
    assert wanted.ask == replace(asked, start=wanted.ask.start)
    assert wanted.ask.start.count("<loc") == 4


@pytest.mark.parametrize(
    ("prompt", "strokes", "message"),
    [
        ("caption en", FISH, "ask to detect or segment something first"),
        ("caption <loc0008><loc0008><loc0520><loc0520>", FISH, "ask to detect"),
        ("segment cat", [{"x": 1, "y": 0.5, "r": 0}], "empty. Paint something"),
        ("segment cat", [], "Paint something first"),
        ("segment cat", [{"x": 0.5, "y": 2, "r": 0.1}], "outside the picture"),
    ],
)
def test_what_is_no_mask_is_told(tiny, store, prompt, strokes, message):
    run = last(tiny, store, prompt, settings={"max_tokens": 2})["run"]
    with pytest.raises(ValueError, match=message):
        again.begun_by_mask({"one": tiny}, store, {"run": run, "strokes": strokes})


def test_an_engine_without_masks_says_what_to_do(fake, store):
    run = last(fake, store, "segment cat")["run"]
    with pytest.raises(ValueError, match="fake came without .* vae-oid.npz"):
        again.begun_by_mask({"one": fake}, store, {"run": run, "strokes": FISH})


def test_a_picture_that_is_gone_is_to_be_chosen_again(tmp_path):
    with pytest.raises(ValueError, match="Choose it once more"):
        pictures.read(tmp_path / "gone.png")
