"""Reading and writing checkpoints: what is accepted, what is refused, what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from oracle import (
    CASES,
    Case,
    as_transformers_reads,
    batch,
    load,
    random_model,
    read,
    write,
)
from safetensors.torch import load_file, save_file

from vlm import checkpoint
from vlm.cache import KVCache
from vlm.config import PaliGemmaConfig
from vlm.paligemma import PaliGemma

HEAD = "lm_head.weight"


# Layouts


def hub_names(name: str) -> str:
    if name == HEAD:
        return f"language_model.{HEAD}"
    name = name.replace("language_model.", "language_model.model.")
    return name.replace("vision_tower.", "vision_tower.vision_model.")


LAYOUTS: dict[str, Callable[[str], str]] = {
    "hub": hub_names,
    "hub, vision as today": lambda name: hub_names(name).replace("vision_model.", ""),
    "in memory": lambda name: name if name == HEAD else f"model.{name}",
    "in memory, vision_model": lambda name: (
        name
        if name == HEAD
        else f"model.{name}".replace("vision_tower.", "vision_tower.vision_model.")
    ),
    "stripped": lambda name: name,
}


def stripped(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that transformers wrote, under their shortest names."""
    tensors = load_file(folder / checkpoint.WEIGHTS)
    return {
        name.replace("model.model.", "model.").replace(
            f"language_model.{HEAD}", HEAD
        ): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_names_gives_the_same_model(
    any_case: Case, layout: str, tmp_path: Path
):
    name = LAYOUTS[layout]
    tensors = {name(key): tensor for key, tensor in stripped(any_case.folder).items()}
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)
    folder = rewritten(any_case, tmp_path, tensors)
    assert_same_model(load(folder), any_case.model)


def test_shards_give_the_same_model(any_case: Case, tmp_path: Path):
    folder = write(tmp_path, read(any_case.folder), max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_model(load(folder), any_case.model)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_files_equal_the_oracle(name: str, tmp_path: Path):
    for dtype in (torch.bfloat16, torch.float16):
        folder = write(tmp_path / str(dtype), random_model(name).to(dtype))
        model, oracle = load(folder), read(folder)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        asked = batch(model, answer=6)
        ours = logits(model, asked)
        theirs = oracle(**asked.theirs()).logits.detach()
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
        stored = load(folder, dtype=dtype)
        assert {p.dtype for p in stored.parameters()} == {dtype}
        rough = logits(stored, asked)
        torch.testing.assert_close(rough, theirs, atol=0.5, rtol=0)


# Heads


# Without a head in the files, top=False makes transformers invent a random one; the
# next test has what is done here.
@pytest.mark.parametrize(
    "head, top, text",
    [
        (head, top, text)
        for head in ("absent", "copy", "own")
        for top in (None, True, False)
        for text in (None, True, False)
        if not (head == "absent" and top is False)
    ],
)
def test_the_head_is_the_one_that_transformers_takes(
    cases: dict[str, Case],
    tmp_path: Path,
    head: str,
    top: bool | None,
    text: bool | None,
):
    tensors = stripped(cases["gemma"].folder)
    if head != "absent":
        embedding = tensors["language_model.embed_tokens.weight"]
        tensors[HEAD] = embedding.clone() if head == "copy" else embedding.flip(0)
    folder = rewritten(cases["gemma"], tmp_path, tensors, **tied(top, text))
    model, asked = load(folder), batch(cases["gemma"].model)
    said = top is not False and text is not False
    assert model.config.decoder.tied_head is (
        head == "absent" or (head == "copy" and said)
    )
    theirs = read(folder)(**asked.theirs()).logits
    torch.testing.assert_close(logits(model, asked), theirs, atol=5e-5, rtol=0)


def test_no_head_in_the_files_means_tied_whatever_the_config_says(
    cases: dict[str, Case], tmp_path: Path
):
    tensors = stripped(cases["gemma"].folder)
    folder = rewritten(cases["gemma"], tmp_path, tensors, **tied(False, False))
    model = load(folder)
    assert model.config.decoder.tied_head
    assert model.decoder.head.weight is model.decoder.embedding.weight
    assert_same_model(model, cases["gemma"].model)


# Refusals


def drop(name: str) -> Callable[[dict], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32):
    return lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)})


NORM = "language_model.layers.0.post_attention_layernorm.weight"
REFUSALS = {
    "missing": (drop("language_model.norm.weight"), ["missing", "model.norm.weight"]),
    "missing embedding": (
        drop("language_model.embed_tokens.weight"),
        ["missing", "embed_tokens"],
    ),
    "missing norm": (drop(NORM), ["missing", "post_attention_layernorm"]),
    "missing bias": (
        drop("vision_tower.post_layernorm.bias"),
        ["missing", "post_layernorm.bias"],
    ),
    "unknown": (put("language_model.extra.weight", 3), ["unknown", "extra.weight"]),
    "unknown layer": (
        put("language_model.layers.9.input_layernorm.weight", 32),
        ["unknown", "layers.9.input_layernorm"],
    ),
    "unknown bias": (
        put("language_model.layers.0.self_attn.q_proj.bias", 64),
        ["unknown", "q_proj.bias"],
    ),
    "misshaped": (
        put("multi_modal_projector.linear.weight", 32, 23),
        ["misshaped", "linear.weight [32, 23] instead of [32, 24]"],
    ),
    "resolution": (
        put("vision_tower.embeddings.position_embedding.weight", 25, 24),
        ["position_embedding.weight [25, 24] instead of [16, 24]"],
    ),
    "twice": (
        put("model.language_model.norm.weight", 32),
        ["language_model.norm.weight", "same tensor"],
    ),
    "integers": (
        put("language_model.norm.weight", 32, dtype=torch.int8),
        ["norm.weight", "I8", "bfloat16"],
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_faulty_weights_are_refused_by_name(
    cases: dict[str, Case], tmp_path: Path, fault: str
):
    spoil, words = REFUSALS[fault]
    tensors = stripped(cases["gemma"].folder)
    spoil(tensors)
    folder = rewritten(cases["gemma"], tmp_path, tensors)
    with pytest.raises(ValueError) as error:
        load(folder)
    assert all(word in str(error.value) for word in words), error.value


def test_the_norms_of_one_generation_are_refused_by_the_other(
    cases: dict[str, Case], tmp_path: Path
):
    folder = rewritten(cases["gemma"], tmp_path, stripped(cases["gemma2"].folder))
    with pytest.raises(ValueError, match="unknown: .*pre_feedforward_layernorm"):
        load(folder)


def test_a_missing_shard_is_named(any_case: Case, tmp_path: Path):
    folder = write(tmp_path, read(any_case.folder), max_shard_size="20KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"lacks {lost.name}"):
        load(folder)


@pytest.mark.parametrize("cut", [0, 5, 200, -100])
def test_damaged_weights_are_said_to_be_damaged(
    cases: dict[str, Case], tmp_path: Path, cut: int
):
    whole = (cases["gemma"].folder / checkpoint.WEIGHTS).read_bytes()
    folder = rewritten(cases["gemma"], tmp_path, {})
    (folder / checkpoint.WEIGHTS).write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load(folder)


def test_a_damaged_config_is_said_to_be_damaged(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        checkpoint.read_config(tmp_path)


def test_quantized_checkpoints_are_refused(cases: dict[str, Case], tmp_path: Path):
    folder = rewritten(cases["gemma"], tmp_path, {}, quantization_config={})
    with pytest.raises(
        ValueError, match="quantized; load the checkpoint that they were"
    ):
        checkpoint.read_config(folder)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"device": "cuda:99"}, "'cuda:99' is not here; choose from auto.*cpu"),
        ({"device": "gpu"}, "'gpu' is not here; choose from auto.*cpu"),
        ({"dtype": "int8"}, "'int8'.*float32, bfloat16 and float16"),
        ({"dtype": torch.float64}, "torch.float64.*float32, bfloat16 and float16"),
    ],
)
def test_what_is_not_to_be_had_is_answered_with_what_is(
    cases: dict[str, Case], how: dict, words: str
):
    with pytest.raises(ValueError, match=words):
        load(cases["gemma"].folder, **how)


# Dtypes and places


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float32])
def test_a_dtype_is_given_by_name_or_value(cases: dict[str, Case], dtype):
    model = load(cases["gemma"].folder, dtype=dtype)
    expected = getattr(torch, str(dtype).removeprefix("torch."))
    assert {p.dtype for p in model.parameters()} == {expected}


def test_a_loaded_model_is_frozen_and_evaluated(any_case: Case):
    assert not any_case.model.training
    assert not any(p.requires_grad for p in any_case.model.parameters())


@pytest.mark.parametrize("spread", ["dispatched", "offloaded"])
def test_a_model_under_hooks_equals_the_plain_one(any_case: Case, spread: str):
    """The hooks of a model that several devices share, on the one device there is."""
    model = load(any_case.folder)
    if spread == "offloaded":
        cpu_offload(model, execution_device="cpu")
        assert all(p.is_meta for p in model.decoder.blocks.parameters())
    else:
        parts = [name for name, _ in model.named_children() if name != "decoder"]
        parts += [f"decoder.{name}" for name, _ in model.decoder.named_children()]
        parts.remove("decoder.blocks")
        parts += [f"decoder.blocks.{i}" for i in range(model.config.decoder.depth)]
        dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    asked = batch(model, prompts=(5, 3), answer=6)
    expected = logits(any_case.model, asked)
    assert torch.equal(logits(model, asked), expected)
    cache = KVCache(model.config.decoder.depth, asked.ids.shape[1])
    assert torch.equal(logits(model, asked, cache=cache), expected)


def test_one_gpu_takes_all_if_it_can(any_case: Case):
    size = sum(p.nbytes for p in any_case.model.parameters())
    memory = {0: size // 2, 1: size, "cpu": size}
    assert checkpoint.place(any_case.model, torch.float32, memory) == {"": 1}
    memory = {0: size // 2, "cpu": size}
    assert checkpoint.place(any_case.model, torch.bfloat16, memory) == {"": 0}


def test_a_model_is_cut_between_blocks_and_the_cpu_takes_the_rest(any_case: Case):
    size = sum(p.nbytes for p in any_case.model.parameters())
    memory = {0: size // 2, 1: size // 2, "cpu": size}
    places = checkpoint.place(any_case.model, torch.float32, memory)
    assert {0, 1} <= set(places.values())
    for name in places:
        assert not re.search(r"blocks\.\d+\.", name), f"{name} is cut in two"
    if any_case.model.config.decoder.tied_head:
        ends = {where(part, places) for part in ("decoder.embedding", "decoder.head")}
        assert len(ends) == 1


def test_a_model_that_fits_nowhere_is_refused_with_the_sizes(any_case: Case):
    with pytest.raises(ValueError, match="GB of weights do not fit into 0 0.00 GB"):
        checkpoint.place(any_case.model, torch.float32, {0: 1000, "cpu": 1000})


# Writing


def test_a_saved_model_is_read_by_transformers_and_by_us(
    any_case: Case, tmp_path: Path
):
    checkpoint.save(any_case.model, tmp_path, dtype=torch.float32)
    assert_same_model(load(tmp_path), any_case.model)
    asked = batch(any_case.model, answer=6)
    theirs = read(tmp_path)(**asked.theirs()).logits
    torch.testing.assert_close(logits(any_case.model, asked), theirs, atol=5e-5, rtol=0)
    names = set(load_file(tmp_path / checkpoint.WEIGHTS))
    assert names == {hub_names(name) for name in stripped(any_case.folder)}


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(
    cases: dict[str, Case], tmp_path: Path
):
    checkpoint.save(cases["gemma2"].model, tmp_path)
    model = load(tmp_path, dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(model, tmp_path)
    for name, tensor in load(tmp_path, dtype="bfloat16").state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_config_survives_being_written_and_read(any_case: Case):
    config = any_case.model.config
    raw = json.loads(json.dumps(checkpoint.config_json(config)))
    assert PaliGemmaConfig.from_hf(raw) == config
    assert as_transformers_reads(raw) == config


def test_generation_config_adds_the_ids_that_end(
    cases: dict[str, Case], tmp_path: Path
):
    folder = rewritten(cases["gemma"], tmp_path, {})
    assert checkpoint.read_config(folder).eos == (1,)
    ending = folder / "generation_config.json"
    for ids, expected in (([1, 7], (1, 7)), (9, (1, 9)), (None, (1,))):
        ending.write_text(json.dumps({"eos_token_id": ids}))
        assert checkpoint.read_config(folder).eos == expected


# What the tests above are made of


def logits(model: PaliGemma, asked, **how) -> torch.Tensor:
    with torch.no_grad():
        return model(asked.ids, asked.features(model), **asked.ours(), **how)


def tied(top: bool | None, text: bool | None) -> dict:
    return {"tie_word_embeddings": top, "text": {"tie_word_embeddings": text}}


def rewritten(case: Case, folder: Path, tensors: dict, text: dict = {}, **top) -> Path:  # noqa: B006
    """The case's checkpoint with other tensors and other lines in its config.json."""
    raw = json.loads((case.folder / "config.json").read_text())
    for lines, changes in ((raw, top), (raw["text_config"], text)):
        for name, value in changes.items():
            lines.pop(name, None)
            lines |= {} if value is None else {name: value}
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / checkpoint.WEIGHTS, metadata={"format": "pt"})
    return folder


def where(part: str, places: dict) -> int | str:
    found = [name for name in places if f"{part}.".startswith(f"{name}.")]
    return places[found[0]]


def assert_same_model(ours: PaliGemma, expected: PaliGemma) -> None:
    assert ours.config == expected.config
    mine, theirs = ours.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
