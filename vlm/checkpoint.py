"""Checkpoints: find, read, place on devices, save; strict throughout.

Every tensor in the files must be one of the model's, in its shape, and none may be
missing; anything else is an error that names it. Weights are memory-mapped and assigned
to a model that was built on `meta`, so that nothing is held twice.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_max_memory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm import hub
from vlm.config import PaliGemmaConfig
from vlm.hub import EMBEDDING, HEAD, Progress, config_json, rename
from vlm.paligemma import PaliGemma

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of a checkpoint: `source` itself, or the local copy of a Hub name.

    Raises:
        ValueError: nothing usable is there; the text says what to do.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = hub.download(str(source), revision, token, progress)
    for needed in (("config.json",), (WEIGHTS, INDEX)):
        if not any((folder / name).is_file() for name in needed):
            raise ValueError(
                f"{folder} has no {' or '.join(needed)}; a checkpoint folder holds "
                f"config.json, the tokenizer's files and {WEIGHTS} (or {INDEX} and the "
                "shards that it names)"
            )
    return folder


def read_config(folder: Path) -> PaliGemmaConfig:
    """What config.json says, and the ending ids that generation_config.json adds.

    Raises:
        ValueError: it is no PaliGemma that can be built here.
    """
    raw = _read_json(folder / "config.json")
    if "quantization_config" in raw:
        raise ValueError(
            f"the weights in {folder} are quantized; load the checkpoint that they "
            "were made from"
        )
    config = PaliGemmaConfig.from_hf(raw)
    if not (generation := folder / "generation_config.json").is_file():
        return config
    more = _read_json(generation).get("eos_token_id") or []
    more = more if isinstance(more, list) else [more]
    return replace(config, eos=tuple(dict.fromkeys((*config.eos, *more))))


def load_model(
    folder: Path,
    config: PaliGemmaConfig,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    max_memory: dict[int | str, int | str] | None = None,
) -> PaliGemma:
    """The model with the folder's weights: placed, frozen, in evaluation mode.

    Args:
        device: "auto" is the GPU if there is one, several if one is too small, with
            the CPU's memory for the rest. Any other device takes all of it.
        dtype: "auto" is the files' own, but float32 for a small model on a CPU.
        max_memory: what "auto" may take of each GPU (by number) and of "cpu".

    Raises:
        ValueError: files, config and device do not go together.
    """
    stored = _open_weights(folder, hub.rows(post_norms=config.decoder.post_norms))
    head, embedding = stored.get(HEAD), stored.get(EMBEDDING)
    # A mere copy of the embedding is dropped. A head that differs is a head of its own,
    # whatever the config says: transformers decides the same way.
    if head and embedding and config.decoder.tied_head and head.same(embedding):
        del stored[HEAD]
    tied = HEAD not in stored
    config = replace(config, decoder=replace(config.decoder, tied_head=tied))
    with torch.device("meta"):
        model = PaliGemma(config)
    _check(stored, model, folder)

    home = _home(device)
    dtype = _dtype(dtype, stored, home)
    places = {"": home}
    if str(device) == "auto" and home.type == "cuda":
        places = place(model, dtype, max_memory)
    state = {}
    for name, tensor in stored.items():
        there = next(places[p] for p in places if not p or name.startswith(f"{p}."))
        state[name] = tensor.read().to(there).to(dtype)
    if tied:
        state[HEAD] = state[EMBEDDING]
    model.load_state_dict(state, strict=True, assign=True)
    model.decoder.tie_weights()
    model.requires_grad_(False).eval()
    if len(places) > 1:
        gpus = [place for place in places.values() if place != "cpu"]
        dispatch_model(model, places, main_device=min(gpus))
    return model


def place(
    model: PaliGemma,
    dtype: torch.dtype,
    max_memory: dict[int | str, int | str] | None = None,
) -> dict[str, int | str]:
    """Which part goes where: on one GPU if it fits, else on several, the CPU last.

    Raises:
        ValueError: there is not enough memory in all of them.
    """
    memory = get_max_memory(max_memory)
    if max_memory is None:  # images and the KV cache want room too
        memory = {k: v if k == "cpu" else int(v * 0.9) for k, v in memory.items()}
    size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    roomiest = max((k for k in memory if k != "cpu"), key=memory.__getitem__)
    if size <= memory[roomiest]:
        return {"": roomiest}
    places = infer_auto_device_map(
        model,
        max_memory=memory,
        no_split_module_classes=["Block", "EncoderBlock"],
        dtype=dtype,
    )
    if "disk" in places.values():
        room = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in memory.items())
        raise ValueError(
            f"{size / 1e9:.2f} GB of weights do not fit into {room}; "
            "ask for a smaller dtype or a smaller checkpoint"
        )
    return places


def save(
    model: PaliGemma, folder: str | Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write weights and config.json as the Hub's checkpoints have them.

    Raises:
        ValueError: parts of the model are offloaded and cannot be copied.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = _named(model)
    if away := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(f"load it on one device to save it; away are {_some(away)}")
    back = hub.rows(post_norms=model.config.decoder.post_norms, back=True)
    tensors = {
        rename(name, back): tensor.to("cpu", dtype).contiguous()
        for name, tensor in state.items()
    }
    raw = {**config_json(model.config), "torch_dtype": str(dtype)[6:]}
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    # The model may be mapped from this very file, which must not change under it.
    fresh = folder / f"{WEIGHTS}.part"
    save_file(tensors, fresh, metadata={"format": "pt"})
    os.replace(fresh, folder / WEIGHTS)


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


def _open_weights(folder: Path, rows: dict[str, str]) -> dict[str, Stored]:
    """The folder's tensors under our names; one that no row knows keeps its own."""
    stored: dict[str, Stored] = {}
    for path in _files(folder):
        try:
            file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
        for key in file.keys():
            if key.endswith(".position_ids"):  # a buffer that old versions wrote
                continue
            name = rename(hub.unify(key), rows) or key
            if name in stored:
                raise ValueError(f"{stored[name].key} and {key} are the same tensor")
            part = file.get_slice(key)
            if (kind := part.get_dtype()) not in DTYPES:
                raise ValueError(f"{key} is of type {kind}; {KNOWN}")
            stored[name] = Stored(file, key, tuple(part.get_shape()), DTYPES[kind])
    return stored


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    shards = set(_read_json(folder / INDEX).get("weight_map", {}).values())
    paths = [folder / Path(shard).name for shard in sorted(shards)]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks {_some(absent)}, which {INDEX} names")
    return paths


def _check(stored: dict[str, Stored], model: PaliGemma, folder: Path) -> None:
    wanted = _named(model)
    back = hub.rows(post_norms=model.config.decoder.post_norms, back=True)
    faults = {
        "missing": [rename(name, back) for name in wanted if name not in stored],
        "unknown": [stored[name].key for name in stored if name not in wanted],
        "misshaped": [
            f"{tensor.key} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
            for name, tensor in stored.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ],
    }
    if found := "; ".join(f"{k}: {_some(v)}" for k, v in faults.items() if v):
        raise ValueError(f"config.json and weights in {folder} do not match. {found}")


def _named(model: PaliGemma) -> dict[str, Tensor]:
    """The model's tensors, a tied head left out."""
    state = model.state_dict()
    if model.config.decoder.tied_head:
        del state[HEAD]
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" * (len(names) > 8))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


# As safetensors spells them.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
KNOWN = "known are float32, bfloat16 and float16"


def _dtype(
    dtype: str | torch.dtype, stored: dict[str, Stored], home: torch.device
) -> torch.dtype:
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


def _home(device: str | torch.device) -> torch.device:
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
