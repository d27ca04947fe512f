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
from published_configs import SECOND, published

from vlm import checkpoint, hub
from vlm.config import PaliGemmaConfig
from vlm.paligemma import PaliGemma
from vlm.published import CHECKPOINTS
from vlm.weights import Undrawn

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


def mapped(config: PaliGemmaConfig) -> PaliGemma:
    """The model at full size, of which no number is in memory."""
    with torch.device("meta"), Undrawn():
        model = PaliGemma(config)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    return model


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("name", PUBLISHED["tensors"])
def test_published_checkpoints_fit_tensor_by_tensor(name: str, size: int):
    config = PaliGemmaConfig.from_hf(published(name, size))
    model = mapped(config)
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


SIZES = ("paligemma-3b", *SECOND)
RESOLUTIONS = (224, 448, 896)


def test_no_checkpoint_is_named_twice_and_names_tell_the_resolution():
    names = [each.name for each in CHECKPOINTS]
    assert len(set(names)) == len(names) > 70
    for each in CHECKPOINTS:
        assert each.name.startswith(tuple(f"google/{size}-" for size in SIZES))
        assert each.resolution in RESOLUTIONS
        assert each.name.endswith(f"-{each.resolution}")
        assert f"-{each.kind}-" in each.name
        assert each.does and each.prompts


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_each_entry_has_the_size_of_the_model_that_its_config_builds(size, resolution):
    model = mapped(PaliGemmaConfig.from_hf(published(size, resolution)))
    tensors = checkpoint.named(model)
    assert hub.EMBEDDING in tensors and hub.HEAD not in tensors
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    entries = [
        each
        for each in CHECKPOINTS
        if each.name.startswith(f"google/{size}-") and each.resolution == resolution
    ]
    assert f"google/{size}-pt-{resolution}" in [each.name for each in entries]
    for each in entries:
        assert each.parameters == count, each.name
        if size == "paligemma-3b":
            assert each.bytes() == 4 * count
            assert each.bytes("bfloat16") == each.bytes("float16") == 2 * count
        else:
            assert each.bytes() == 2 * count
