"""What nobody should send: strategies for files, pictures, prompts and requests."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from PIL import Image

# Each sets window.pwned, or fetches from a host that is not there, where it is read as
# markup or as a script.
MARKUP = (
    "<img src=x onerror=window.pwned=1>",
    "<img src=//192.0.2.1/x>",
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<svg/onload=window.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<details open ontoggle=window.pwned=1>",
    "<style>@import '//192.0.2.1/x';</style>",
    "[x](javascript:window.pwned=1)",
    "![x](//192.0.2.1/x)",
    "${window.pwned=1}",
    "{{constructor.constructor('window.pwned=1')()}}",
    "`+(window.pwned=1)+`",
    "$prompt $run $$",
    "\\u003cimg src\\u003dx onerror\\u003dwindow.pwned\\u003d1\\u003e",
    "\" onfocus=window.pwned=1 autofocus x='",
    "--><!--",
    "]]>",
    "</textarea></title>",
)
TOKENS = (
    *("<image>", "<bos>", "<eos>", "<pad>", "<unk>", "<loc0000>", "<loc1023>"),
    *("<loc9999>", "<seg000>", "<seg127>", "<seg999>", "<loc", "\n"),
)
HIDDEN = ("\0", "\x1b[2J", "\x85", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800")
# Marks, joiners, private use, half characters, other directions, other lines.
ODD = (
    "\u0300\u0345\u200c\u200d\ue000\udfff\u0627\u05d0\u2028\u2029\u00ad\U000e0041\r\x7f"
)
TASKS = ("caption en", "detect ", "segment ", "answer en ", "ocr", "Détect ")
SIDES = (0, 1, 7, 8, 9, 64, 2000, 20_000, 65_535, 2**31 - 1, 2**32 - 1)
KNOWN = {"_type": "gradio.FileData"}  # how Gradio marks a file
MODES = {  # what a mode can be saved as
    "1": ("PNG", "BMP", "TIFF", "GIF"),
    "L": ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "GIF", "BMP", "TIFF"),
    "PA": (),
    "RGB": ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"),
    "RGBA": ("PNG", "WEBP", "GIF", "TIFF"),
    "RGBa": (),
    "RGBX": ("TIFF",),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG",),
    "LAB": ("TIFF",),
    "HSV": (),
    "I": ("TIFF",),
    "I;16": ("PNG", "TIFF"),
    "I;16B": ("TIFF",),
    "F": ("TIFF",),
}
NUMBERS = (0, -1, 1.5, 10**9, 2**63, 10**400, 1e308, float("inf"), float("nan"))


def prompts() -> st.SearchStrategy[str]:
    """Tasks, names of tokens, markup, characters of every kind; some far too long."""
    pieces = st.one_of(
        *map(st.sampled_from, (TASKS, TOKENS, MARKUP, HIDDEN)),
        st.text(max_size=8),
        st.text(st.sampled_from(ODD), max_size=8),
    )
    short = st.lists(pieces, max_size=10).map("".join)
    # Marks out of order: to compose them takes time by their number squared.
    many = st.sampled_from(("x", " ", "\u0300\u0315", "; ", "<loc", "\u202e"))
    long = st.builds(
        lambda word, count: "".join(c * count for c in word),
        many,
        st.integers(100, 100_000),
    )
    return st.one_of(*[short] * 9, long)


def markup() -> st.SearchStrategy[str]:
    """What a page might read as more than text, short enough to be asked."""
    parts = st.lists(st.sampled_from(MARKUP), min_size=1, max_size=3)
    return parts.map(" ".join)


def values() -> st.SearchStrategy[Any]:
    """JSON, as far as Python's own goes: with NaN, infinities and halves of pairs."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.sampled_from(NUMBERS), prompts()
    )
    keys = st.one_of(
        st.sampled_from(("run", "keys", "kind", "path", "meta", "token", "index")),
        st.text(max_size=4),
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=8,
    )


def file_values(uploaded: str) -> st.SearchStrategy[Any]:
    """What stands where a file belongs: other files of the server, addresses, rubbish.

    `uploaded` is one that is there.
    """
    paths = st.one_of(
        st.sampled_from(
            (
                uploaded,
                uploaded + "\0",
                uploaded.rpartition("/")[0],
                "/etc/passwd",
                "../../../../etc/passwd",
                "file:///etc/passwd",
                "http://127.0.0.1:1/x.png",
                "https://192.0.2.1/x.png",
                "//192.0.2.1/x.png",
                "data:image/png;base64,AAAA",
                "/dev/zero",
                "x" * 5000,
                "\ud800",
            )
        ),
        prompts(),
    )
    entries = st.fixed_dictionaries(
        {"path": paths},
        optional={
            "meta": st.one_of(st.just(KNOWN), values()),
            "url": paths,
            "is_stream": st.booleans(),
            "size": st.sampled_from(NUMBERS),
        },
    )
    known = paths.map(lambda path: {"path": path, "meta": KNOWN})
    return st.one_of(known, entries, values())


def files() -> st.SearchStrategy[bytes]:
    """Bytes behind the first ones of a format, samples with changes, or cut short."""
    starts = st.sampled_from(
        (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"GIF89a",
            b"RIFF\x40\0\0\0WEBPVP8 ",
            b"RIFF\x40\0\0\0WEBPVP8X",
            b"BM",
            b"II*\0\x08\0\0\0",
            b"MM\0*\0\0\0\x08",
            b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>",
            b"<!doctype html><script>x()</script>",
            b"%PDF-1.7",
            b"\0\0\0\x1cftypheic",
        )
    )
    rubbish = st.builds(bytes.__add__, starts, st.binary(max_size=200))
    edits = st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12
    )
    changed = st.builds(_changed, st.sampled_from(samples()), edits)
    ends = st.integers(0, 400)
    cut = st.builds(lambda data, end: data[:end], st.sampled_from(samples()), ends)
    return st.one_of(rubbish, changed, changed, cut)


def headers() -> st.SearchStrategy[bytes]:
    """Files whose header promises any size, whatever follows it."""
    side = st.one_of(st.sampled_from(SIDES), st.integers(0, 40_000))
    sizes = st.tuples(side, side)
    deep = st.sampled_from(((8, 0), (16, 0), (8, 2), (16, 6), (1, 3), (7, 9)))
    byte = st.sampled_from([sample for sample in samples() if b"WEBP" in sample[:16]])
    return st.one_of(
        st.builds(png, sizes, deep),
        st.builds(tiff, sizes, sizes),
        st.builds(_gif, sizes),
        st.builds(_bmp, sizes),
        st.builds(_webp, byte, sizes),
    )


def saved_images() -> st.SearchStrategy[tuple[Image.Image, bytes | None]]:
    """An image of any mode, upright or not, and the file of it if there can be one."""
    side = st.integers(8, 40)
    return st.sampled_from(list(MODES)).flatmap(
        lambda mode: st.builds(
            _image,
            st.just(mode),
            st.sampled_from((*MODES[mode], None)),
            st.tuples(side, side),
            st.integers(0, 9),
            st.binary(min_size=1, max_size=60),
        )
    )


@functools.cache
def samples() -> Sequence[bytes]:
    """A small file of each kind that is taken."""
    grey = Image.linear_gradient("L").resize((32, 24))
    color = Image.merge("RGB", [grey, grey.rotate(180), grey])
    frames = {"save_all": True, "append_images": [color.rotate(90)]}
    ways: list[tuple[Image.Image, str, dict]] = [
        (grey.convert(mode), format, {})
        for mode, formats in MODES.items()
        if mode in ("1", "L", "P", "RGBA", "CMYK", "I;16", "F")
        for format in formats
    ]
    ways += [(color, format, frames) for format in ("PNG", "GIF", "WEBP", "TIFF")]
    ways += [(color, "JPEG", {"progressive": True}), (color, "JPEG", {})]
    for way in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        ways.append((color, "TIFF", {"compression": way}))
    return [_saved(image, format, **how) for image, format, how in ways]


def png(size: tuple[int, int], kind: tuple[int, int] = (8, 0)) -> bytes:
    """A PNG that promises a size, and has next to nothing of it."""
    depth, color = kind
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    data = zlib.compress(bytes(100))
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(size: tuple[int, int], tile: tuple[int, int], data: bytes = b"") -> bytes:
    """A TIFF of one tile of deflated grey levels, which may be larger than it."""
    data = data or zlib.compress(bytes(100))
    tags = {256: size[0], 257: size[1], 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile[0], 323: tile[1], 324: 0, 325: len(data)}
    tags[324] = place = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    assert len(head) == place
    return head + data


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _gif(size: tuple[int, int]) -> bytes:
    sides = struct.pack("<HH", *(side & 0xFFFF for side in size))
    frame = b"," + bytes(4) + sides + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + sides + b"\x80\0\0" + bytes(6) + frame + b";"


def _bmp(size: tuple[int, int]) -> bytes:
    head = struct.pack("<IIIHHIIIIII", 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def _webp(sample: bytes, size: tuple[int, int]) -> bytes:
    """The sample behind an extended header that promises a size."""
    sides = (struct.pack("<I", side & 0xFFFFFF)[:3] for side in size)
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + b"".join(sides) + sample[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _image(
    mode: str, format: str | None, size: tuple[int, int], turn: int, noise: bytes
) -> tuple[Image.Image, bytes | None]:
    blank = Image.new(mode, size)
    count = len(blank.tobytes())
    image = Image.frombytes(mode, size, (noise * count)[:count])
    if mode in ("P", "PA"):
        image.putpalette(bytes(range(256)) * 3)
    exif = Image.Exif()
    exif[0x0112] = turn
    if format in ("PNG", "JPEG", "WEBP", "TIFF"):
        return image, _saved(image, format, exif=exif)
    return image, _saved(image, format) if format else None


def _saved(image: Image.Image, format: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def _changed(sample: bytes, edits: list[tuple[int, int]]) -> bytes:
    data = bytearray(sample)
    for place, value in edits:
        data[place % len(data)] = value
    return bytes(data)
