"""The embedded checkpoint and its world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from engines import Pair
from oracle import read

import vlm
from vlm.image import pixels
from vlm.pair_checkpoint import siglip_state
from vlm.tiny.scenes import HUES, SKETCH, Stock, compose
from vlm.tiny.sprites import load_sprites

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
PAIR = ROOT / "assets" / "tiny-pair"


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(load_sprites(), backgrounds=20)


# --- the checkpoint ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return Pair(TINY, vlm.load(TINY, device="cpu"), read(TINY))


def test_transformers_reads_the_embedded_checkpoint_as_we_do(
    tiny: Pair, stock: Stock
) -> None:
    scene = compose(np.random.default_rng(5), stock)
    for prompt, answer in (("detect cat ; dog", "<loc0100>"), ("caption en", " a cat")):
        with torch.no_grad():
            theirs = tiny.oracle(**tiny.inputs([scene.image], prompt, answer)).logits
        ours = tiny.engine.logits(scene.image, prompt, answer)
        assert float(ours.std()) > 1
        torch.testing.assert_close(ours, theirs[0, -len(ours) :], atol=5e-5, rtol=1e-5)


def test_transformers_reads_the_pair_as_we_do(stock: Stock) -> None:
    pair = vlm.load_pair(PAIR, device="cpu")
    raw = json.loads((PAIR / "config.json").read_text())
    assert raw.pop("image_tower") == "../tiny"
    oracle = transformers.SiglipModel(transformers.SiglipConfig(**raw)).eval()
    oracle.load_state_dict(siglip_state(pair.model))
    rng = np.random.default_rng(5)
    images = [compose(rng, stock).image for _ in range(3)]
    texts = ["a cat", "two dogs and a cake", "a red star", "nothing"]
    ids = pair.captions.ids(texts)
    seen = torch.cat([pixels(image, 128) for image in images])
    with torch.no_grad():
        theirs = oracle(input_ids=ids, pixel_values=seen).logits_per_image
    ours = pair.model.logits(pair.images(images), pair.texts(texts))
    assert float(ours.std()) > 1
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


def test_the_embedded_checkpoint_fits_a_push(tiny: Pair) -> None:
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9.5e6
    stored = json.loads((TINY / "config.json").read_text())
    assert stored["model_type"] == "paligemma"


def test_the_embedded_checkpoint_needs_no_network(tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import vlm\n"
        "from PIL import Image\n"
        f"engine = vlm.load({str(TINY)!r}, device='cpu')\n"
        "print(engine.generate(Image.new('RGB', (64, 64)), 'caption en').text)\n"
        f"vlm.load_pair({str(PAIR)!r}, device='cpu')\n"
        "assert 'transformers' not in sys.modules\n"
        "assert 'gradio' not in sys.modules\n"
        # torch's compiler: 800 modules, 70 MB
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- the world -----------------------------------------------------------------------


def test_a_seed_makes_a_scene_again(stock: Stock) -> None:
    one, other = (compose(np.random.default_rng(7), stock) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.things == other.things


def test_a_box_is_that_of_the_visible_pixels(stock: Stock) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = compose(rng, stock, masks=True)
        for thing in scene.things:
            ys, xs = np.nonzero(thing.mask)
            assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        owners = sum(thing.mask.astype(int) for thing in scene.things)
        assert np.max(owners, initial=0) <= 1


def test_scenes_hold_nothing_to_six_things_of_every_kind(stock: Stock) -> None:
    rng = np.random.default_rng(2)
    scenes = [compose(rng, stock) for _ in range(400)]
    assert {len(scene.things) for scene in scenes} == set(range(7))
    assert {thing.kind for scene in scenes for thing in scene.things} == set(
        stock.kinds
    )
    styles = {thing.style for scene in scenes for thing in scene.things}
    assert len(styles) == 6


def test_a_sketch_is_a_drawings_lines_on_white(stock: Stock) -> None:
    """A plain red heart keeps its outline, and nothing of its colour."""
    drawn, sketched = (stock.look("heart", 0, hue).levels[0] for hue in (0, SKETCH))
    assert drawn.size == sketched.size
    alpha = np.array(sketched)[..., 3]
    assert np.array_equal(alpha, np.array(drawn)[..., 3])
    solid = alpha > 250
    inner = solid.copy()
    for axis in (0, 1):
        for step in (-3, 3):
            inner &= np.roll(solid, step, axis)
    brightness = np.array(sketched)[..., :3].astype(int)
    assert np.ptp(brightness[solid], axis=1).max() == 0
    assert np.median(brightness[inner]) > 240
    shape = alpha > 127
    edge = shape & ~(np.roll(shape, 1, 0) & np.roll(shape, -1, 0))
    assert np.median(brightness[edge]) < 60


def test_lines_on_paper_have_no_color(stock: Stock) -> None:
    assert stock.look("heart", 0, SKETCH).color is None
    styles = [sprite.style for sprite in stock.sprites["heart"]]
    lines = styles.index("fluent-emoji-high-contrast")
    assert {stock.look("heart", lines, hue).color for hue in range(HUES)} == {None}
    assert stock.look("heart", styles.index("noto"), 0).color == "red"


def test_a_turned_hue_gives_a_drawing_many_colors(stock: Stock) -> None:
    colors = {stock.look("heart", 0, hue).color for hue in range(HUES)}
    assert {"red", "green", "blue"} <= colors


def test_line_drawings_have_paper_between_their_lines() -> None:
    """Otherwise the scene behind would show through a cat."""
    style = "fluent-emoji-high-contrast"
    for kind, sprites in load_sprites().items():
        (drawing, *_) = [s.image for s in sprites if s.style == style]
        middle = np.array(drawing)[:, :, 3]
        rows = [row for row in middle if (row > 250).any()]
        filled = [
            (row[np.argmax(row > 250) : len(row) - np.argmax(row[::-1] > 250)] > 250)
            for row in rows
        ]
        assert np.mean(np.concatenate(filled)) > 0.6, kind
