"""The file of int8 weights: made once from a checkpoint, mapped at every later start.

It is a safetensors file beside the checkpoint's folder (beside the Hub's cache, if it
came from there) or, where nothing can be written, in the user's cache. It names the
files that it was made from and how this processor packs weights, and is made again when
those are no longer the same.

All matrices are in one tensor, one behind the other, each from the beginning of a page
of memory: rows of half a page, which lie in one page then, are read a tenth faster.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm import packed, weights
from vlm.packed import Packed
from vlm.quantize import PAGE, Rows, quantize_rows

# A file of another one is refused.
SCHEME = "int8 rows, symmetric, largest to 127, on pages"
CHUNK = 1 << 26  # weights that are quantised before they are written


def quantized(
    folder: Path,
    matrices: dict[str, Tensor],
    to_pack: Collection[str] = (),
    progress: Callable[[str], None] = lambda words: None,
) -> dict[str, Rows]:
    """A checkpoint's matrices [N, K] in int8, mapped from a file; it is made if needed.

    Where no file can be written, they are made in memory, for this time, unpacked.

    Args:
        to_pack: names of those which the file is to hold packed, too.
    """
    source = origin(folder, {matrices[name].shape for name in to_pack})
    for path in places(folder):
        if (found := read(path, matrices, to_pack, source)) is not None:
            return found
    for path in places(folder):
        try:
            write(path, matrices, to_pack, source, progress)
        except OSError as error:
            progress(f"{path} cannot be written ({error.strerror})")
        if (found := read(path, matrices, to_pack, source)) is not None:
            return found
    return {name: Rows(*quantize_rows(matrix)) for name, matrix in matrices.items()}


def places(folder: Path) -> Iterator[Path]:
    """Where the file of a checkpoint's folder may be, the best place first."""
    folder = folder.resolve()
    name, stem = str(folder), "model"
    if _from_hub(folder):
        name, stem = folder.parent.parent.name, folder.name
    else:
        yield folder.with_name(f"{folder.name}-int8.safetensors")
    try:
        cache = cached_assets_path("paliscope", name, "int8")
    except (OSError, ValueError):  # it cannot be made
        return
    yield cache / f"{stem}.safetensors"


def origin(folder: Path, shapes: Collection[tuple[int, ...]] = ()) -> str:
    """What the int8 weights are made of: changes when the checkpoint's files do.

    Args:
        shapes: [N, K] of what is packed, for the order of which they answer as well.
    """
    folder, made_of = folder.resolve(), {}
    for path in weights.files(folder):
        known = path.stat()
        # Files of a Hub revision never change; their times are those of the download.
        made_of[path.name] = [
            known.st_size,
            folder.name if _from_hub(folder) else known.st_mtime_ns,
        ]
    orders = sorted({piece.name for s in shapes for piece in packed.layouts(*s)})
    told = {"scheme": SCHEME, "files": made_of, "orders": orders}
    return json.dumps(told, sort_keys=True)


def read(
    path: Path, matrices: dict[str, Tensor], to_pack: Collection[str], source: str
) -> dict[str, Rows] | None:
    """What a file holds, mapped; None if it is absent, damaged or of another source."""
    try:
        file = safe_open(path, "pt")
    except (OSError, SafetensorError):
        return None
    tensors, metadata = _contents(matrices, to_pack, source)
    shapes = {name: list(shape) for name, (_, shape) in tensors.items()}
    held = {name: file.get_slice(name).get_shape() for name in file.keys()}
    if held != shapes or file.metadata() != metadata:
        return None
    weights, packings = file.get_tensor("weights"), file.get_tensor("packed")
    heights = [len(matrix) for matrix in matrices.values()]
    scales = dict(zip(matrices, file.get_tensor("scales").split(heights)))
    places = _places({name: _packed_size(matrices[name]) for name in to_pack})
    packs = {
        name: Packed(packings[place], scales[name], matrices[name].shape[1])
        for name, place in places.items()
    }
    places = _places({name: matrix.numel() for name, matrix in matrices.items()})
    return {
        name: Rows(
            weights[place].view(matrices[name].shape), scales[name], packs.get(name)
        )
        for name, place in places.items()
    }


def write(
    path: Path,
    matrices: dict[str, Tensor],
    to_pack: Collection[str],
    source: str,
    progress: Callable[[str], None] = lambda words: None,
) -> None:
    """Quantise some rows at a time, straight into the file, which appears when whole.

    Raises:
        OSError: it cannot be written.
    """
    head = _header(*_contents(matrices, to_pack, source))
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(head)
            scales = []
            for done, matrix in enumerate(matrices.values()):
                progress(f"Quantising, once: {done} of {len(matrices)} matrices")
                for some in matrix.split(max(1, CHUNK // matrix.shape[1])):
                    part_rows, part_scales = quantize_rows(some)
                    file.write(part_rows.numpy())
                    scales.append(part_scales)
                _fill_page(file)
            for done, name in enumerate(to_pack):
                progress(f"Packing, once: {done} of {len(to_pack)} matrices")
                matrix = matrices[name]
                for piece in packed.pieces(len(matrix)):
                    rows, _ = quantize_rows(matrix[piece])
                    file.write(packed.pack(rows).numpy())
                _fill_page(file)
            file.write(torch.cat(scales).numpy())
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # What was written lies in memory page by page; what is read back comes
                # in longer pieces, which are mapped and read faster from then on.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _contents(
    matrices: dict[str, Tensor], to_pack: Collection[str], source: str
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """The file's tensors, type and shape, in order; and what it says of itself."""
    shapes = {name: list(matrix.shape) for name, matrix in matrices.items()}
    tensors = {
        "weights": ("I8", (sum(_padded(m.numel()) for m in matrices.values()),)),
        "packed": ("U8", (sum(_padded(_packed_size(matrices[n])) for n in to_pack),)),
        "scales": ("F32", (sum(len(matrix) for matrix in matrices.values()), 1)),
    }
    told = {"matrices": json.dumps(shapes), "also packed": json.dumps(list(to_pack))}
    return tensors, {"format": "pt", "source": source, **told}


def _header(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    """The beginning of a safetensors file, whole pages, whose tensors follow it."""
    told, at = {"__metadata__": metadata}, 0
    for name, (kind, shape) in tensors.items():
        size = math.prod(shape) * {"F32": 4}.get(kind, 1)
        told[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(told).encode()
    text += b" " * (_padded(len(text) + 8) - len(text) - 8)
    return struct.pack("<Q", len(text)) + text


def _places(sizes: dict[str, int]) -> dict[str, slice]:
    """Where things of such sizes, in bytes, lie one behind the other, by pages."""
    ends = accumulate(map(_padded, sizes.values()))
    return {
        name: slice(end - _padded(size), end - _padded(size) + size)
        for (name, size), end in zip(sizes.items(), ends)
    }


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _fill_page(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % PAGE))


def _packed_size(matrix: Tensor) -> int:
    return sum(piece.size for piece in packed.layouts(*matrix.shape))


def _from_hub(folder: Path) -> bool:
    return folder.parent.name == "snapshots"
