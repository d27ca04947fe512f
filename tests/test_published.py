"""What configs mean, and that published checkpoints fit, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

import pytest
import torch
from oracle import Case, as_transformers_reads, load

from vlm import checkpoint, hub
from vlm.config import PaliGemmaConfig
from vlm.paligemma import PaliGemma
from vlm.published import CHECKPOINTS

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


def published(name: str, size: int) -> dict:
    return paligemma(size) if name == "paligemma-3b" else paligemma2(name, size)


SPARSE = {
    "nothing": {},
    "an empty text": {"text_config": {}, "image_token_index": 257152},
    "gemma": {"text_config": {"model_type": "gemma"}},
    "gemma2": {"text_config": {"model_type": "gemma2", "num_hidden_layers": 5}},
    "siglip": {"vision_config": {"model_type": "siglip_vision_model"}},
    "untied": {"tie_word_embeddings": False},
    **{f"{name} {size}": published(name, size) for name in ("paligemma-3b", *SECOND)
       for size in (224, 448, 896)},
}  # fmt: skip


@pytest.mark.parametrize("name", SPARSE)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(name: str):
    raw = {"model_type": "paligemma", **SPARSE[name]}
    assert PaliGemmaConfig.from_hf(raw) == as_transformers_reads(raw)


def test_both_spellings_of_a_config_say_the_same(any_case: Case):
    raw = json.loads((any_case.folder / "config.json").read_text())
    assert "rope_theta" not in raw["text_config"]
    text = {**raw["text_config"]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["torch_dtype"] = text.pop("dtype", None)
    old = {**raw, "text_config": text}
    assert PaliGemmaConfig.from_hf(old) == PaliGemmaConfig.from_hf(raw)
    assert PaliGemmaConfig.from_hf(raw) == any_case.model.config


# The published sizes


PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_tensors.json").read_text()
)


def tensors_of(name: str, size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published checkpoint; `#` stands for each of so many layers."""
    tensors = {
        key.replace("#", str(layer)): tuple(shape)
        for key, (layers, shape) in PUBLISHED["tensors"][name].items()
        for layer in range(layers or 1)
    }
    places = "vision_tower.vision_model.embeddings.position_embedding.weight"
    return tensors | {places: ((size // 14) ** 2, 1152)}


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("name", PUBLISHED["tensors"])
def test_published_checkpoints_fit_tensor_by_tensor(name: str, size: int):
    config = PaliGemmaConfig.from_hf(published(name, size))
    with torch.device("meta"):
        model = PaliGemma(config)
    count, parameters = PUBLISHED["counts"][f"{name}-{size}"]
    assert sum(p.numel() for p in model.parameters()) == parameters

    tensors = tensors_of(name, size)
    rows = hub.rows(post_norms=config.decoder.post_norms)
    back = hub.rows(post_norms=config.decoder.post_norms, back=True)
    ours = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    del ours[hub.HEAD]
    assert len(tensors) == len(ours) == count
    assert {hub.rename(key, rows): shape for key, shape in tensors.items()} == ours
    for key in tensors:
        assert sum(bool(re.fullmatch(row, key)) for row in rows) == 1
        assert hub.rename(hub.rename(key, rows), back) == key


def test_a_full_size_checkpoint_is_loaded_without_reading_it(tmp_path: Path):
    """6 GB of zeros in shards that take no room on disk, and none in memory."""
    name, header, index, shard = "paligemma2-3b", {}, {}, 0
    for key, shape in tensors_of(name, 224).items():
        start = max((part["data_offsets"][1] for part in header.values()), default=0)
        if start > 2e9:
            write_zeros(tmp_path / f"{shard}.safetensors", header)
            header, shard, start = {}, shard + 1, 0
        span = [start, start + 2 * math.prod(shape)]
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": span}
        index[key] = f"{shard}.safetensors"
    write_zeros(tmp_path / f"{shard}.safetensors", header)
    (tmp_path / checkpoint.INDEX).write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(published(name, 224)))

    model = load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.eos == (1, 107)
    assert model.decoder.head.weight is model.decoder.embedding.weight


def write_zeros(path: Path, header: dict) -> None:
    text = json.dumps(header).encode()
    end = max(part["data_offsets"][1] for part in header.values())
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_no_checkpoint_is_named_twice_and_names_tell_the_resolution():
    names = [each.name for each in CHECKPOINTS]
    assert len(set(names)) == len(names) > 70
    for each in CHECKPOINTS:
        assert each.name.startswith("google/paligemma")
        assert each.name.endswith(f"-{each.resolution}")
        assert f"-{each.kind}-" in each.name
        assert each.does and each.prompts


@pytest.mark.parametrize("resolution", [224, 448, 896])
@pytest.mark.parametrize(
    "size", ["paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b"]
)
def test_sizes_are_those_of_the_model_that_the_config_builds(size, resolution):
    first = size == "paligemma-3b"
    raw = paligemma(resolution) if first else paligemma2(size, resolution)
    with torch.device("meta"):
        model = PaliGemma(PaliGemmaConfig.from_hf(raw))
    count = sum(math.prod(tensor.shape) for tensor in checkpoint.named(model).values())
    assert hub.EMBEDDING in checkpoint.named(model)
    (pretrained,) = (
        each for each in CHECKPOINTS if each.name == f"google/{size}-pt-{resolution}"
    )
    assert pretrained.parameters == count
    assert pretrained.bytes() == count * (4 if first else 2)
    if first:
        assert pretrained.bytes("bfloat16") == 2 * count
