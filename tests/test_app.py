"""`python app.py` as a newcomer runs it: the embedded model and no network."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import load_file, save_file

import app
from vlm.grounding import overlap
from vlm.tiny.scenes import Scene, Stock, compose
from vlm.tiny.sprites import load_sprites

APP = Path(__file__).parents[1] / "app.py"
TINY = APP.parent / "assets" / "tiny"
PAIR = str(APP.parent / "assets" / "tiny-pair")
PATIENT = 60_000  # milliseconds; a shared machine may be slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app, once its page answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    command = [sys.executable, str(APP), "--port", str(port)]
    with open(folder / "log", "w") as log:
        app = subprocess.Popen(
            command, env={**os.environ, **offline}, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and app.poll() is None:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        assert app.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait(20)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """One that no training has drawn, with a single thing in it."""
    rng, stock = np.random.default_rng(77_000_001), Stock(load_sprites(), seed=5)
    while len((found := compose(rng, stock, size=512)).things) != 1:
        pass
    return found


def test_a_user_sees_a_box_grow_and_where_each_token_looked(
    site: str, browser: Browser, scene: Scene, tmp_path: Path
) -> None:
    (thing,) = scene.things
    scene.image.save(tmp_path / "scene.png")
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto(site)
    page.wait_for_selector("#scope [data-mounted]", timeout=PATIENT)
    page.get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "scene.png")
    page.wait_for_selector("#picture img[src*=scene]", timeout=PATIENT)
    page.fill("#prompt textarea", f"detect {thing.kind}")
    page.click("#run")
    page.wait_for_selector("#scope [data-phase=done][data-ready]", timeout=PATIENT)

    expect(page.locator("#scope .chip.said")).to_have_count(5)
    row = page.locator("#scope .objects button").first
    assert row.inner_text().split("\n")[0] == thing.kind
    box = [float(edge) for edge in row.locator("code").inner_text().split(", ")]
    assert overlap(tuple(box), thing.box) > 0.5

    page.click("#scope .chip[data-key=a0]")
    expect(page.locator("#scope .role")).to_have_text(f"top edge of “{thing.kind}”")
    shown = picture_of(page)
    page.locator("#scope .layer input").fill("0")
    assert picture_of(page) != shown
    page.close()


def picture_of(page: Page) -> str:
    drawn = "() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))"
    page.evaluate(drawn)
    return page.evaluate("document.querySelector('#scope .stage canvas').toDataURL()")


def test_a_client_needs_just_a_picture_and_a_prompt(
    site: str, scene: Scene, tmp_path: Path
) -> None:
    (thing,) = scene.things
    scene.image.save(tmp_path / "scene.png")
    client = Client(site, verbose=False)
    picture = handle_file(tmp_path / "scene.png")
    answer = client.predict(picture, f"detect {thing.kind}", api_name="/probe")
    (found,) = answer["objects"]
    assert answer["text"].endswith(f" {thing.kind}")
    assert found["label"] == thing.kind
    assert overlap(tuple(found["box"]), thing.box) > 0.5
    assert all(0 < token["probability"] <= 1 for token in answer["tokens"])


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(APP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_option():
    said = run("--help").stdout
    for option in (
        "--model",
        "--device",
        "--dtype",
        "--quantize",
        "--port",
        "--share",
        "--menu",
        "--mcp",
    ):
        assert option in said


def test_models_of_equal_names_are_told_apart_by_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        str(shutil.copytree(TINY, tmp_path / side / "tiny")) for side in "ab"
    )
    arguments = ["--model", first, "--model", second, "--model", first]
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments, "--device", "cpu"])
    names = [engine.describe()["name"] for engine in app.load(app.parse())]
    assert names == [first, second]


@pytest.mark.parametrize(
    "arguments, environment, switching",
    [
        ([], {}, True),
        (["--share"], {}, False),
        ([], {"SPACE_ID": "someone/paliscope"}, False),
        ([], {"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        (["--share", "--menu"], {}, True),
        (["--no-menu"], {}, False),
    ],
)
def test_only_a_page_for_this_machine_has_a_menu_unless_one_says_so(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    switching: bool,
) -> None:
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments, "--device", "cpu"])
    models = app.load(app.parse())
    assert models.switching == switching
    models.wait()


def test_a_space_names_what_it_loads_in_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PALISCOPE_MODEL", "google/one google/two")
    monkeypatch.setenv("PALISCOPE_PAIR", "google/pair")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    options = app.parse()
    assert options.model == ["google/one", "google/two"]
    assert options.pair == "google/pair"
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", "other"])
    assert app.parse().model == ["other"]


def test_one_model_keeps_its_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--device", "cpu"])
    assert [engine.name for engine in app.load(app.parse())] == ["tiny"]


def test_mcp_without_its_package_says_what_to_install() -> None:
    hidden = "import runpy, sys; sys.modules['mcp'] = None; sys.argv = ['x', '--mcp'];"
    code = f"{hidden} runpy.run_path({str(APP)!r}, run_name='__main__')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith('pip install "gradio[mcp]"')


def test_a_model_that_is_not_there_is_one_clear_message_and_exit_2(tmp_path):
    done = run("--model", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_a_pair_that_is_not_there_is_told_at_the_start(tmp_path):
    done = run("--pair", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_embedded_model_brings_its_pair_and_loads_it_once(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", "--device", "cpu"])
    pair = app.pair_of(app.parse())
    assert pair() is pair()
    assert pair().scores([Image.new("RGB", (64, 64))], ["a cat"]).shape == (1, 1)


def test_another_model_has_the_pair_that_is_named_or_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", "other"])
    assert app.pair_of(app.parse()) is None
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", "other", "--pair", PAIR])
    assert app.pair_of(app.parse())().config.vision.image_size == 128


def test_a_folder_that_is_no_checkpoint_says_what_one_holds(tmp_path):
    done = run("--model", str(tmp_path))
    assert done.returncode == 2
    assert "config.json" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_tensor_is_named(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in sorted(tensors) if "q_proj" in key)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    done = run("--model", str(folder))
    assert done.returncode == 2
    assert name in done.stderr and "Traceback" not in done.stderr
