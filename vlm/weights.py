"""Weights: safetensors files mapped into memory under our names, checked, written."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlm.hub import rename, unify

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def open_weights(folder: Path, rows: dict[str, str]) -> dict[str, Stored]:
    """The folder's tensors under our names; one that no row knows keeps its own.

    Raises:
        ValueError: a file is missing or damaged, or holds a tensor twice.
    """
    stored: dict[str, Stored] = {}
    for path in files(folder):
        try:
            file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
        for key in file.keys():
            if key.endswith(".position_ids"):  # a buffer that old versions wrote
                continue
            name = rename(unify(key), rows) or key
            if name in stored:
                raise ValueError(f"{stored[name].key} and {key} are the same tensor")
            part = file.get_slice(key)
            if (kind := part.get_dtype()) not in DTYPES:
                raise ValueError(f"{key} is of type {kind}; {KNOWN}")
            stored[name] = Stored(file, key, tuple(part.get_shape()), DTYPES[kind])
    return stored


def check(
    stored: dict[str, Stored],
    wanted: dict[str, Tensor],
    folder: Path,
    *,
    back: dict[str, str],
) -> None:
    """Hold what is stored against the tensors that a model wants; both by our names.

    Raises:
        ValueError: one is missing, unknown or misshaped; `back` names it in the text.
    """
    faults = {
        "missing": [rename(name, back) for name in wanted if name not in stored],
        "unknown": [stored[name].key for name in stored if name not in wanted],
        "misshaped": [
            f"{tensor.key} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
            for name, tensor in stored.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ],
    }
    if found := "; ".join(f"{k}: {some(v)}" for k, v in faults.items() if v):
        raise ValueError(f"config.json and weights in {folder} do not match. {found}")


def write(
    folder: str | Path,
    tensors: dict[str, Tensor],
    raw: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Put tensors and config.json into a folder.

    Raises:
        ValueError: some of the tensors are offloaded and cannot be copied, or int8.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if away := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"load it on one device to save it; away are {some(away)}")
    if rounded := [name for name, t in tensors.items() if t.dtype == torch.int8]:
        raise ValueError(f"load it without int8 to save it; int8 are {some(rounded)}")
    copies = {name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()}
    raw = {**raw, "torch_dtype": str(dtype)[6:]}
    # Both are there whole or not at all. And the model may be mapped from this very
    # file, which must not change under it.
    config, fresh = (folder / f"{name}.part" for name in ("config.json", WEIGHTS))
    try:
        config.write_text(json.dumps(raw, indent=2) + "\n")
        save_file(copies, fresh, metadata={"format": "pt"})
        os.replace(config, folder / "config.json")
        os.replace(fresh, folder / WEIGHTS)
    finally:
        config.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file that is mapped into memory."""

    file: Any
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        return self.file.get_tensor(self.key)

    def same(self, other: Stored) -> bool:
        return self.shape == other.shape and torch.equal(self.read(), other.read())


class Undrawn(TorchFunctionMode):
    """Modules are built without drawing their first weights, which are replaced.

    On `meta` there is nothing to draw, and yet torch would import its compiler for it:
    800 modules, 70 MB.
    """

    def __torch_function__(
        self,
        act: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        how = kwargs or {}
        if getattr(act, "__module__", "") == nn.init.__name__:
            return how["tensor"]
        return act(*args, **how)


def files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    shards = set(read_json(folder / INDEX).get("weight_map", {}).values())
    paths = [folder / Path(shard).name for shard in sorted(shards)]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks {some(absent)}, which {INDEX} names")
    return paths


def some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" * (len(names) > 8))


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


# As safetensors spells them.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
KNOWN = "known are float32, bfloat16 and float16"


def choose_dtype(
    dtype: str | torch.dtype, stored: dict[str, Stored], home: torch.device
) -> torch.dtype:
    """The one asked for; under "auto" the files' own, float32 if small on a CPU."""
    if str(dtype) != "auto":
        for known in DTYPES.values():
            if str(dtype) in (str(known), str(known)[6:]):
                return known
        raise ValueError(f"dtype {dtype!r} is not to be had; {KNOWN}, and 'auto'")
    sizes = Counter()
    for tensor in stored.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    # Most CPUs are slow in half precision, and a small model has the room.
    small = home.type == "cpu" and sizes.total() < 1e9
    return torch.float32 if small else sizes.most_common(1)[0][0]


def choose_device(device: str | torch.device) -> torch.device:
    """Where all of it goes; under "auto", where it goes if it fits."""
    here = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    try:
        return torch.empty(
            0, device=here[0] if str(device) == "auto" else device
        ).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} is not here; choose from auto, {', '.join(here)}"
        ) from error
