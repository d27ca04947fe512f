"""Checkpoints of a SigLIP or CLIP pair: read, and a SigLIP saved; strict.

They have the layout of transformers' SiglipModel and CLIPModel. A SigLIP's folder may
leave its image tower to a PaliGemma that lies near it, so that it is stored once:
config.json says where, as in `"image_tower": "../tiny"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm import checkpoint, hub, weights
from vlm.hub import encoder_json, encoder_rows, rename, vision_json, vision_rows
from vlm.pair_config import PairConfig
from vlm.siglip import PairModel
from vlm.weights import Stored, read_json

TOWER = "image_tower"  # the one key of config.json that transformers does not know


def read_config(folder: Path) -> PairConfig:
    """What config.json says.

    Raises:
        ValueError: it is no SigLIP and no CLIP that can be built here.
    """
    return PairConfig.from_hf(read_json(folder / "config.json"))


def tower_folder(folder: Path) -> Path | None:
    """The PaliGemma that the pair takes its image tower from; None if it has its own.

    Raises:
        ValueError: there is none where config.json says.
    """
    if (place := read_json(folder / "config.json").get(TOWER)) is None:
        return None
    if not (folder / place).is_dir():
        raise ValueError(
            f"config.json in {folder} says that its image tower is in {place!r}, but "
            f"{folder / place} is no folder; put that PaliGemma checkpoint there"
        )
    return checkpoint.find(folder / place)


def load_model(
    folder: Path,
    config: PairConfig,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> PairModel:
    """The pair with the folder's weights: frozen, in evaluation mode.

    Args:
        device: "auto" is the GPU if there is one.
        dtype: "auto" is the files' own, but float32 for a small model on a CPU.

    Raises:
        ValueError: files, config, image tower and device do not go together.
    """
    with torch.device("meta"), weights.Undrawn():
        model = PairModel(config).requires_grad_(False)  # ZeroGPU forgets it later
    wanted = model.state_dict()
    table = SIGLIP if config.biased else CLIP
    stored = weights.open_weights(folder, hub.patterns(table))
    seeing = {}
    if (place := tower_folder(folder)) is not None:
        seeing = _open_tower(
            place, config, {k: wanted.pop(k) for k in _of_tower(model)}
        )
    weights.check(stored, wanted, folder, back=hub.patterns(table, back=True))
    stored |= seeing

    home = weights.choose_device(device)
    dtype = weights.choose_dtype(dtype, stored, home)
    state = {name: part.read().to(home).to(dtype) for name, part in stored.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save(
    model: PairModel,
    folder: str | Path,
    *,
    image_tower: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights and config.json as transformers' SiglipModel has them.

    Args:
        image_tower: the folder of the PaliGemma that has the image tower, as seen from
            `folder`; it is not written then. None: it is.
    Raises:
        ValueError: the pair is no SigLIP.
    """
    state, raw = siglip_state(model), config_json(model.config)
    if image_tower is not None:
        raw = {TOWER: image_tower, **raw}
        for name in _of_tower(model):
            del state[rename(name, BACK)]
    weights.write(folder, state, raw, dtype)


def siglip_state(model: PairModel) -> dict[str, Tensor]:
    """All tensors, image tower included, under the names that transformers has."""
    return {rename(name, BACK): part for name, part in model.state_dict().items()}


def config_json(config: PairConfig) -> dict[str, Any]:
    """The inverse of `PairConfig.from_hf`, for a SigLIP."""
    if not config.biased:
        raise ValueError("a CLIP is loaded here, but not saved")
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": config.text.vocabulary,
            "max_position_embeddings": config.text.length,
            "projection_size": config.text.projection,
            **encoder_json(config.text.encoder),
            # The vocabulary's file tells; what transformers would fill in is CLIP's.
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        },
        "vision_config": vision_json(config.vision),
    }


# Theirs on the left, ours on the right; a name matches exactly one row.
TOWERS = {
    **vision_rows("vision_model."),
    "text_model.embeddings.token_embedding.weight": "text.embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positions.weight",
    **encoder_rows("text_model.", "text.encoder.", norm="final_layer_norm"),
    "logit_scale": "logit_scale",
}
SIGLIP = {
    **TOWERS,
    "vision_model.head.probe": "pool.probe",
    "vision_model.head.attention.in_proj_{part}": "pool.qkv.{part}",
    "vision_model.head.attention.out_proj.{part}": "pool.out.{part}",
    "vision_model.head.layernorm.{part}": "pool.norm.{part}",
    "vision_model.head.mlp.fc1.{part}": "pool.mlp.up.{part}",
    "vision_model.head.mlp.fc2.{part}": "pool.mlp.down.{part}",
    "text_model.head.{part}": "text.head.{part}",
    "logit_bias": "logit_bias",
}
CLIP = {
    **TOWERS,
    "vision_model.embeddings.class_embedding": "vision.class_token",
    # Misspelt in all files.
    "vision_model.pre_layrnorm.{part}": "vision.front_norm.{part}",
    "visual_projection.weight": "pool.out.weight",
    "text_projection.weight": "text.head.weight",
}
BACK = hub.patterns(SIGLIP, back=True)


def _of_tower(model: PairModel) -> list[str]:
    return [f"vision.{name}" for name in model.vision.state_dict()]


def _open_tower(
    folder: Path, config: PairConfig, wanted: dict[str, Tensor]
) -> dict[str, Stored]:
    """The image tower of a PaliGemma, whatever else that has left out."""
    host = checkpoint.read_config(folder)
    if host.vision != config.vision:
        raise ValueError(
            f"the pair wants an image tower {config.vision}, {folder} has {host.vision}"
        )
    rows, back = (
        hub.rows(post_norms=host.decoder.post_norms, back=back)
        for back in (False, True)
    )
    stored = {
        name: part
        for name, part in weights.open_weights(folder, rows).items()
        if hub.unify(part.key).startswith("vision_tower.")
    }
    weights.check(stored, wanted, folder, back=back)
    return stored
