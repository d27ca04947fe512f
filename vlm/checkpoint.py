"""Checkpoints: find, read, place on devices, save; strict throughout.

Every tensor in the files must be one of the model's, in its shape, and none may be
missing; anything else is an error that names it. Weights are memory-mapped and assigned
to a model that was built on `meta`, so that nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm import hub, weights
from vlm.config import PaliGemmaConfig
from vlm.download import download
from vlm.hub import EMBEDDING, HEAD, Progress, config_json, rename
from vlm.paligemma import PaliGemma
from vlm.weights import INDEX, WEIGHTS, read_json


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    check: Callable[[Path], Any] | None = None,
) -> Path:
    """The folder of a checkpoint: `source` itself, or the local copy of a Hub name.

    Args:
        check: raises ValueError where a folder's config.json is of no use, before its
            weights are fetched. None: where it is no PaliGemma's.
    Raises:
        ValueError: nothing usable is there; the text says what to do.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = download(
            str(source),
            revision=revision,
            token=token,
            progress=progress,
            check=check or read_config,
        )
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
    raw = read_json(folder / "config.json")
    if "quantization_config" in raw:
        raise ValueError(
            f"the weights in {folder} are quantized; load the checkpoint that they "
            "were made from"
        )
    config = PaliGemmaConfig.from_hf(raw)
    if not (generation := folder / "generation_config.json").is_file():
        return config
    more = read_json(generation).get("eos_token_id") or []
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
    post_norms = config.decoder.post_norms
    stored = weights.open_weights(folder, hub.rows(post_norms=post_norms))
    head, embedding = stored.get(HEAD), stored.get(EMBEDDING)
    # A mere copy of the embedding is dropped. A head that differs is a head of its own,
    # whatever the config says: transformers decides the same way.
    if head and embedding and config.decoder.tied_head and head.same(embedding):
        del stored[HEAD]
    tied = HEAD not in stored
    config = replace(config, decoder=replace(config.decoder, tied_head=tied))
    with torch.device("meta"), weights.Undrawn():
        model = PaliGemma(config).requires_grad_(False)  # ZeroGPU forgets it later
    back = hub.rows(post_norms=post_norms, back=True)
    weights.check(stored, named(model), folder, back=back)

    home = weights.choose_device(device)
    dtype = weights.choose_dtype(dtype, stored, home)
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
    model.eval()
    if len(places) > 1:
        from accelerate import dispatch_model

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
    # Only here: it takes half a second to import, and one device needs none of it.
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_max_memory

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
        ValueError: parts of the model are offloaded and cannot be copied, or int8.
    """
    back = hub.rows(post_norms=model.config.decoder.post_norms, back=True)
    tensors = {rename(name, back): tensor for name, tensor in named(model).items()}
    weights.write(folder, tensors, config_json(model.config), dtype)


def named(model: PaliGemma) -> dict[str, Tensor]:
    """The model's tensors, a tied head left out."""
    state = model.state_dict()
    if model.config.decoder.tied_head:
        del state[HEAD]
    return state
