"""What is asked of a pair, and what is refused, without a page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import EXAMPLES
from PIL import Image

import vlm
from vlm.tap import Tap
from vlm.ui import matching, pairs

PAIR = Path(__file__).parents[1] / "assets" / "tiny-pair"


@pytest.fixture(scope="module")
def pair() -> vlm.Pair:
    return vlm.load_pair(PAIR, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(EXAMPLES / name).convert("RGB") for name in pairs.BEGIN]


def entry(path: Path) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_the_probabilities_are_those_of_the_library(pair, images):
    match = matching.matched(pair, images, [*pairs.TEXTS])
    for way in ("sigmoid", "softmax"):
        known = pair.scores(images, pairs.TEXTS, loss=way).numpy()
        assert getattr(match, way) == pytest.approx(known, abs=1e-6)
    logits = match.cosines.astype(float) * match.scale + match.bias
    assert match.logits == pytest.approx(logits, abs=1e-5)
    assert np.abs(match.cosines).max() <= 1 + 1e-6


def test_what_the_tab_begins_with_shows_how_the_two_ways_differ(pair, images):
    match = matching.matched(pair, images, [*pairs.TEXTS])
    penguins, bananas, kitchen = match.sigmoid
    assert penguins[0] > 0.9
    assert bananas[1] > 0.8 and bananas[2] > 0.8  # two texts fit,
    assert match.softmax[1].max() < 0.8  # and share what there is
    assert kitchen.max() < 0.1  # none fits,
    assert match.softmax[2].max() > 0.5  # and one wins


class Rows(Tap):
    """Each head's attention of the pool, as the model tells it."""

    def attention(self, tower, layer, weights):
        if tower == "pool":
            self.heads = weights(slice(None))  # [I, heads, 1, patches]


def test_a_look_is_the_mean_over_the_heads_of_the_pool(pair, images):
    match = matching.matched(pair, images, ["a boat"])
    for image, look in zip(images, match.looks, strict=True):
        rows = Rows()
        pair.images([image], tap=rows)
        heads = rows.heads[0, :, 0].double().numpy()
        assert look.shape == (8, 8)
        assert look.sum() == pytest.approx(1, abs=1e-5)
        assert look == pytest.approx(heads.mean(0).reshape(8, 8), abs=1e-6)
    assert not np.allclose(match.looks[0], match.looks[1], atol=1e-3)


def test_what_is_drawn_is_the_match(pair, images):
    match = matching.matched(pair, images, [*pairs.TEXTS])
    drawn = matching.drawn(match)
    assert np.array_equal(np.float32(drawn["logits"]), match.logits)
    for look, known in zip(drawn["looks"], match.looks, strict=True):
        levels = np.frombuffer(base64.b64decode(look["levels"]), np.uint8)
        assert (look["rows"], look["columns"]) == known.shape
        shares = levels.reshape(known.shape) / 255 * look["peak"]
        assert shares == pytest.approx(known, abs=look["peak"] / 509)


def test_lines_are_texts_without_what_nobody_can_see():
    lines = matching.lines_of("  two  cats \r\n\n \u200b \na\u0301 dog\u202e\n")
    assert matching.texts_of(lines) == ["two cats", "\u00e1 dog"]
    assert matching.lines_of(None) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "Write a text first"),
        ("two cats", "Write a text first"),
        (None, "Write a text first"),
        (["a cat"] * 13, "13 texts; at most 12"),
        (["a cat", "b" * 10_000], "Text 2: It has 10000 characters; at most 200"),
        (["a cat", "a dog", " \u200b"], "Text 3: It is empty"),
        (["a cat", 7], "Text 2: It is no text"),
    ],
)
def test_bad_texts_are_refused_in_a_sentence(texts, message):
    with pytest.raises(ValueError, match=message):
        matching.texts_of(texts)


def test_bad_pictures_are_refused_in_a_sentence(tmp_path):
    good = entry(EXAMPLES / "meadow.webp")
    (tmp_path / "notes.png").write_text("no picture at all")
    for files, message in (
        ([], "Add a picture first"),
        (None, "Add a picture first"),
        ({"chosen": [good]}, "Add a picture first"),
        ([good] * 9, "9 pictures; at most 8"),
        ([good, "/etc/passwd"], "Picture 2: Send the picture as a file"),
        ([good, {"path": "/etc/passwd"}], "Picture 2: Send the picture as a file"),
        ([good, good, entry(tmp_path / "notes.png")], "Picture 3: .* not a picture"),
        ([entry(tmp_path / "gone.png")], "Picture 1: .* no longer kept here"),
    ):
        with pytest.raises(ValueError, match=message):
            matching.pictures_of(files)
    assert [image.size for image in matching.pictures_of([good])] == [(640, 480)]
