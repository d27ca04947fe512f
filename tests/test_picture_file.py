"""Files from strangers: what is read, what is refused in a sentence, what it takes."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

import vlm.image
from vlm import picture_file
from vlm.image import image_key, to_rgb

SENTENCE = re.compile(r"This (picture|file) [^\n]{10,160}\.( [A-Z][^\n]{5,90}\.)?")
SIDES = 3000, 2000  # large enough that what pixels take is most of what is taken
few = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@few
@given(data=st.one_of(strategies.files(), strategies.headers()))
def test_whatever_bytes_are_read_or_refused_in_a_sentence(tmp_path, capfd, data):
    (tmp_path / "sent").write_bytes(data)
    try:
        image = picture_file.read(tmp_path / "sent")
    except ValueError as refusal:
        assert SENTENCE.fullmatch(str(refusal)), str(refusal)
    else:
        assert image.mode == "RGB" and image_key(image)


@few
@given(strategies.saved_images())
def test_every_mode_is_seen_and_its_file_is_read(tmp_path_factory, saved):
    image, data = saved
    assert to_rgb(image).size == image.size
    if data:
        file = tmp_path_factory.getbasetemp() / "saved"
        file.write_bytes(data)
        assert picture_file.read(file).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"<!doctype html><p>hello", "not a picture"),
        (b"%PDF-1.7", "not a picture"),
        (strategies.png((1, 1)), "1 x 1 pixels, too thin"),
        (strategies.png((20_000, 1)), "20000 x 1 pixels, too thin"),
        (strategies.png((5000, 5001)), r"5000 x 5001 pixels; at most 20\.8 million"),
        (strategies.png((30_000, 30_000)), "at most 25 million"),
        (strategies.tiff((64, 64), (9000, 9000)), "tiles of 9000 x 9000 pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x04IHDR\0\0\0\x40", "damaged or cut short"),
        (strategies.samples()[0][:50], "damaged or cut short"),
    ],
    ids=range(11),
)
def test_what_is_no_fit_picture_says_what_is_wrong(tmp_path, data, message):
    (tmp_path / "sent").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        picture_file.read(tmp_path / "sent")


def test_nothing_is_decoded_before_the_header_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("loaded"))
    (tmp_path / "sent").write_bytes(strategies.png((5000, 5001)))
    with pytest.raises(ValueError, match=r"at most 20\.8 million"):
        picture_file.read(tmp_path / "sent")


def test_a_file_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "sent.bmp")
    monkeypatch.setattr(picture_file, "MAX_BYTES", 2**13)
    with pytest.raises(ValueError, match="This file has 0 MB; at most 0 MB"):
        picture_file.read(tmp_path / "sent.bmp")


def test_a_picture_beside_others_has_the_memory_that_they_leave(tmp_path):
    Image.new("RGB", (1000, 1000)).save(tmp_path / "sent.png")
    picture_file.read(tmp_path / "sent.png", held=picture_file.MEMORY - 12_000_000)
    with pytest.raises(ValueError, match="1000 x 1000 pixels; at most 1 million"):
        picture_file.read(tmp_path / "sent.png", held=picture_file.MEMORY - 11_999_999)


def test_a_tile_that_is_far_larger_than_its_picture_takes_no_memory(tmp_path):
    """A file of some kB, whose 64 x 64 pixels are the corner of 100 million."""
    data = zlib.compress(bytes(100_000_000))
    (tmp_path / "tile.tif").write_bytes(strategies.tiff((64, 64), (10_000,) * 2, data))
    assert extra_memory(lambda: refused(tmp_path / "tile.tif")) < 20e6


KINDS = {
    "turned PNG with alpha": ("RGBA", "PNG", {"compress_level": 1}),
    "16-bit PNG": ("I;16", "PNG", {"compress_level": 1}),
    "float TIFF": ("F", "TIFF", {}),
    "progressive JPEG": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "WebP": ("RGB", "WEBP", {"method": 0, "quality": 10}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_takes_the_memory_that_it_is_counted_at(tmp_path, kind):
    mode, format, options = KINDS[kind]
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").resize(SIDES).convert(mode)
    image.save(tmp_path / "sent", format, exif=exif, **options)
    del image
    with Image.open(tmp_path / "sent") as opened:
        counted = picture_file._cost(opened) * SIDES[0] * SIDES[1]
    taken = extra_memory(lambda: picture_file.read(tmp_path / "sent"))
    assert taken < counted + 15e6  # and some strips


@pytest.mark.parametrize("mode", strategies.MODES)
def test_strips_make_the_same_image_as_the_whole(monkeypatch, mode):
    noise = np.random.default_rng(0).bytes(4 * 31 * 23)
    count = len(Image.new(mode, (31, 23)).tobytes())
    image = Image.frombytes(mode, (31, 23), noise[:count])
    if mode == "F":
        ramp = np.linspace(-70, 500, 31 * 23, dtype=np.float32)
        image = Image.fromarray(ramp.reshape(23, 31))
    if mode in ("P", "L", "1"):
        image.info["transparency"] = 0
    whole = to_rgb(image)
    monkeypatch.setattr(vlm.image, "STRIP", 70)
    assert to_rgb(image).tobytes() == whole.tobytes()
    assert image_key(image) == image_key(whole)


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match="This picture has"):
        picture_file.read(path)


def extra_memory(act) -> int:
    """What it takes at its peak beyond what was there before, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells the peak")
    Path("/proc/self/clear_refs").write_text("5")  # it begins anew
    before = _bytes(status, "VmRSS")
    act()
    return _bytes(status, "VmHWM") - before


def _bytes(status: Path, name: str) -> int:
    line = next(each for each in status.open() if each.startswith(name))
    return int(line.split()[1]) * 1024


def test_a_file_of_each_kind_shows_what_the_library_sees_in_it(tmp_path):
    for data in strategies.samples():
        (tmp_path / "sent").write_bytes(data)
        image = picture_file.read(tmp_path / "sent")
        assert image.tobytes() == to_rgb(Image.open(io.BytesIO(data))).tobytes()


# --- files of too many parts ----------------------------------------------------------


def progressive() -> bytes:
    """A progressive JPEG of 300 x 200 pixels."""
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    image.save(file, "JPEG", progressive=True)
    return file.getvalue()


def scans(count: int) -> bytes:
    """The same with its last scan once more, and once more."""
    data = progressive()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def entries(count: int, size: int) -> bytes:
    """A TIFF whose entries all name the same bytes."""
    whole = strategies.tiff((64, 64), (64, 64))
    more = [struct.pack("<HHII", 40_000 + i, 7, size, 8) for i in range(count)]
    old = struct.unpack_from("<H", whole, 8)[0]
    head = whole[:8] + struct.pack("<H", old + count) + whole[10 : 10 + 12 * old]
    return head + b"".join(more) + bytes(size)


def chunks(count: int) -> bytes:
    sample = strategies.samples()[0]
    return sample[:33] + strategies.chunk(b"abCd", b"") * count + sample[33:]


def blocks(count: int) -> bytes:
    """A GIF with a comment in so many pieces."""
    (sample,) = [data for data in strategies.samples() if data[:3] == b"GIF"][:1]
    start = 13 + 3 * 2 ** ((sample[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * count + b"\0"
    return sample[:start] + comment + sample[start:]


def segments(count: int, part: bytes) -> bytes:
    data = progressive()
    return data[:2] + part * count + data[2:]


EXIF = b"\xff\xe1" + struct.pack(">H", 60_000) + b"Exif\0\0" + bytes(59_992)
CROWDED = {
    "scans of a JPEG": scans(5000),
    "fields of a JPEG": segments(100_000, b"\xff\xe9\0\2"),
    "bytes between a JPEG's parts": segments(1, bytes(300_000)),
    "fill bytes": segments(1, b"\xff" * 300_000),
    "Exif in many pieces": segments(3, EXIF),
    "chunks of a PNG": chunks(100_000),
    "pieces of a GIF's comment": blocks(20_000),
    "entries of a TIFF that name the same bytes": entries(2000, 100_000),
    "a BigTIFF": b"II+\0\x08\0\0\0" + bytes(99),
}


@pytest.mark.parametrize("kind", CROWDED)
def test_a_file_of_too_many_parts_is_refused_at_once(tmp_path, kind):
    (tmp_path / "sent").write_bytes(CROWDED[kind])
    began = time.perf_counter()
    with pytest.raises(ValueError, match="far too many parts"):
        picture_file.read(tmp_path / "sent")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    "data",
    [
        scans(20),
        segments(30, b"\xff\xe9\0\2"),
        segments(1, EXIF),
        progressive() + b"\xff\xda\0\2" * 500,  # a film may follow the photograph
        chunks(100),
        blocks(100),
    ],
    ids=range(6),
)
def test_a_file_of_some_parts_more_is_read(tmp_path, data):
    (tmp_path / "sent").write_bytes(data)
    assert picture_file.read(tmp_path / "sent").mode == "RGB"


def test_much_exif_is_not_looked_at():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (2, 3))
    image.info["exif"] = exif.tobytes() + bytes(10)
    assert to_rgb(image).size == (3, 2)
    image = Image.new("RGB", (2, 3))
    image.info["exif"] = exif.tobytes() + bytes(vlm.image.EXIF)
    assert to_rgb(image).size == (2, 3)


def test_a_compressed_bmp_is_refused(tmp_path):
    head = struct.pack("<IIIHHIIIIII", 40, 64, 64, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(8)
    data = b"BM" + struct.pack("<IHHI", 62, 0, 0, 62) + head + b"\x40\1" * 64 + b"\0\1"
    (tmp_path / "sent").write_bytes(data)
    with pytest.raises(ValueError, match="a compressed BMP"):
        picture_file.read(tmp_path / "sent")
