"""Int8 weights in the order in which oneDNN's kernels read them, mapped from a file.

`torch._int_mm` takes plain rows and brings them into that order again for every
product. Weights that are in it already are opaque to PyTorch, and `qlinear_prepack`
makes them slowly and in memory of its own. So they are made once and their bytes kept;
AOTInductor's C functions, by which compiled models find such weights in their own files
(aoti_torch/c/shim.h), make a tensor over bytes that lie anywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 1024  # rows of weights, about, that are packed and multiplied together
STEP = 64  # rows of weights that the kernel goes through at a time
MIDDLE = 128  # what is zero among the kernel's unsigned numbers


class Packed:
    """Weights [N, K], packed some rows at a time, that multiply unsigned rows.

    Args:
        data: what `pack` made, uint8 and flat. It has to lie where it is for as long
            as this is used.
        scale: float32 [N, 1], the weights'.
        width: K.
    """

    def __init__(self, data: Tensor, scale: Tensor, width: int) -> None:
        self.data, self.pieces, at = data, {}, 0
        for part, layout in zip(pieces(len(scale)), layouts(len(scale), width)):
            piece = _opaque(data[at : at + layout.size], layout)
            scales = scale[part].flatten().contiguous()
            zeros = torch.zeros(len(scales), dtype=torch.long)
            self.pieces[part.start] = piece, scales, zeros
            at += layout.size

    def __deepcopy__(self, memo: object) -> None:
        """A copied layer goes without: its plain weights may then be changed."""

    def product(self, rows: Tensor, part: slice) -> Tensor:
        """float32 [M, columns]: rows less MIDDLE, times weights and their scales.

        Args:
            rows: uint8 [M, K].
            part: of the N columns: one of `pieces`, or all.
        """
        asked = self.pieces.values()
        if part != slice(None):
            asked = [self.pieces[part.start]]
        found = [
            torch.ops.onednn.qlinear_pointwise(
                rows,
                1.0,
                MIDDLE,
                *piece,
                None,  # bias
                1.0,
                0,
                torch.float32,
                "none",  # nothing after the product
                [],
                "",
            )
            for piece in asked
        ]
        return found[0] if len(found) == 1 else torch.cat(found, 1)


class Layout(NamedTuple):
    """How weights of one shape are packed on this processor."""

    shape: tuple[int, ...]
    size: int  # bytes
    name: str  # of what packing does to known numbers: another order has another
    description: Tensor  # oneDNN's own, uint8


def pieces(rows: int) -> list[slice]:
    """Of weights' rows, those that are packed together: all of about one size.

    A few rows would take nearly as long as many.
    """
    count = max(1, round(rows / PIECE))
    size = -(-rows // (count * STEP)) * STEP
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def pack(weight: Tensor) -> Tensor:
    """The bytes of weights int8 [N, K], packed some rows at a time; uint8 and flat."""
    parts = pieces(len(weight))
    return torch.cat([_bytes(_prepacked(weight[part])) for part in parts])


def layouts(rows: int, width: int) -> list[Layout]:
    """Those of the pieces of weights [rows, width]."""
    return [layout_of(part.stop - part.start, width) for part in pieces(rows)]


@cache
def layout_of(rows: int, width: int) -> Layout:
    numbers = torch.arange(rows * width, dtype=torch.int32).view(rows, width)
    packed = _prepacked((numbers % 251 - 125).to(torch.int8))
    description = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
    data = _bytes(packed)
    name = hashlib.sha256(data.numpy()).hexdigest()
    return Layout(tuple(packed.shape), len(data), name, description)


@cache
def works() -> bool:
    """Whether weights can be packed and mapped here, and give exact sums.

    It was run on Linux and x86 processors only; elsewhere it is not tried.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    dice = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(-127, 128, (n, 320), generator=dice) for n in (33, PIECE + 32)
    )
    x[0], weight[0] = 127, 127  # the largest sum that there can be
    try:
        data = pack(weight.to(torch.int8))
        packed = Packed(data, torch.ones(len(weight), 1), weight.shape[1])
        sums = packed.product((x + MIDDLE).to(torch.uint8), slice(None))
    except (AttributeError, OSError, RuntimeError):  # another PyTorch, without these
        return False
    return torch.equal(sums.long(), x @ weight.T)


def _prepacked(weight: Tensor) -> Tensor:
    # Without a number of rows that it is to meet: those packings are slower.
    return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)


def _bytes(packed: Tensor) -> Tensor:
    """A copy of what lies in an opaque tensor's memory."""
    at, count = torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed)
    return torch.frombuffer(bytearray(ctypes.string_at(at, count)), dtype=torch.uint8)


def _opaque(data: Tensor, layout: Layout) -> Tensor:
    """An opaque tensor over bytes that were packed so."""
    library, handle = _library(), ctypes.c_void_p()
    axes = len(layout.shape)
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(data.data_ptr()),
        ctypes.c_int64(axes),
        (ctypes.c_int64 * axes)(*layout.shape),
        (ctypes.c_int64 * axes)(),  # strides, which opaque tensors have none of
        ctypes.c_int64(0),
        ctypes.c_int32(library.aoti_torch_dtype_int8()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        ctypes.c_void_p(layout.description.data_ptr()),
        ctypes.c_int64(len(layout.description)),
    )
    if failed:
        raise RuntimeError("PyTorch cannot make a packed tensor over given memory")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        capsule(handle, None, None)
    )


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
