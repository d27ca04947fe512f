"""Checkpoints of random weights, as large as real ones, in shards of bfloat16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm import checkpoint, hub
from vlm.config import EncoderConfig, GemmaConfig, PaliGemmaConfig, VisionConfig
from vlm.paligemma import PaliGemma

TOKENIZER = Path(__file__).parents[2] / "assets" / "tiny" / "tokenizer.model"
SHARD = 2 << 30  # bytes
STD = 0.02  # of the matrices
# Those that end a branch are smaller by the root of the number of branches (Radford et
# al., 2019, GPT-2). Otherwise each branch outshouts the stream that it is added to,
# and whatever is rounded grows from layer to layer, as in no model that was trained.
ENDS = ("attention.out.weight", "mlp.down.weight")


def write(folder: Path, size: str, px: int) -> None:
    """A PaliGemma of `size` ("small", "3b") for images of `px`, if not there yet."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = shape(size, px)
    shutil.copy(TOKENIZER, folder)
    places, number = {}, 0
    for number, shard in enumerate(shards(config)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    raw = {**hub.config_json(config), "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(
        json.dumps(raw, indent=2)
    )  # the last: all there


def shape(size: str, px: int) -> PaliGemmaConfig:
    """PaliGemma 1's dimensions, or a twelfth of them."""
    large = size == "3b"
    encoder = EncoderConfig(
        width=1152 if large else 576,
        depth=27 if large else 12,
        heads=16 if large else 8,
        mlp_width=4304 if large else 2152,
        eps=1e-6,
        activation="gelu_pytorch_tanh",
    )
    decoder = GemmaConfig(
        vocabulary=257216 if large else 64304,
        width=2048 if large else 1024,
        heads=8 if large else 4,
        kv_heads=1,
        head_size=256,
        mlp_width=16384 if large else 4096,
        eps=1e-6,
        rope_base=10000.0,
        query_scale=256**-0.5,
        attention_softcap=None,
        final_softcap=None,
        post_norms=False,
        attention_bias=False,
        tied_head=True,
        windows=(None,) * (18 if large else 8),
    )
    vision = VisionConfig(image_size=px, patch_size=14, channels=3, encoder=encoder)
    image = 256000 if large else 64000
    return PaliGemmaConfig(vision, decoder, image_token=image, bos=2, eos=(1,), pad=0)


def shards(config: PaliGemmaConfig) -> Iterator[dict[str, Tensor]]:
    """Random tensors under the Hub's names, some gigabytes at a time."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = PaliGemma(config)
    back = hub.rows(post_norms=False, back=True)
    shard: dict[str, Tensor] = {}
    for name, tensor in checkpoint.named(model).items():
        filled = torch.empty(tensor.shape, dtype=torch.bfloat16)
        if tensor.dim() > 1:
            tower = (
                config.vision.encoder if name.startswith("vision") else config.decoder
            )
            branches = 2 * tower.depth if name.endswith(ENDS) else 1
            filled.normal_(0, STD * branches**-0.5)
        else:  # a norm's factor is one, as is Gemma's distance from one nothing
            filled.fill_(float("norm" in name and name.endswith("weight")))
        shard[hub.rename(name, back)] = filled
        if sum(each.nbytes for each in shard.values()) > SHARD:
            yield shard
            shard = {}
    yield shard
