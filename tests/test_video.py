"""Frames of a clip: spread evenly over its time, as counting milliseconds gives."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from PIL import Image

import vlm

COLOURS = [(37 * n % 256, 91 * n % 256, 255 - 24 * n) for n in range(10)]


def clip(
    format: str, durations: Sequence[int] | None, count: int = 10, **how
) -> Image.Image:
    pictures = [Image.new("RGB", (16, 12), colour) for colour in COLOURS[:count]]
    options = {"lossless": True} if format == "WEBP" else {}
    if durations is not None:
        options["duration"] = list(durations)
    file = io.BytesIO()
    pictures[0].save(
        file, format, save_all=True, append_images=pictures[1:], **options, **how
    )
    return Image.open(file)


def colours(frames: list[Image.Image]) -> list[tuple[int, int, int]]:
    assert all(frame.mode == "RGB" and frame.size == (16, 12) for frame in frames)
    return [frame.getpixel((8, 6)) for frame in frames]


def by_the_millisecond(durations: Sequence[int], count: int) -> list[tuple]:
    shown = [n for n, duration in enumerate(durations) for _ in range(duration)]
    middles = [int((part + 0.5) / count * len(shown)) for part in range(count)]
    return [COLOURS[n] for n in sorted({shown[middle] for middle in middles})]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("count", [1, 3, 7, 16])
@pytest.mark.parametrize(
    "durations",
    [[100] * 10, [50, 50, 50, 50, 2000, 50, 50, 50, 50, 50], [10, 20, 30, 40, 50] * 2],
)
def test_frames_are_spread_evenly_over_the_time(format, count, durations) -> None:
    frames = vlm.frames(clip(format, durations), count)
    assert colours(frames) == by_the_millisecond(durations, count)
    assert len(frames) <= count


def test_a_clip_of_ten_even_frames_gives_each_of_them_once() -> None:
    assert colours(vlm.frames(clip("GIF", [80] * 10))) == COLOURS


def test_frames_that_tell_no_duration_last_alike() -> None:
    assert colours(vlm.frames(clip("PNG", None), 5)) == COLOURS[1::2]


def test_what_a_png_shows_to_who_knows_no_animation_is_no_frame() -> None:
    given = clip("PNG", [100] * 3, 4, default_image=True)
    assert given.n_frames == 4
    assert colours(vlm.frames(given)) == COLOURS[1:4]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_clip_is_left_where_it_stood(format) -> None:
    given = clip(format, [100] * 10)
    given.seek(3)
    given.load()
    for _ in range(2):
        assert colours(vlm.frames(given, 2)) == [COLOURS[2], COLOURS[7]]
    assert given.tell() == 3
    assert colours([given.convert("RGB")]) == [COLOURS[3]]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_a_picture_that_does_not_move_gives_itself(format) -> None:
    file = io.BytesIO()
    pages = [Image.new("RGB", (16, 12), colour) for colour in COLOURS[:3]]
    more = {"save_all": True, "append_images": pages[1:]} if format == "TIFF" else {}
    pages[0].save(file, format, **more)
    (only,) = vlm.frames(Image.open(file))
    assert only.size == (16, 12)
    assert vlm.frames(pages[1]) == [pages[1]]


def test_what_cannot_be_sampled_says_so() -> None:
    with pytest.raises(ValueError, match="0 frames were asked for"):
        vlm.frames(clip("GIF", [100] * 10), 0)
    whole = clip("GIF", [100] * 10).fp
    whole.seek(0)
    data = whole.read()
    cut = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(ValueError, match="cannot be read"):
        vlm.frames(cut)
