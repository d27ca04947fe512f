"""Small random checkpoints that transformers writes and runs: what to be equal to.

The weights are large enough that a mistake changes the next token, and between them
the cases have every constant of a config off its default once. `token_type_ids` is
always given (0 for image and prompt, 1 for the answer): transformers sees a causal
prefix without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vlm import checkpoint
from vlm.config import EncoderConfig, GemmaConfig, PaliGemmaConfig, VisionConfig
from vlm.paligemma import PaliGemma

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY, IMAGE, BOS = 96, 90, 2

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
    "vision_use_head": False,
}
# Differences to the above: (text, vision, top level).
CASES: dict[str, tuple[dict, dict, dict]] = {
    # Multi-query, and heads wider than width / heads.
    "gemma": (
        {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16},
        {},
        {},
    ),
    # Multi-head, biases, an untied head; every constant is unusual.
    "gemma_odd": (
        {
            "model_type": "gemma",
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 3e-2,
            "rope_theta": 50.0,
            "max_position_embeddings": 512,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        {
            "num_channels": 2,
            "image_size": 23,
            "patch_size": 5,
            "layer_norm_eps": 3e-2,
            "hidden_act": "gelu",
        },
        {"tie_word_embeddings": False, "pad_token_id": 4, "bos_token_id": 5},
    ),
    # Grouped queries, caps that bite, a window shorter than the answer.
    "gemma2": (
        {
            "model_type": "gemma2",
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 1,
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 0.8,
            "sliding_window": 6,
        },
        {},
        {},
    ),
    # Layers that say themselves which of them are windowed; no caps.
    "gemma2_odd": (
        {
            "model_type": "gemma2",
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 3,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
            ],
            "rms_norm_eps": 1e-2,
            "rope_theta": 300.0,
            "tie_word_embeddings": False,
        },
        {},
        {"tie_word_embeddings": False},
    ),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint on disk, read by transformers and by us."""

    folder: Path
    oracle: transformers.PaliGemmaForConditionalGeneration
    model: PaliGemma


def case(name: str, folder: Path) -> Case:
    write(folder, random_model(name))
    return Case(folder, read(folder), load(folder))


def random_model(
    name: str,
    seed: int = 3,
    *,
    vocabulary: int = VOCABULARY,
    image: int = IMAGE,
    strength: float = 1.7,
) -> transformers.PaliGemmaForConditionalGeneration:
    text, vision, top = CASES[name]
    config = transformers.PaliGemmaConfig(
        text_config={**TEXT, **text, "vocab_size": vocabulary},
        vision_config={"model_type": "siglip_vision_model", **VISION, **vision},
        projection_dim=TEXT["hidden_size"],
        image_token_index=image,
        **{"bos_token_id": BOS, "eos_token_id": 1, "pad_token_id": 0, **top},
    )
    return filled(config, seed, strength=strength)


def filled(
    config: transformers.PaliGemmaConfig, seed: int = 3, *, strength: float = 1.7
) -> transformers.PaliGemmaForConditionalGeneration:
    """A model of random weights."""
    model = transformers.PaliGemmaForConditionalGeneration(config)
    dice = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=dice)
        if "embed_tokens" in key or "lm_head" in key:
            noise *= 0.1
        elif weight.dim() > 1:
            noise *= strength / weight[0].numel() ** 0.5
        else:
            noise = 0.3 * noise + float("layer_norm" in key and "weight" in key)
        weight.data.copy_(noise)
    # transformers cannot go on behind a generated <image>.
    model.lm_head.weight.data[config.image_token_index] = 0
    return model


def write(folder: Path, model: torch.nn.Module, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def read(
    folder: Path, attention: str | dict[str, str] = "eager"
) -> transformers.PaliGemmaForConditionalGeneration:
    """As transformers reads it; a wrong key is an error here too."""
    model, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder,
        attn_implementation=attention,
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(report.values()), report
    return model.eval()


def load(folder: Path, **how: Any) -> PaliGemma:
    folder = checkpoint.find(folder)
    how = {"device": "cpu", **how}
    return checkpoint.load_model(folder, checkpoint.read_config(folder), **how)


@dataclass(frozen=True)
class Batch:
    """Questions in transformers' terms, and the same in ours."""

    ids: Tensor  # [B, T]
    pixels: Tensor  # [B * images, C, R, R]
    types: Tensor  # [B, T], 1 for the answer
    seen: Tensor  # [B, T], 0 for padding

    def theirs(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids,
            "pixel_values": self.pixels,
            "token_type_ids": self.types,
            "attention_mask": self.seen,
        }

    def ours(self) -> dict[str, Tensor]:
        return {"prefix": self.types == 0, "valid": self.seen.bool()}

    def features(self, model: PaliGemma) -> Tensor:
        features = model.look(self.pixels.to(model.projector.weight.dtype))
        return features.reshape(len(self.ids), -1, features.shape[-1])


def batch(
    model: PaliGemma,
    *,
    prompts: tuple[int, ...] = (5,),
    answer: int = 0,
    images: int = 1,
    seed: int = 0,
) -> Batch:
    """Random questions, one for each prompt length, padded on the left."""
    dice = torch.Generator().manual_seed(seed)
    config = model.config
    places = images * config.vision.patches
    length = places + max(prompts) + answer
    ids, seen = [], []
    for prompt in prompts:
        padding = max(prompts) - prompt
        words = torch.randint(6, IMAGE, (prompt - 1 + answer,), generator=dice)
        row = [config.pad] * padding + [IMAGE] * places + [config.bos, *words.tolist()]
        ids.append(row)
        seen.append([0] * padding + [1] * (length - padding))
    types = torch.zeros(len(prompts), length, dtype=torch.long)
    types[:, length - answer :] = 1
    size, channels = config.vision.image_size, config.vision.channels
    shape = (len(prompts) * images, channels, size, size)
    pixels = torch.rand(shape, generator=dice) * 2 - 1
    return Batch(torch.tensor(ids), pixels, types, torch.tensor(seen))


def as_transformers_reads(raw: dict[str, Any]) -> PaliGemmaConfig:
    """Our config from what transformers makes of a config.json."""
    raw = {k: v for k, v in json.loads(json.dumps(raw)).items() if k != "model_type"}
    hf = transformers.PaliGemmaConfig(**raw)
    text, vision = hf.text_config, hf.vision_config
    second = text.model_type == "gemma2"
    windows = tuple(
        text.sliding_window if second and kind == "sliding_attention" else None
        for kind in getattr(text, "layer_types", [""] * text.num_hidden_layers)
    )
    scalar = text.query_pre_attn_scalar if second else text.head_dim
    eos = text.eos_token_id
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            channels=vision.num_channels,
            encoder=EncoderConfig(
                width=vision.hidden_size,
                depth=vision.num_hidden_layers,
                heads=vision.num_attention_heads,
                mlp_width=vision.intermediate_size,
                eps=vision.layer_norm_eps,
                activation=vision.hidden_act,
            ),
        ),
        decoder=GemmaConfig(
            vocabulary=text.vocab_size,
            width=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_size=text.head_dim,
            mlp_width=text.intermediate_size,
            eps=text.rms_norm_eps,
            rope_base=text.rope_parameters["rope_theta"],
            query_scale=scalar**-0.5,
            attention_softcap=text.attn_logit_softcapping if second else None,
            final_softcap=text.final_logit_softcapping if second else None,
            post_norms=second,
            attention_bias=text.attention_bias,
            tied_head=hf.tie_word_embeddings,
            windows=windows,
            positions=text.max_position_embeddings,
        ),
        image_token=hf.image_token_index,
        bos=getattr(hf, "bos_token_id", None) or text.bos_token_id,
        eos=tuple(eos) if isinstance(eos, list) else (eos,),
        pad=text.pad_token_id,
    )
