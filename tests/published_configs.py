"""config.json of Google's checkpoints as published, at full size."""

from __future__ import annotations


def published(name: str, size: int) -> dict:
    return paligemma(size) if name == "paligemma-3b" else paligemma2(name, size)


PAST = {"torch_dtype": "float32", "transformers_version": "4.41.0.dev0"}
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


def paligemma(size: int) -> dict:
    """As published: what is default is left out, 224 pixels too."""
    tokens = (size // 14) ** 2
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "hidden_size": 2048,
        "ignore_index": -100,
        "image_token_index": 257152,
        "model_type": "paligemma",
        "projection_dim": 2048,
        "_vocab_size": 257152,
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "model_type": "gemma",
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_image_tokens": tokens,
            "num_key_value_heads": 1,
            "vocab_size": 257216,
        },
        "vision_config": {
            **VISION,
            "num_image_tokens": tokens,
            "projection_dim": 2048,
            "projector_hidden_act": "gelu_fast",
            **({} if size == 224 else {"image_size": size}),
        },
        **PAST,
    }


SECOND = {
    "paligemma2-3b": (2304, 26, 9216, 8, 4, 256, 256),
    "paligemma2-10b": (3584, 42, 14336, 16, 8, 256, 256),
    "paligemma2-28b": (4608, 46, 36864, 32, 16, 128, 144),
}


def paligemma2(name: str, size: int) -> dict:
    width, depth, mlp, heads, kv_heads, head_size, scalar = SECOND[name]
    first = paligemma(size)
    return {
        **first,
        "projection_dim": width,
        "num_hidden_layers": depth,
        "text_config": {
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],
            "bos_token_id": 2,
            "final_logit_softcapping": 30.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": width,
            "intermediate_size": mlp,
            "model_type": "gemma2",
            "num_attention_heads": heads,
            "num_hidden_layers": depth,
            "num_image_tokens": (size // 14) ** 2,
            "num_key_value_heads": kv_heads,
            "query_pre_attn_scalar": scalar,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "vocab_size": 257216,
            **({} if head_size == 256 else {"head_dim": head_size}),
        },
        "vision_config": {**first["vision_config"], "projection_dim": width},
    }
