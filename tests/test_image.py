"""vlm.image against transformers' image processor, and what people upload."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)

from vlm.image import image_key, patch_box, pixels, to_rgb

ORIENTATION, RESOLUTION = 0x0112, 0x011A
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def theirs(image: Image.Image, size: int) -> torch.Tensor:
    processor = SiglipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return processor(image, return_tensors="pt")["pixel_values"]


def reopened(image: Image.Image, format: str = "PNG", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return Image.open(file)


def first_pixel(image: Image.Image) -> tuple[int, ...]:
    return to_rgb(image).getpixel((0, 0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.integers(0, 99))
def test_pixels_of_rgb_images_are_those_of_transformers(width, height, size, seed):
    image = noise(width, height, seed)
    ours = pixels(image, size)
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, size, size)
    torch.testing.assert_close(ours, theirs(image, size), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3000, 2), (1, 500), (224, 224)])
def test_extreme_shapes_have_the_pixels_of_transformers(shape):
    image = noise(*shape)
    ours = pixels(image, 224)
    torch.testing.assert_close(ours, theirs(image, 224), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBX"])
def test_opaque_modes_have_the_pixels_of_transformers(mode):
    image = noise(31, 17).convert(mode)
    torch.testing.assert_close(
        pixels(image, 20), theirs(image, 20), rtol=0, atol=1.2e-7
    )


def test_pixels_go_from_minus_one_to_one_and_channels_stay_in_order():
    values = pixels(Image.new("RGB", (5, 5), (255, 0, 51)), 4)
    expected = torch.tensor([1.0, -1.0, -0.6]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(values, expected)


def test_pixels_are_not_mirrored_or_transposed():
    image = Image.new("RGB", (8, 8))
    image.putpixel((6, 1), WHITE)
    brightest = pixels(image, 8)[0, 0].argmax().item()
    assert divmod(brightest, 8) == (1, 6)


def test_one_channel_is_grey():
    values = pixels(Image.new("RGB", (5, 5), RED), 4, channels=1)
    assert values.shape == (1, 1, 4, 4)
    grey = Image.new("RGB", (1, 1), RED).convert("L").getpixel((0, 0))
    torch.testing.assert_close(values, torch.full((1, 1, 4, 4), grey / 127.5 - 1))
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        pixels(noise(2, 2), 4, channels=4)


MODES = [
    ("1", 1, WHITE),
    ("L", 90, (90, 90, 90)),
    ("LA", (90, 255), (90, 90, 90)),
    ("LA", (90, 0), WHITE),
    ("P", 0, (0, 0, 0)),
    ("PA", (0, 0), WHITE),
    ("RGB", RED, RED),
    ("RGBA", (*RED, 255), RED),
    ("RGBA", (*RED, 0), WHITE),
    ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
    ("RGBa", (51, 0, 0, 51), (255, 204, 204)),
    ("RGBX", (*RED, 0), RED),
    ("CMYK", (0, 0, 0, 0), WHITE),
    ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
    ("YCbCr", (90, 128, 128), (90, 90, 90)),
    ("HSV", (0, 255, 255), RED),
    ("I", 90, (90, 90, 90)),
    ("I", 90 * 257, (90, 90, 90)),
    ("I;16", 90 * 257, (90, 90, 90)),
    ("I;16L", 90 * 257, (90, 90, 90)),
    ("I;16B", 90 * 257, (90, 90, 90)),
    ("I;16N", 90 * 257, (90, 90, 90)),
    ("F", 0.2, (51, 51, 51)),
    ("F", 90.0, (90, 90, 90)),
    ("F", float("nan"), (0, 0, 0)),
    ("F", -7.5, (0, 0, 0)),
    ("I", 1_000_000, (0, 0, 0)),
]


@pytest.mark.parametrize(("mode", "color", "expected"), MODES)
def test_every_mode_becomes_the_rgb_that_a_person_sees(mode, color, expected):
    image = Image.new(mode, (3, 2), color)
    with np.errstate(all="raise"):
        rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
    assert rgb.getcolors() == [(6, expected)]
    assert image.mode == mode
    assert to_rgb(rgb) is rgb


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), WHITE if mode == "1" else BLUE)
    image = image.convert(mode)
    image = reopened(image, transparency=image.getpixel((0, 0)))
    assert "transparency" in image.info and image.mode == mode
    opaque = image.copy()
    del opaque.info["transparency"]
    assert first_pixel(image) == WHITE != first_pixel(opaque)
    assert to_rgb(image).getpixel((1, 0)) == to_rgb(opaque).getpixel((1, 0))


def test_a_palette_with_an_alpha_per_colour_is_blended():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image = reopened(image, transparency=bytes([51, 255]))
    assert first_pixel(image) == (255, 204, 204)
    assert to_rgb(image).getpixel((1, 0)) == BLUE


@pytest.mark.parametrize("values", [(0, 32768, 65535), (0, 100, 200)])
def test_sixteen_bits_are_scaled_and_not_clipped(values):
    array = np.array([values], dtype=np.uint16)
    image = reopened(Image.fromarray(array))
    grey = np.asarray(to_rgb(image))[0, :, 0]
    np.testing.assert_array_equal(grey, np.round(np.array(values) / 257))


def test_values_of_no_convention_are_stretched():
    for dtype in (np.float32, np.int32):
        image = Image.fromarray(np.array([[-1000, 0, 3000]], dtype=dtype))
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 64, 255]


UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8) * 40
STORED = {  # how a camera stores UPRIGHT, by the definition of the EXIF tag
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_turned_upright(orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    rgb = to_rgb(reopened(stored.convert("RGB"), exif=exif))
    np.testing.assert_array_equal(np.asarray(rgb)[:, :, 0], UPRIGHT)
    assert to_rgb(rgb) is rgb


def test_an_unreadable_orientation_is_ignored():
    image = Image.new("RGB", (2, 3), WHITE)
    image.info["exif"] = b"Exif\0\0rubbish"
    assert to_rgb(image).size == (2, 3)
    with pytest.raises(SyntaxError):  # only the first look at a copy raises
        image.copy().getexif()


def test_a_photo_is_turned_though_another_tag_is_damaged():
    exif = Image.Exif()
    exif[ORIENTATION], exif[RESOLUTION] = 6, 72.5
    image = Image.new("RGB", (2, 3), WHITE)
    # The resolution says that it is bytes and not a fraction.
    image.info["exif"] = exif.tobytes().replace(b"\x01\x1a\0\5", b"\x01\x1a\0\7")
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    assert to_rgb(image).size == (3, 2)


def test_a_transparent_photo_stays_transparent_when_it_is_turned():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = reopened(Image.new("RGB", (2, 3), RED), exif=exif, transparency=RED)
    assert to_rgb(image).getcolors() == [(6, WHITE)]
    assert to_rgb(image).size == (3, 2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame_wherever_it_stands(format):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE, WHITE)]
    options = {"lossless": True} if format == "WEBP" else {}
    image = reopened(
        frames[0], format, save_all=True, append_images=frames[1:], **options
    )
    assert image.n_frames == 3
    key = image_key(image)
    image.seek(2)
    assert first_pixel(image) == RED
    assert image.tell() == 2, "the caller's image was moved"
    assert image_key(image) == key


@pytest.mark.parametrize("thing", ["cat.jpg", None, np.zeros((2, 2, 3), np.uint8)])
def test_what_is_no_image_is_an_error_that_says_what_to_do(thing):
    for call in (to_rgb, image_key, lambda thing: pixels(thing, 8)):
        with pytest.raises(
            ValueError, match=rf"got {type(thing).__name__}; .*fromarray"
        ):
            call(thing)


def test_empty_and_truncated_images_are_errors():
    with pytest.raises(ValueError, match="0 x 4 pixels"):
        to_rgb(Image.new("RGB", (0, 4)))
    file = io.BytesIO()
    noise(64, 64).save(file, "PNG")
    with pytest.raises(ValueError, match="cannot be read .* save it again"):
        to_rgb(Image.open(io.BytesIO(file.getvalue()[:2000])))


def test_patches_cover_the_image_without_gap_or_overlap():
    size, grid = (300, 100), 4
    area = np.zeros((100, 300), int)
    for row in range(grid):
        for column in range(grid):
            x1, y1, x2, y2 = patch_box(row, column, grid=grid, size=size)
            area[int(y1) : int(y2), int(x1) : int(x2)] += 1
    assert (area == 1).all()
    assert patch_box(0, 3, grid=4, size=size) == (225, 0, 300, 25)
    assert patch_box(3, 0, grid=4, size=size) == (0, 75, 75, 100)


def test_a_patch_box_holds_what_the_patch_looks_at():
    """A white patch of the model's image, seen at its box in the original."""
    grid, patch, side = 3, 4, 14  # 14 = 3 * 4 + 2: the last two pixels are not seen
    image = Image.new("RGB", (140, 280))
    box = patch_box(2, 1, grid=grid, size=image.size, seen=grid * patch / side)
    assert box == (40, 160, 80, 240)
    image.paste(WHITE, tuple(int(x) for x in box))
    seen = pixels(image, side)[0, 0]
    cells = seen[: grid * patch, : grid * patch].reshape(grid, patch, grid, patch)
    means = cells.mean((1, 3))
    assert divmod(means.argmax().item(), grid) == (2, 1)
    others = means.flatten()[torch.arange(9) != 7]
    assert means[2, 1] > 0.8 and others.max() < -0.85


def test_a_patch_off_the_grid_is_an_error():
    for row, column in ((4, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match=f"{row}, {column}.* 4 x 4"):
            patch_box(row, column, grid=4, size=(10, 10))


def test_keys_are_equal_for_equal_content_and_differ_otherwise():
    image = noise(6, 4)
    assert image_key(image) == image_key(reopened(image)) == image_key(image.copy())
    assert len(image_key(image)) == 32
    changed = image.copy()
    changed.putpixel((5, 3), tuple(v ^ 1 for v in image.getpixel((5, 3))))
    reshaped = Image.frombytes("RGB", (4, 6), image.tobytes())
    assert len({image_key(i) for i in (image, changed, reshaped)}) == 3


def test_keys_tell_images_apart_whose_bytes_are_equal():
    """Same bytes, seen differently: palette, transparency, orientation, first frame."""
    red = Image.new("P", (2, 1))
    red.putpalette([255, 0, 0])
    blue = Image.new("P", (2, 1))
    blue.putpalette([0, 0, 255])
    clear = reopened(red, transparency=0)
    assert red.tobytes() == blue.tobytes() == clear.tobytes()
    assert len({image_key(i) for i in (red, blue, clear)}) == 3

    turned = noise(5, 5)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = reopened(turned, exif=exif)
    assert image_key(turned) != image_key(noise(5, 5))
