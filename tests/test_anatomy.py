"""What the anatomy tells, against the files, the ids and the attention themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Pair, picture
from safetensors import safe_open
from torch import Tensor

import vlm
from vlm.tap import Tap, Weights

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
# The names of the tensors in a published file, by the part that they belong to.
PUBLISHED = {
    "vision tower": "vision_tower.",
    "projector": "multi_modal_projector.",
    "embedding": "language_model.model.embed_tokens.",
    "decoder": "language_model.model.",
}


@pytest.fixture(scope="module")
def tiny() -> vlm.Engine:
    return vlm.load(TINY, device="cpu")


def test_each_part_has_the_parameters_that_the_file_holds_of_it(tiny):
    with safe_open(TINY / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118 - no mapping
    left = dict(sizes)
    for part in vlm.anatomy.parts(tiny)[:-1]:
        begin = PUBLISHED[part.name]
        own = [left.pop(name) for name in sizes if name in left and begin in name]
        assert part.parameters == sum(own) > 0, part.name
        assert part.bytes == 4 * part.parameters  # float32 on a CPU
        assert (part.dtypes, part.devices) == (("float32",), ("cpu",))
    assert left == {}


def test_the_mask_autoencoder_is_counted_beside_the_model(tiny):
    *model, masks = vlm.anatomy.parts(tiny)
    assert masks.name == "mask autoencoder"
    with safe_open(TINY / "masks.safetensors", "pt") as file:
        assert masks.parameters == sum(
            file.get_tensor(name).numel()
            for name in file.keys()  # noqa: SIM118 - no mapping
        )
    counted = sum(part.parameters for part in model)
    assert counted == tiny.describe()["parameters"]


def test_a_head_of_its_own_is_a_part_and_a_tied_one_is_not(any_case):
    decoder = any_case.model.config.decoder
    engine = vlm.Engine(any_case.model, tokenizer=None)
    found = {part.name: part.parameters for part in vlm.anatomy.parts(engine)}
    words = decoder.vocabulary * decoder.width
    assert found.pop("head", None) == (None if decoder.tied_head else words)
    assert found["embedding"] == words
    assert set(found) == {"vision tower", "projector", "embedding", "decoder"}


def test_parts_of_a_spread_model_lie_where_its_map_says():
    engine = vlm.load(TINY, device="cpu")
    # As accelerate leaves it: what waits on the CPU has no data between its uses.
    engine.model.decoder.blocks[3].to("meta")
    engine.model.hf_device_map = {
        "vision": 0,
        "projector": 0,
        "decoder.embedding": 0,
        **{f"decoder.blocks.{layer}": layer // 2 for layer in range(3)},
        "decoder.blocks.3": "cpu",
        "decoder.norm": 1,
    }
    places = {part.name: part.devices for part in vlm.anatomy.parts(engine)}
    assert places["vision tower"] == ("cuda:0",)
    assert places["decoder"] == ("cuda:0", "cuda:1", "cpu")
    assert places["mask autoencoder"] == ("cpu",)


@pytest.mark.parametrize("answer", ["", "<loc0344><loc0136>", " two cats"])
@pytest.mark.parametrize("images", [1, 2])
def test_the_sequence_is_what_the_engine_feeds_its_decoder(tiny, answer, images):
    class Ids(Tap):
        length = 0

        def attention(self, tower: str, layer: int, weights: Weights) -> None:
            self.length = weights(slice(-1, None)).shape[-1]

    tokens = vlm.anatomy.sequence(tiny, "detect cat", answer, images=images)
    prompt = tiny.tokenizer.prompt("detect cat", images, patches=64)
    ids = [token.id for token in tokens]
    assert ids == prompt + tiny.tokenizer.answer_ids(answer)
    tap = Ids()
    pictures = [picture(seed) for seed in range(images)]
    next(tiny.stream(pictures, "detect cat", answer=answer, tap=tap, stop=()))
    assert len(tokens) == tap.length
    assert [token.position for token in tokens] == list(range(len(tokens)))


def test_every_token_says_what_it_is(tiny):
    tokens = vlm.anatomy.sequence(tiny, "detect cat", "<loc0344> cat")
    assert {token.kind for token in tokens[:64]} == {"image"}
    assert [(token.piece, token.kind) for token in tokens[63:]] == [
        ("<image>", "image"),
        ("<bos>", "bos"),
        ("detect", "prompt"),
        (" cat", "prompt"),
        ("\n", "newline"),
        ("<loc0344>", "answer"),
        (" cat", "answer"),
    ]


class Looks(Tap):
    """The greatest weight over the heads, [T, S], of each of the decoder's layers."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        self.layers[layer] = weights(slice(None))[0].amax(0)


def seen(engine: vlm.Engine, answer: str) -> dict[int, np.ndarray]:
    """What each layer looked at in one pass, bool [T, S]."""
    looks = Looks()
    engine.logits(picture(), "detect cat", answer, tap=looks)
    return {layer: (most > 0).numpy() for layer, most in looks.layers.items()}


def test_the_mask_is_where_the_attention_is_not_zero(tiny):
    answer = "<loc0344><loc0136><loc0776><loc0408> cat"
    tokens = vlm.anatomy.sequence(tiny, "detect cat", answer)
    masks = vlm.anatomy.masks(tiny, tokens)
    assert list(masks) == [None]
    looked = list(seen(tiny, answer).values())
    # A sharp layer's weight may round to 0 where it is allowed, but not in all of them.
    assert np.array_equal(np.any(looked, axis=0), masks[None])
    assert not masks[None].all()


def test_a_layer_with_a_window_has_a_mask_of_its_own(pairs: dict[str, Pair]):
    engine = pairs["gemma2"].engine
    answer = "<loc0344><loc0136><loc0776><loc0408> cat ; <loc0344><loc0136>"
    tokens = vlm.anatomy.sequence(engine, "detect cat", answer)
    masks = vlm.anatomy.masks(engine, tokens)
    windows = engine.config.decoder.windows
    assert len(masks) == len(set(windows)) == 2
    looked = seen(engine, answer)
    for layer, window in enumerate(windows):
        assert np.array_equal(looked[layer], masks[window])
    plain, cut = (masks[window].sum() for window in sorted(masks, key=bool))
    assert cut < plain


def test_nothing_is_computed_with_the_weights(tiny):
    engine = vlm.load(TINY, device="cpu")
    engine.model.to("meta")
    assert vlm.anatomy.sequence(engine, "caption en") == vlm.anatomy.sequence(
        tiny, "caption en"
    )
    assert torch.device(vlm.anatomy.parts(engine)[0].devices[0]).type == "meta"
