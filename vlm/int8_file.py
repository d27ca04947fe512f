"""The file of int8 weights: made once from a checkpoint, mapped at every later start.

It is a safetensors file beside the checkpoint's folder (beside the Hub's cache, if it
came from there) or, where nothing can be written, in the user's cache. It names the
files that it was made from and how this processor packs weights, and is made again when
those are no longer the same.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm import packed, weights
from vlm.packed import Packed
from vlm.quantize import Rows, quantize_rows

SCHEME = "int8 rows, symmetric, largest to 127"  # a file of another one is refused
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
    shapes = {f"{name}.weight": list(matrix.shape) for name, matrix in matrices.items()}
    shapes |= {f"{name}.scale": [len(matrix), 1] for name, matrix in matrices.items()}
    shapes |= {f"{name}.packed": [_packed_size(matrices[name])] for name in to_pack}
    held = {name: file.get_slice(name).get_shape() for name in file.keys()}
    if held != shapes or (file.metadata() or {}).get("source") != source:
        return None
    found = {}
    for name, matrix in matrices.items():
        rows = Rows(file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.scale"))
        if name in to_pack:
            data = file.get_tensor(f"{name}.packed")
            rows = rows._replace(packed=Packed(data, rows.scale, matrix.shape[1]))
        found[name] = rows
    return found


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
    scales, rows, again = {}, {}, {}
    for name, matrix in matrices.items():
        scales[f"{name}.scale"] = "F32", (len(matrix), 1), 4 * len(matrix)
        rows[f"{name}.weight"] = "I8", tuple(matrix.shape), matrix.numel()
    for name in to_pack:
        size = _packed_size(matrices[name])
        again[f"{name}.packed"] = "U8", (size,), size
    head, start = _header(scales | rows | again, {"format": "pt", "source": source})
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(head)
            file.seek(start + sum(size for _, _, size in scales.values()))
            found = []
            for done, matrix in enumerate(matrices.values()):
                progress(f"Quantising, once: {done} of {len(matrices)} matrices")
                for some in matrix.split(max(1, CHUNK // matrix.shape[1])):
                    part_rows, part_scales = quantize_rows(some)
                    file.write(part_rows.numpy())
                    found.append(part_scales)
            for done, name in enumerate(to_pack):
                progress(f"Packing, once: {done} of {len(to_pack)} matrices")
                for some in matrices[name].split(packed.PIECE):
                    file.write(packed.pack(quantize_rows(some)[0]).numpy())
            file.seek(start)
            file.write(torch.cat(found).numpy())
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


def _packed_size(matrix: Tensor) -> int:
    return sum(piece.size for piece in packed.layouts(*matrix.shape))


def _header(
    tensors: dict[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str]
) -> tuple[bytes, int]:
    """The beginning of a safetensors file, and where its first tensor begins.

    Tensors are (type, shape, bytes) and follow each other.
    """
    told, at = {"__metadata__": metadata}, 0
    for name, (kind, shape, size) in tensors.items():
        told[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(told).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text, 8 + len(text)


def _from_hub(folder: Path) -> bool:
    return folder.parent.name == "snapshots"
