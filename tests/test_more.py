"""Adding further pictures to a question, and the page that shows all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from gradio.utils import get_upload_folder
from pages import EXAMPLES, PATIENT, answered, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect
from test_axe import grave

from vlm.ui import more, pictures
from vlm.ui.asking import asked_for

PENGUINS, MEADOW, KITCHEN = (
    str(EXAMPLES / f"{name}.webp") for name in ("penguins", "meadow", "kitchen")
)


def uploaded(image: Image.Image) -> str:
    return pictures.kept(image, "png")


def clip_at(path: Path, count: int) -> Path:
    frames = [
        Image.new("RGB", (24, 16), (9 * n, 200 - 9 * n, 90)) for n in range(count)
    ]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def test_what_is_added_stands_behind_what_was_there(tmp_path) -> None:
    one, two, three = (
        uploaded(Image.new("RGB", (40, 30), (n, 0, 0))) for n in range(3)
    )
    first, value = more.added(PENGUINS, more.none(), {"paths": [one, two]})
    assert (first, more.places(value)) == (PENGUINS, (one, two))
    first, value = more.added(PENGUINS, value, {"paths": [three]})
    assert (first, more.places(value)) == (PENGUINS, (one, two, three))
    first, value = more.added(None, more.none(), {"paths": [one, two]})
    assert (first, more.places(value)) == (one, (two,))
    _, value = more.added(PENGUINS, value, {"paths": [two] * 15})
    assert len(more.places(value)) == 15
    assert value["told"] == "1 more had no room: at most 16."


def test_a_clip_takes_the_place_of_what_was_there(tmp_path) -> None:
    folder = Path(get_upload_folder()) / "a clip"
    folder.mkdir(parents=True, exist_ok=True)
    moving = str(clip_at(folder / "clip.gif", 20).resolve())
    first, value = more.added(PENGUINS, more.none(), {"paths": [moving]})
    frames = (first, *more.places(value))
    assert len(frames) == 8 and PENGUINS not in frames and moving not in frames
    assert value["told"] == "8 frames, spread evenly over the clip."
    sent = [uploaded(Image.new("RGB", (40, 30), (9, n, 0))) for n in range(3)]
    first, value = more.added(PENGUINS, value, {"paths": sent, "clip": True})
    assert [first, *more.places(value)] == sent


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "Add 1 to 16"),
        ({"paths": []}, "Add 1 to 16"),
        ({"paths": ["x"] * 17}, "Add 1 to 16"),
        ({"paths": ["/etc/passwd"]}, "not come here whole"),
        ({"paths": [PENGUINS]}, "not come here whole"),
        ({"paths": [7]}, "not come here whole"),
    ],
)
def test_only_what_was_sent_is_added(data, message) -> None:
    with pytest.raises(ValueError, match=message):
        more.added(PENGUINS, more.none(), data)


def test_what_a_browser_says_of_further_pictures_is_checked() -> None:
    assert more.places(None) == more.places({"files": "x"}) == ()
    with pytest.raises(ValueError, match="as a file"):
        more.places({"files": [{"path": "/etc/passwd"}]})
    how = ("Greedy", 1.0, 0.9, 40, 0, 1, 8, "")
    assert asked_for("a", PENGUINS, "x", *how, more=(MEADOW,)).pictures == (
        PENGUINS,
        MEADOW,
    )


# --- the page ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    with serve(FakeEngine(delay=0.005)) as served:
        yield served


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=1000)


def add(page: Page, *files: str | Path | dict, count: int) -> None:
    page.locator("#more input[type=file]").set_input_files(list(files))
    expect(page.locator("#more li")).to_have_count(count, timeout=PATIENT)


def take(page: Page, kind: str, folder: Path) -> Path:
    page.click("#scope .save")
    with page.expect_download() as coming:
        page.click(f"#scope [data-save={kind}]")
    file = folder / f"saved.{kind}"
    coming.value.save_as(file)
    return file


def test_one_picture_looks_as_it_did_and_more_stand_beneath_it(page) -> None:
    assert page.locator("#more").bounding_box()["height"] == 0
    expect(page.locator("#scope .reel")).to_be_hidden()
    add(page, MEADOW, KITCHEN, count=2)
    expect(page.locator("#more .count")).to_contain_text("2 more, in this order")
    expect(page.locator("#more .advice")).to_contain_text("answers poorly")
    expect(page.locator("#scope .reel button")).to_have_count(3)
    assert grave(page) == []
    page.get_by_role("button", name="Remove picture 2").click()
    expect(page.locator("#more li")).to_have_count(1)
    expect(page.locator("#more .say")).to_have_text("Picture 2 is removed.")
    expect(page.locator("#scope .reel button")).to_have_count(2)
    add(page, KITCHEN, count=2)
    page.get_by_label("Remove Image").click()
    expect(page.locator("#more li")).to_have_count(1)
    expect(page.locator("#scope .reel button")).to_have_count(2)
    page.get_by_role("button", name="Only the first").click()
    expect(page.locator("#scope .reel")).to_be_hidden()
    assert page.locator("#more").bounding_box()["height"] < 40


def test_what_is_not_taken_is_refused_in_words(page, tmp_path) -> None:
    many = [tmp_path / f"{number}.png" for number in range(17)]
    for number, path in enumerate(many):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    video = {"name": "a.webm", "mimeType": "video/webm", "buffer": b"not a video"}
    text = {"name": "<b>.txt", "mimeType": "text/plain", "buffer": b"<b>no picture</b>"}
    say, toast = page.locator("#more .say"), page.get_by_test_id("toast-body")
    for files, words in (
        (many, "These are 17 pictures; at most 16 are asked."),
        ([video, video], "A clip is asked about alone. Choose only it."),
        ([video], "This could not be read or sent."),
    ):
        page.locator("#more input[type=file]").set_input_files(files)
        expect(say).to_contain_text(words, timeout=PATIENT)
    page.locator("#more input[type=file]").set_input_files([text])
    expect(toast).to_contain_text("This file is not a picture", timeout=PATIENT)
    expect(page.locator("#more li")).to_have_count(0)


def test_each_picture_is_shown_with_its_own_heat(page, tmp_path) -> None:
    add(page, MEADOW, KITCHEN, count=2)
    answered(page, "detect cat ; dog ; ball")
    page.click("#scope .chip[data-key=a0]")
    words = page.locator("#scope .reel span").all_inner_texts()
    parts = [float(re.match(r"[\d.]+", each)[0]) for each in words]
    # The engine looks at the second twice as much as at the first, and so on.
    assert parts[1] / parts[0] == pytest.approx(2, rel=0.1)
    assert parts[2] / parts[0] == pytest.approx(3, rel=0.1)

    def note() -> str:
        page.locator("#scope .chip[data-key=a0]").hover()
        return page.locator("#scope .note").inner_text()

    def maps() -> int:
        canvas = page.locator("#scope .cells canvas")
        return hash(canvas.evaluate("(map) => map.toDataURL()"))

    before, first, reel = note(), maps(), page.locator("#scope .reel").bounding_box()
    page.click("#scope .reel button:nth-child(2)")
    expect(page.locator("#scope .note")).not_to_have_text(before)
    assert page.locator("#scope .reel").bounding_box() == reel  # nothing moves
    assert "of 80 × 60 px" in note()  # the meadow is 640 x 480, on a grid of 8
    assert maps() != first
    for tool in ("region", "paint"):
        button = page.locator(f"#scope [data-tool={tool}]")
        expect(button).to_be_disabled()
        expect(button).to_have_attribute("title", re.compile("only where one picture"))
    expect(page.locator("#scope .of-first")).to_be_visible()
    page.click("#scope .objects .pick >> nth=0")
    expect(page.locator("#scope .of-first")).to_contain_text("most at picture 3")
    expect(page.locator("#scope .reel button").first).to_have_attribute(
        "aria-pressed", "true"
    )
    saved = take(page, "json", tmp_path)
    assert len(json.loads(saved.read_text())["view"]["more"]) == 2
    away = page.context.new_page()
    away.goto(take(page, "html", tmp_path).as_uri())
    away.click(".reel button:nth-child(2)")
    expect(away.locator(".note")).to_contain_text("of 80 × 60 px")
    expect(away.locator(".seen")).to_have_text(words[1])
    away.close()
    page.click("#scope .save")
    page.click("#scope [data-save=link]")
    expect(page.locator("#scope .told p")).to_contain_text("room for one picture")
    page.click("#history summary")
    expect(page.locator("#history li")).to_have_count(0)


def test_an_animation_is_asked_about_in_frames(page, tmp_path) -> None:
    add(page, clip_at(tmp_path / "clip.gif", 20), count=7)
    expect(page.locator("#more .say")).to_have_text(
        "8 frames, spread evenly over the clip."
    )
    expect(page.locator("#scope .reel button")).to_have_count(8)
    answered(page, "caption en")
    expect(page.locator("#scope .reel button")).to_have_count(8)
    # An example is about one picture.
    page.click("#examples button >> nth=0")
    expect(page.locator("#more li")).to_have_count(0)
    expect(page.locator("#scope .reel")).to_be_hidden()


def test_a_video_is_asked_about_in_frames_that_the_browser_takes(page) -> None:
    recorded = page.evaluate("""async () => {
      const surface = document.createElement("canvas");
      Object.assign(surface, { width: 64, height: 48 });
      const pen = surface.getContext("2d");
      const kind = { mimeType: "video/webm" };
      const recorder = new MediaRecorder(surface.captureStream(20), kind);
      const parts = [];
      recorder.ondataavailable = ({ data }) => parts.push(data);
      const ended = new Promise((end) => (recorder.onstop = end));
      recorder.start();
      for (let i = 0; i < 30; i++) {
        pen.fillStyle = `rgb(${8 * i}, 0, 0)`;
        pen.fillRect(0, 0, 64, 48);
        await new Promise((next) => setTimeout(next, 60));
      }
      recorder.stop();
      await ended;
      const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
      return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    }""")
    video = recorded.encode("latin-1")
    assert len(video) > 1000
    file = {"name": "clip.webm", "mimeType": "video/webm", "buffer": video}
    add(page, file, count=7)
    reds = page.evaluate("""async () => {
      const shown = [...document.querySelectorAll("#more li img")];
      await Promise.all(shown.map((image) => image.decode()));
      const surface = document.createElement("canvas");
      const pen = surface.getContext("2d");
      return shown.map((image) => {
        pen.drawImage(image, 0, 0);
        return pen.getImageData(5, 5, 1, 1).data[0];
      });
    }""")
    assert reds == sorted(reds) and reds[-1] - reds[0] > 80
    broken = {"name": "clip.webm", "mimeType": "video/webm", "buffer": video[:200]}
    page.locator("#more input[type=file]").set_input_files([broken])
    expect(page.locator("#more .say")).to_contain_text(
        "could not be read", timeout=PATIENT
    )
