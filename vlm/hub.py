"""The Hub's side of a checkpoint: its tensor names, its config.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vlm.config import EncoderConfig, GemmaConfig, PaliGemmaConfig, VisionConfig

Progress = Callable[[str], None]  # told in words what is being done
VOCABULARIES = ("tokenizer.model", "spiece.model")  # Gemma's, the first SigLIP's
BYTE_PAIRS = ("tokenizer.json", "vocab.json", "merges.txt")  # CLIP's, in one or in two
FRAMING, GENERATION = "preprocessor_config.json", "generation_config.json"


def rename(name: str, rows: dict[str, str]) -> str | None:
    """The name on the other side of the only row that matches, if there is one."""
    for pattern, template in rows.items():
        if found := re.fullmatch(pattern, name):
            return template.format(**found.groupdict())
    return None


def rows(*, post_norms: bool, back: bool = False) -> dict[str, str]:
    """Patterns to templates, from PaliGemma's names on the Hub to ours or back."""
    return patterns(ROWS | (NORMS_WITH_POST if post_norms else NORMS), back=back)


def patterns(table: dict[str, str], *, back: bool = False) -> dict[str, str]:
    """Patterns to templates, from the left of a table to its right or back."""
    if back:
        table = {ours: theirs for theirs, ours in table.items()}

    def group(found: re.Match) -> str:
        return f"(?P<{found[1]}>{WORDS[found[1]]})"

    return {re.sub(r"\\{(\w+)\\}", group, re.escape(k)): v for k, v in table.items()}


def unify(name: str) -> str:
    """The same tensor's name in the oldest of the four layouts that files have."""
    for pattern, text in LAYOUTS:
        name = re.sub("^" + pattern, text, name)
    return name


LAYOUTS = (
    (r"model\.(?=language_model|vision_tower|multi_modal)", ""),
    (r"language_model\.(?!model\.|lm_head)", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)


def beside(raw: dict[str, Any]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """What is read of a folder with such a config.json, beside that and the weights.

    The files of a vocabulary, in sets any of which is enough; and those that are read
    where they are there.
    """
    if raw.get("model_type") == "clip":
        return [BYTE_PAIRS[:1], BYTE_PAIRS[1:]], (FRAMING,)
    return [(name,) for name in VOCABULARIES], (GENERATION,)


def encoder_rows(theirs: str, ours: str, *, norm: str) -> dict[str, str]:
    """The rows of a SigLIP encoder, whose last norm has another name in each tower."""
    layer, block = theirs + "encoder.layers.{n}.", ours + "blocks.{n}."
    return {
        layer + "layer_norm1.{part}": block + "attention_norm.{part}",
        layer + "self_attn.{qkv}_proj.{part}": block + "attention.{qkv}.{part}",
        layer + "self_attn.out_proj.{part}": block + "attention.out.{part}",
        layer + "layer_norm2.{part}": block + "mlp_norm.{part}",
        layer + "mlp.fc1.{part}": block + "mlp.up.{part}",
        layer + "mlp.fc2.{part}": block + "mlp.down.{part}",
        theirs + norm + ".{part}": ours + "norm.{part}",
    }


def vision_rows(theirs: str) -> dict[str, str]:
    """The rows of the vision tower."""
    return {
        theirs + "embeddings.patch_embedding.{part}": "vision.patches.{part}",
        theirs + "embeddings.position_embedding.weight": "vision.positions.weight",
        **encoder_rows(theirs, "vision.encoder.", norm="post_layernorm"),
    }


LAYER, BLOCK = "language_model.model.layers.{n}.", "decoder.blocks.{n}."
EMBEDDING, HEAD = "decoder.embedding.weight", "decoder.head.weight"
WORDS = {"n": r"\d+", "qkv": "[qkv]", "gate": "gate|up|down", "part": "weight|bias"}

# Theirs on the left, ours on the right; a name matches exactly one row.
ROWS = {
    "language_model.model.embed_tokens.weight": EMBEDDING,
    LAYER + "input_layernorm.weight": BLOCK + "attention_norm.scale",
    LAYER + "self_attn.{qkv}_proj.{part}": BLOCK + "attention.{qkv}.{part}",
    LAYER + "self_attn.o_proj.{part}": BLOCK + "attention.out.{part}",
    LAYER + "mlp.{gate}_proj.weight": BLOCK + "mlp.{gate}.weight",
    "language_model.model.norm.weight": "decoder.norm.scale",
    "language_model.lm_head.weight": HEAD,
    "multi_modal_projector.linear.{part}": "projector.{part}",
    **vision_rows("vision_tower.vision_model."),
}
# `post_attention_layernorm` is a trap: it stands before the MLP, unless there are norms
# behind the branches, and then it is one of those.
NORMS = {LAYER + "post_attention_layernorm.weight": BLOCK + "mlp_norm.scale"}
NORMS_WITH_POST = {
    LAYER + "post_attention_layernorm.weight": BLOCK + "attention_post_norm.scale",
    LAYER + "pre_feedforward_layernorm.weight": BLOCK + "mlp_norm.scale",
    LAYER + "post_feedforward_layernorm.weight": BLOCK + "mlp_post_norm.scale",
}


def config_json(config: PaliGemmaConfig) -> dict[str, Any]:
    """The inverse of `PaliGemmaConfig.from_hf`, in the spelling of published files.

    Raises:
        ValueError: neither generation of Gemma has these features together.
    """
    decoder, vision = config.decoder, config.vision
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos)
    ids = {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad}
    said = {"tasks": list(config.tasks), "note": config.note}
    return {
        **{key: value for key, value in said.items() if value},
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        **ids,
        "image_token_index": config.image_token,
        "hidden_size": decoder.width,
        "projection_dim": decoder.width,
        "vocab_size": decoder.vocabulary,
        "tie_word_embeddings": decoder.tied_head,
        "text_config": {
            **_text_json(decoder),
            **ids,
            "num_image_tokens": vision.patches,
        },
        "vision_config": {
            **vision_json(vision),
            "projection_dim": decoder.width,
            "vision_use_head": False,
        },
    }


def vision_json(config: VisionConfig) -> dict[str, Any]:
    """The inverse of `VisionConfig.from_hf`."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        **encoder_json(config.encoder),
    }


def encoder_json(config: EncoderConfig) -> dict[str, Any]:
    """The inverse of `EncoderConfig.from_hf`."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "hidden_act": config.activation,
    }


def _text_json(config: GemmaConfig) -> dict[str, Any]:
    text = {
        "model_type": "gemma2" if config.post_norms else "gemma",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.positions,
    }
    if config.post_norms:
        kinds = ("full_attention", "sliding_attention")
        text |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": round(config.query_scale**-2),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.final_softcap,
            "sliding_window": next(filter(None, config.windows), 4096),
            "layer_types": [kinds[window is not None] for window in config.windows],
        }
    if GemmaConfig.from_hf(text, tied_head=config.tied_head) != config:
        raise ValueError(f"no Gemma on the Hub has these features together: {config}")
    return text
