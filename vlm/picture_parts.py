"""How much is in a picture's file before, and beside, its pixels.

Such files are lists of parts. One of some MB can have millions, or one part that is
named thousands of times: its reader, in Python, would take minutes or all memory, and
a progressive JPEG is gone over as a whole for each of its scans.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

MAX_PARTS = 40_000  # of any kind; a tall TIFF has one for each row
MAX_BLOCKS = 4_000  # of a GIF, before its first frame
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten
MAX_EXIF = 2**16  # bytes of it, as much as one part of a JPEG can hold


def is_crowded(path: str | os.PathLike) -> bool:
    """Whether it would take too long, or too much memory, to go through the file.

    Nothing is decoded. A file of no known format is not crowded.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(b"\x89PNG"):
            return _exceeds(_png(file), MAX_PARTS)
        if start.startswith(b"\xff\xd8"):
            return _exceeds(_jpeg(file), MAX_PARTS)
        if start.startswith(b"GIF8"):
            return _exceeds(_gif(file), MAX_BLOCKS)
        if start[:2] in (b"II", b"MM") and b"*" in start[2:4]:
            return _exceeds(_tiff(file, start), MAX_PARTS)
        # A BigTIFF is for more than is read here.
        return start[:2] in (b"II", b"MM") and b"+" in start[2:4]


def _exceeds(parts: Iterator[int], most: int) -> bool:
    count = 0
    for more in parts:
        count += more
        if count > most:
            return True
    return False


def _png(file: BinaryIO) -> Iterator[int]:
    while len(head := file.read(8)) == 8:
        yield 1
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)


# Markers behind which no length stands, or none that Pillow reads.
BARE = {0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}


MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # none that is a scan's own


def _jpeg(file: BinaryIO) -> Iterator[int]:
    """Up to the first scan, Pillow reads what is between the parts byte by byte."""
    file.seek(2)
    exif = 0
    while byte := file.read(1):
        yield 1
        if byte != b"\xff":
            continue
        while (code := file.read(1)) == b"\xff":
            yield 1
        if code == b"\xda":
            yield from _scans(file)
            return
        if not code:
            return
        if code[0] in BARE:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        begins = file.read(min(6, max(0, length)))
        if code == b"\xe1" and begins == b"Exif\0\0":
            exif += length
            yield MAX_PARTS * (exif > MAX_EXIF)
        file.seek(max(0, length - len(begins)), os.SEEK_CUR)


def _scans(file: BinaryIO) -> Iterator[int]:
    """The first one's marker has been read. What may follow the image is not."""
    at, code = file.tell(), 0xDA
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while code != 0xD9:
            yield MAX_PARTS // MAX_SCANS if code == 0xDA else 1
            if code not in BARE:
                at += int.from_bytes(data[at : at + 2], "big")
            found = MARKER.search(data, at)
            if not found:
                return
            at, code = found.end(), data[found.end() - 1]


def _gif(file: BinaryIO) -> Iterator[int]:
    """Up to the first frame."""
    file.seek(10)
    flags = (file.read(1) or b"\0")[0]
    palette = 3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0
    file.seek(13 + palette)
    while (byte := file.read(1)) and byte not in b",;":
        yield 1
        if byte == b"!":
            file.read(1)
            while (size := file.read(1)) and size != b"\0":
                yield 1
                file.seek(size[0], os.SEEK_CUR)


# Bytes of a value of each of TIFF's types; what is counted in ones is not unpacked.
UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
UNITS |= {13: 4, 16: 8}


def _tiff(file: BinaryIO, start: bytes) -> Iterator[int]:
    """The first directory: its entries, and what they say that they have."""
    order = "little" if start.startswith(b"II") else "big"
    room = os.fstat(file.fileno()).st_size
    file.seek(int.from_bytes(start[4:8], order))
    for _ in range(int.from_bytes(file.read(2), order)):
        entry = file.read(12)
        kind, count = (int.from_bytes(entry[a:b], order) for a, b in ((2, 4), (4, 8)))
        unit = UNITS.get(kind, 1)
        yield count if unit > 1 else 1
        room -= unit * count if unit * count > 4 else 0
        # More than there is: entries that name the same bytes, or none.
        yield MAX_PARTS * (room < 0)
