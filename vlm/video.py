"""Frames of a clip, as far as Pillow reads clips: animated GIF, WebP and PNG.

    frames = vlm.frames(Image.open("cat.gif"))
    engine.generate(frames, "caption en")

For other kinds of video, take the frames out with what reads them, spread as here.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from PIL import Image

from vlm.image import to_rgb

FRAMES = 16  # of the published checkpoints that were trained on video
CLIPS = ("GIF", "WEBP", "PNG")  # others hold pages, or one photograph in several sizes


def frames(clip: Image.Image, count: int = FRAMES) -> list[Image.Image]:
    """At most so many frames of an animated image, evenly spread over its time, RGB.

    The time is cut into `count` equal parts, and the frame in the middle of each is
    taken. What is seen in several middles is taken once, so a clip of few frames gives
    fewer; a picture that does not move gives itself. The clip is left at its frame.

    Raises:
        ValueError: a count below one, or what cannot be read.
    """
    if count < 1:
        raise ValueError(f"{count} frames were asked for; it must be at least 1")
    if clip.format not in CLIPS or not getattr(clip, "is_animated", False):
        return [to_rgb(clip)]
    at = clip.tell()
    try:
        # A PNG may hold a picture before its first frame, for who knows no animation.
        first = int(bool(clip.info.get("default_image")))
        _back(clip, first)
        ends = list(accumulate(_duration(clip, i) for i in range(first, clip.n_frames)))
        middles = ((part + 0.5) / count * ends[-1] for part in range(count))
        taken = dict.fromkeys(bisect_right(ends, middle) for middle in middles)
        found = [_frame(clip, first + number) for number in taken]
        _back(clip, at)
    except (OSError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"the clip cannot be read ({error}); save it again as GIF or WebP"
        ) from error
    return found


def _back(clip: Image.Image, number: int) -> None:
    # Pillow can go back in a PNG from its last frame, and else it loses count.
    if clip.format == "PNG" and clip.tell() > 0:
        clip.seek(clip.n_frames - 1)
        clip.load()
    clip.seek(number)


def _duration(clip: Image.Image, number: int) -> float:
    """Milliseconds, as far as they are told; browsers too show every frame a while."""
    clip.seek(number)
    clip.load()  # a WebP tells it when the frame is decoded
    return clip.info.get("duration") or 100


def _frame(clip: Image.Image, number: int) -> Image.Image:
    clip.seek(number)
    return to_rgb(clip.copy())
