"""vlm.contrastive: the SigLIP pair and its files against transformers, the losses
against float64."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import sentencepiece
import torch
import transformers
from engines import PIECES, picture
from oracle import random_model, write
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)

import vlm
from vlm import hub, pair_checkpoint
from vlm.caption import Captions
from vlm.pair_config import PairConfig, TextConfig
from vlm.siglip import PairModel
from vlm.tap import Tap
from vlm.tiny.vocabulary import train_vocabulary
from vlm.weights import WEIGHTS

# PaliGemma's tower of the other tests, with the head that PaliGemma lacks.
VISION = {k: v for k, v in oracle.VISION.items() if k != "vision_use_head"}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 12,
}
# Differences to the above: (text, vision).
CASES: dict[str, tuple[dict, dict]] = {
    "plain": ({}, {}),
    # The text tower is another in all that it may be; every constant is unusual.
    "odd": (
        {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "max_position_embeddings": 7,
            "projection_size": 24,
            "layer_norm_eps": 3e-2,
            "hidden_act": "quick_gelu",
        },
        {
            "num_channels": 2,
            "image_size": 23,
            "patch_size": 5,
            "layer_norm_eps": 1e-2,
            "hidden_act": "gelu",
        },
    ),
    "narrow text": (
        {"hidden_size": 16, "num_attention_heads": 2, "projection_size": 24},
        {"num_attention_heads": 4},
    ),
}
CAPTIONS = ["A Red Cat!", "two dogs, and a House", "", "  Zürich  猫  "]
LONG = "one two three four five six seven eight nine ten eleven twelve"


# The model


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory) -> tuple[Path, transformers.SiglipModel]:
    folder = tmp_path_factory.mktemp("pair")
    text, vision = CASES[request.param]
    model = random_pair({**TEXT, **text}, {**VISION, **vision})
    return write(folder, model), model


def test_vectors_and_logits_equal_transformers(written) -> None:
    folder, oracle = written
    model, questions = load(folder), ask(oracle.config)
    with torch.no_grad():
        theirs = oracle(**questions)  # no attention mask: SigLIP reads the padding
    images = model.images(questions["pixel_values"])
    texts = model.texts(questions["input_ids"])
    close(images, theirs.image_embeds)
    close(texts, theirs.text_embeds)
    close(model.logits(images, texts), theirs.logits_per_image)
    assert theirs.logits_per_image.std() > 0.5, "too alike to tell a mistake"


def test_a_tap_sees_whom_the_pool_asked(written) -> None:
    folder, oracle = written
    seen = {}

    class Watch(Tap):
        def attention(self, tower, layer, weights) -> None:
            seen[tower, layer] = weights(slice(None))

    pixels = ask(oracle.config)["pixel_values"]
    load(folder).images(pixels, Watch())
    tower = oracle.vision_model
    with torch.no_grad():
        states = tower(pixels).last_hidden_state
        probe = tower.head.probe.expand(len(states), -1, -1)
        weights = tower.head.attention(
            probe, states, states, average_attn_weights=False
        )[1]
    close(seen["pool", 0], weights)
    assert set(seen) > {("vision", 0), ("pool", 0)}


def test_a_config_is_read_as_transformers_reads_it() -> None:
    hf = transformers.SiglipConfig()
    listed = {
        "model_type": "siglip",
        "text_config": hf.text_config.to_dict(),
        "vision_config": hf.vision_config.to_dict(),
    }
    assert PairConfig.from_hf({"model_type": "siglip"}) == PairConfig.from_hf(listed)
    with pytest.raises(ValueError, match="'bert'; this loads 'siglip' and 'clip'"):
        PairConfig.from_hf({"model_type": "bert"})
    with pytest.raises(ValueError, match=r"vectors of 64, images of 768"):
        text = {"projection_size": 64}
        PairConfig.from_hf({"model_type": "siglip", "text_config": text})


@pytest.mark.parametrize("length", [16, 64])
def test_published_text_lengths_equal_transformers(tmp_path: Path, length) -> None:
    """16 for so400m-patch14-224, 64 for the others."""
    text = {**TEXT, "max_position_embeddings": length, "vocab_size": PIECES + 400}
    text |= {"projection_size": 24}
    oracle = random_pair(text, VISION)
    write(tmp_path, oracle)
    train_vocabulary(tmp_path / "tokenizer.model")
    pair = vlm.load_pair(tmp_path, device="cpu")
    texts = [*CAPTIONS, LONG, LONG * 6]
    ids = theirs_of_gemma(tmp_path, length)(texts)
    assert ids.shape == (6, length)
    questions = {**ask(oracle.config), "input_ids": ids}
    with torch.no_grad():
        theirs = oracle(**questions)
    images = pair.model.images(questions["pixel_values"])
    close(pair.texts(texts), theirs.text_embeds)
    close(pair.model.logits(images, pair.texts(texts)), theirs.logits_per_image)


# Its files


def test_what_is_saved_is_what_transformers_reads(written, tmp_path: Path) -> None:
    folder, oracle = written
    pair_checkpoint.save(load(folder), tmp_path, dtype=torch.float32)
    again, report = transformers.SiglipModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    state = oracle.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(p, state[k]) for k, p in again.state_dict().items())
    assert pair_checkpoint.read_config(tmp_path) == pair_checkpoint.read_config(folder)


@pytest.fixture(params=["as transformers writes it", "as published"])
def beside(request, tmp_path: Path) -> Path:
    """A pair without an image tower, which is in the PaliGemma beside it."""
    return neighbours(tmp_path, published=request.param == "as published")


def test_the_image_tower_may_lie_in_a_paligemma(beside: Path) -> None:
    raw = json.loads((beside / "config.json").read_text())
    keys = load_file(beside / WEIGHTS).keys()
    assert not [key for key in keys if "encoder" in key and "vision" in key]
    pair = vlm.load_pair(beside, device="cpu")

    oracle = transformers.SiglipModel(transformers.SiglipConfig(**raw)).eval()
    oracle.load_state_dict(pair_checkpoint.siglip_state(pair.model), strict=True)
    host = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        beside.parent / "tiny", dtype=torch.float32
    )
    tower = host.model.vision_tower
    questions = ask(oracle.config)
    with torch.no_grad():
        theirs = oracle(**questions)
        states = tower(questions["pixel_values"]).last_hidden_state
        seen = oracle.vision_model(questions["pixel_values"]).last_hidden_state
    close(seen, states)
    images = pair.model.images(questions["pixel_values"])
    texts = pair.model.texts(questions["input_ids"])
    close(pair.model.logits(images, texts), theirs.logits_per_image)


def test_a_pair_scores_as_transformers_does(beside: Path) -> None:
    pair = vlm.load_pair(beside, device="cpu")
    raw = json.loads((beside / "config.json").read_text())
    oracle = transformers.SiglipModel(transformers.SiglipConfig(**raw)).eval()
    oracle.load_state_dict(pair_checkpoint.siglip_state(pair.model))
    pictures = [picture(seed, size) for seed, size in enumerate([(50, 34), (20, 60)])]
    look = SiglipImageProcessorPil(
        size={"height": 28, "width": 28},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.no_grad():
        logits = oracle(
            pixel_values=look(pictures, return_tensors="pt")["pixel_values"],
            input_ids=theirs_of_gemma(beside.parent / "tiny")(CAPTIONS),
        ).logits_per_image
    scores = pair.scores(pictures, CAPTIONS)
    assert scores.shape == (2, 4)
    assert scores.dtype == torch.float32
    close(scores, logits.sigmoid())
    close(pair.scores(pictures, CAPTIONS, loss="softmax"), logits.softmax(dim=1))
    # Each cell of the sigmoid is alone; under the softmax texts compete.
    close(pair.scores(pictures, CAPTIONS[:2]), scores[:, :2])
    few = pair.scores(pictures, CAPTIONS[:2], loss="softmax")
    close(few.sum(dim=1), torch.ones(2))


def test_many_images_and_texts_come_in_several_passes(tmp_path: Path) -> None:
    pair = vlm.load_pair(neighbours(tmp_path), device="cpu")
    texts = [f"{n} cats" for n in range(70)]
    whole = pair.scores([picture()] * 33, texts)
    assert whole.shape == (33, 70)
    close(whole[32:, 64:], pair.scores([picture()], texts[64:]))


def test_wrong_files_are_errors_that_name_what_is_wrong(tmp_path: Path) -> None:
    folder = neighbours(tmp_path)
    tensors, raw = load_file(folder / WEIGHTS), (folder / "config.json").read_text()

    def refuses(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            vlm.load_pair(folder, device="cpu")

    lost = {k: v for k, v in tensors.items() if k != "vision_model.head.probe"}
    save_file(lost, folder / WEIGHTS)
    refuses(r"missing: vision_model\.head\.probe$")
    save_file({**tensors, "text_model.extra": torch.ones(2)}, folder / WEIGHTS)
    refuses(r"unknown: text_model\.extra$")
    save_file({**tensors, "logit_bias": torch.ones(2)}, folder / WEIGHTS)
    refuses(r"misshaped: logit_bias \[2\] instead of \[1\]$")
    # A tower of its own beside the one that config.json names.
    tower = {"vision_model.post_layernorm.bias": torch.ones(24)}
    save_file({**tensors, **tower}, folder / WEIGHTS)
    refuses(r"unknown: vision_model\.post_layernorm\.bias$")
    save_file(tensors, folder / WEIGHTS)
    vlm.load_pair(folder, device="cpu")

    named = {**json.loads(raw), "image_tower": "../elsewhere"}
    (folder / "config.json").write_text(json.dumps(named))
    refuses(r"image tower is in '\.\./elsewhere', but .* is no folder")
    own = {k: v for k, v in named.items() if k != "image_tower"}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "tokenizer.model").write_bytes(
        (tmp_path / "tiny/tokenizer.model").read_bytes()
    )
    refuses(r"missing: vision_model\.embeddings\.patch_embedding")
    own["text_config"]["vocab_size"] = 9
    (folder / "config.json").write_text(json.dumps(own))
    refuses(r"has \d+ pieces, the text tower rows for 9")
    (folder / "tokenizer.model").write_text("version https://git-lfs")
    refuses(r"tokenizer\.model is no sentencepiece model")
    (folder / "tokenizer.model").unlink()
    refuses(r"no tokenizer\.model and no spiece\.model")


def test_a_paligemma_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    folder = neighbours(tmp_path)
    host = tmp_path / "tiny"

    raw = json.loads((host / "config.json").read_text())
    other = json.loads(json.dumps(raw))
    other["vision_config"]["num_attention_heads"] = 4  # no shape tells of this
    (host / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"heads=3.*heads=4"):
        vlm.load_pair(folder, device="cpu")
    (host / "config.json").write_text(json.dumps(raw))

    tensors = load_file(host / WEIGHTS)
    (lost,) = (key for key in tensors if key.endswith("post_layernorm.bias"))
    save_file({k: v for k, v in tensors.items() if k != lost}, host / WEIGHTS)
    with pytest.raises(ValueError, match=r"tiny.*missing: vision_tower.*norm\.bias$"):
        vlm.load_pair(folder, device="cpu")
    extra = {lost.replace("post_layernorm", "more"): torch.ones(24)}
    save_file({**tensors, **extra}, host / WEIGHTS)
    with pytest.raises(ValueError, match=r"unknown: .*vision_tower.*more\.bias$"):
        vlm.load_pair(folder, device="cpu")


def test_wrong_arguments_are_errors_that_say_so(tmp_path: Path) -> None:
    pair = vlm.load_pair(neighbours(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="'hinge' is unknown; known: sigmoid, softmax"):
        pair.scores([picture()], ["a cat"], loss="hinge")
    with pytest.raises(ValueError, match="list of texts, got 'a cat'"):
        pair.scores([picture()], "a cat")
    with pytest.raises(ValueError, match="list of images"):
        pair.scores(picture(), ["a cat"])
    with pytest.raises(ValueError, match=r"list of texts, got \[\]"):
        pair.scores([picture()], [])
    with pytest.raises(ValueError, match="PIL image"):
        pair.scores(["cat.jpg"], ["a cat"])


# Its words


def test_captions_have_the_ids_of_siglip_2(tmp_path: Path) -> None:
    train_vocabulary(tmp_path / "tokenizer.model")
    ours = Captions.load([tmp_path], text_config(length=12)).ids([*CAPTIONS, LONG])
    theirs = theirs_of_gemma(tmp_path)([*CAPTIONS, LONG])
    assert ours.tolist() == theirs.tolist()
    assert ours[0, -1] == 0, "padded"
    assert ours[-1, -1] == 1, "cut, and ended all the same"


def test_captions_have_the_ids_of_the_first_siglip(tmp_path: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CAPTIONS[:2], LONG, "photo of a cat"] * 20),
        model_writer=trained,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(trained.getvalue())
    oracle = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    # An empty text is left out: there transformers makes a word of its own prefix.
    texts = [text for text in CAPTIONS if text] + [LONG, "It's  a\tcat.", "cat"]
    theirs = oracle(texts, padding="max_length", max_length=12, truncation=True)
    ours = Captions.load([tmp_path], text_config(length=12)).ids(texts)
    assert ours.tolist() == theirs["input_ids"]
    assert ours[-1, -1] == 1


# The losses


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 6, 8, generator=dice)
    return F.normalize(images, dim=-1), F.normalize(images + texts, dim=-1)


def test_the_sigmoid_loss_is_the_papers(batch) -> None:
    images, texts = (part.double().numpy() for part in batch)
    scale, bias, total = 7.0, -3.0, 0.0
    for i, image in enumerate(images):
        for t, text in enumerate(texts):
            z = 1 if i == t else -1
            total += np.log1p(np.exp(-z * (scale * (image @ text) + bias)))
    loss = vlm.siglip_loss(*batch, scale=scale, bias=bias)
    np.testing.assert_allclose(loss.item(), total / len(images), rtol=1e-6)


def test_the_sigmoid_loss_is_that_of_transformers(written) -> None:
    folder, oracle = written
    model, questions = load(folder), ask(oracle.config, images=3)
    with torch.no_grad():
        theirs = oracle(**questions, return_loss=True).loss
    ours = vlm.siglip_loss(
        model.images(questions["pixel_values"]),
        model.texts(questions["input_ids"]),
        scale=model.logit_scale.exp(),
        bias=model.logit_bias,
    )
    close(ours, theirs)


def test_the_softmax_loss_is_the_papers(batch) -> None:
    images, texts = (part.double().numpy() for part in batch)
    e = np.exp(7.0 * images @ texts.T)
    own = np.diag(e)
    total = -np.log(own / e.sum(1)).mean() - np.log(own / e.sum(0)).mean()
    loss = vlm.clip_loss(*batch, scale=7.0)
    np.testing.assert_allclose(loss.item(), total / 2, rtol=1e-6)
    assert abs(np.log(e.sum(1)).mean() - np.log(e.sum(0)).mean()) > 1e-3


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_losses_and_gradients_are_finite_at_large_logits(batch, scale: float) -> None:
    for loss in (
        lambda *pair: vlm.siglip_loss(*pair, scale=scale, bias=-scale / 2),
        lambda *pair: vlm.clip_loss(*pair, scale=scale),
    ):
        images, texts = (part.clone().requires_grad_() for part in batch)
        value = loss(images, texts.flip(0))
        value.backward()
        assert value.isfinite()
        assert value > scale / 100, "wrong pairs cost as much as they are wrong"
        assert images.grad.isfinite().all()
        assert texts.grad.isfinite().all()


def test_the_sigmoid_loss_may_be_summed_in_parts_of_the_texts(batch) -> None:
    images, texts = batch
    total = torch.zeros(())
    for start in (0, 2, 4):
        logits = 7 * images @ texts[start : start + 2].T - 3
        signs = -torch.ones_like(logits)
        signs[start : start + 2] += 2 * torch.eye(2)
        total += F.softplus(-signs * logits).sum() / len(images)
    close(total, vlm.siglip_loss(images, texts, scale=7.0, bias=-3.0))


def test_the_softmax_loss_needs_the_whole_row(batch) -> None:
    """What a text costs changes with the texts beside it; under the sigmoid, a text
    that fits nothing adds its own cells and leaves the others as they were."""
    images, texts = batch
    whole = vlm.clip_loss(images, texts, scale=7.0)
    parts = [
        vlm.clip_loss(images[part], texts[part], scale=7.0)
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert whole > sum(parts) / 2 + 0.1
    cells = 7 * images @ texts.T - 3
    others = F.softplus(torch.cat((cells[:3, 3:], cells[3:, :3]))).sum() / 6
    parts = [
        vlm.siglip_loss(images[part], texts[part], scale=7.0, bias=-3.0)
        for part in (slice(0, 3), slice(3, 6))
    ]
    close(vlm.siglip_loss(images, texts, scale=7.0, bias=-3.0), sum(parts) / 2 + others)


def test_a_loss_refuses_what_is_no_pairs(batch) -> None:
    images, texts = batch
    for loss in (vlm.clip_loss, lambda *p, scale: vlm.siglip_loss(*p, scale=1, bias=0)):
        with pytest.raises(ValueError, match=r"\[6, 8\] and texts \[5, 8\]"):
            loss(images, texts[:5], scale=1.0)


# What is compared with


def random_pair(text: dict, vision: dict, seed: int = 5) -> transformers.SiglipModel:
    """Weights large enough that a mistake shows."""
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config).eval()
    dice = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=dice)
        if weight.dim() > 1 and "embedding" not in key and "probe" not in key:
            noise *= 1.7 / weight[0].numel() ** 0.5
        elif weight.dim() == 1:
            noise = 0.3 * noise + float("norm" in key and "weight" in key)
        weight.data.copy_(noise)
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-0.7)
    return model


def ask(config: transformers.SiglipConfig, images: int = 2) -> dict[str, Tensor]:
    """Random pixels for some images, ids for three texts, the last padded."""
    dice = torch.Generator().manual_seed(1)
    vision, text = config.vision_config, config.text_config
    size = vision.image_size
    pixels = torch.rand(images, vision.num_channels, size, size, generator=dice)
    length = text.max_position_embeddings
    ids = torch.randint(2, text.vocab_size, (3, length), generator=dice)
    ids[2, 3:] = 0
    return {"pixel_values": pixels * 2 - 1, "input_ids": ids}


def load(folder: Path) -> PairModel:
    config = pair_checkpoint.read_config(folder)
    return pair_checkpoint.load_model(folder, config, device="cpu")


def neighbours(root: Path, *, published: bool = False) -> Path:
    """A PaliGemma in root / "tiny", and a pair beside that looks with its tower."""
    host = random_model("gemma", vocabulary=PIECES + 400, image=PIECES + 399)
    write(root / "tiny", host)
    if published:
        tensors = load_file(root / "tiny" / WEIGHTS)
        tensors = {hub.unify(key): tensor for key, tensor in tensors.items()}
        save_file(tensors, root / "tiny" / WEIGHTS)
    train_vocabulary(root / "tiny" / "tokenizer.model")
    text = {**TEXT, "vocab_size": PIECES + 400, "hidden_size": 16, **PROJECTED}
    write(root / "whole", random_pair(text, VISION))
    model = load(root / "whole")
    # Its own tower must not be what is read.
    torch.nn.init.constant_(model.vision.patches.weight, 0)
    pair_checkpoint.save(
        model, root / "pair", image_tower="../tiny", dtype=torch.float32
    )
    return root / "pair"


PROJECTED = {"num_attention_heads": 2, "projection_size": 24}


def theirs_of_gemma(folder: Path, length: int = 12):
    """Texts to ids [T, length] as transformers has them for SigLIP 2."""
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(
        folder, padding_side="right", add_bos_token=False, add_eos_token=True
    )
    how = {"padding": "max_length", "max_length": length, "truncation": True}
    return lambda texts: tokenizer(texts, return_tensors="pt", **how)["input_ids"]


def text_config(length: int) -> TextConfig:
    config = PairConfig.from_hf({"model_type": "siglip"}).text
    return replace(config, length=length)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
