"""CLIP as a pair: its towers, words and pixels against transformers."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from engines import picture
from hub_server import HubServer
from huggingface_hub import constants
from oracle import write
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import vlm
from vlm import pair_checkpoint
from vlm.bpe import END, LETTERS, START, BytePairs
from vlm.framing import Framing
from vlm.pair_config import PairConfig
from vlm.siglip import PairModel
from vlm.tap import Tap
from vlm.ui import matching

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# Differences to the above: (text, vision, top level).
CASES: dict[str, tuple[dict, dict, dict]] = {
    "largest id": ({}, {}, {"projection_dim": 20}),
    # The end is not the largest id, and comes twice.
    "first eos": ({"eos_token_id": 41}, {}, {"projection_dim": 8}),
    # A patch that does not divide the image; every constant is unusual.
    "odd": (
        {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_hidden_layers": 2,
            "max_position_embeddings": 9,
            "layer_norm_eps": 3e-2,
            "hidden_act": "gelu",
            "eos_token_id": 7,
        },
        {
            "image_size": 23,
            "patch_size": 5,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "layer_norm_eps": 1e-2,
            "hidden_act": "gelu_pytorch_tanh",
        },
        {"projection_dim": 33},
    ),
}
WORDS = [
    "A photo of a Cat.",
    "two dogs, and a HOUSE!!!",
    "",
    "   ",
    "it's we'll they've I'm you'd don't we're rock'n'roll 'quoted' ''s !'s 'S",
    "tabs\tand\nlines\r\n\x0b\x0c  no\u00a0break \u2003em \u3000wide\x85next\x1cfile",
    "Zürich Ångström e\u0301cole ﬁne İstanbul ΟΔΟΣ ΟΔΟΣ. Straße ǅ K Å",
    "日本語のテキスト 한국어 हिन्दी ไทย عربى עברית ½ ² Ⅷ ٣ 一二三 ꙮ",
    "👩‍👩‍👧 🇨🇭 ❤️ 👍🏽 emoji🙂in🙂words",
    "1234 3.14 v2.0 100% $5 a_b __init__ #tag @me http://x.org/?q=1&r=2",
    "zero\u200bwidth soft\u00adhyphen \u202eback \ufeffmark \x00null \x7f \ufffd",
    "a <|endoftext|> in the middle, <|startoftext|>and <|EndOfText|> too<|endoftext|>",
    "&amp; &lt;b&gt; <b>bold</b> “quotes” — dash… ‘it’s’",
    "supercalifragilisticexpialidocious " * 8,
    "one two three four five six seven eight nine ten " * 12,
]


# The model


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory) -> tuple[Path, transformers.CLIPModel]:
    folder = tmp_path_factory.mktemp("clip")
    model = random_clip(*CASES[request.param])
    return write(folder, model), model


def test_vectors_and_logits_equal_transformers(written) -> None:
    folder, oracle = written
    model, questions = load(folder), ask(oracle.config)
    with torch.no_grad():
        theirs = oracle(**questions)
    images = model.images(questions["pixel_values"])
    texts = model.texts(questions["input_ids"])
    close(images, theirs.image_embeds)
    close(texts, theirs.text_embeds)
    close(model.logits(images, texts), theirs.logits_per_image)
    assert theirs.logits_per_image.std() > 0.5, "too alike to tell a mistake"


def test_the_softmax_loss_is_that_of_transformers(written) -> None:
    folder, oracle = written
    model, questions = load(folder), ask(oracle.config, images=4)
    with torch.no_grad():
        theirs = oracle(**questions, return_loss=True).loss
    images = model.images(questions["pixel_values"])
    texts = model.texts(questions["input_ids"])
    close(vlm.clip_loss(images, texts, scale=model.logit_scale.exp()), theirs)


def test_what_stands_behind_the_end_changes_nothing(written) -> None:
    folder, oracle = written
    model, ids = load(folder), ask(oracle.config)["input_ids"]
    ends = oracle.config.text_config.eos_token_id
    end = TEXT["vocab_size"] - 1 if ends == 2 else ends
    short = ids[:1, : ids[0].tolist().index(end) + 1]
    padded = torch.nn.functional.pad(short, (0, 3), value=end)
    other = torch.nn.functional.pad(short, (0, 3), value=5)
    for longer in (padded, other):
        close(model.texts(longer), model.texts(short))


def test_a_tap_sees_the_attention_of_both_towers(written) -> None:
    folder, oracle = written
    seen = {}

    class Watch(Tap):
        def attention(self, tower, layer, weights) -> None:
            seen[tower, layer] = weights(slice(None))

    model, questions = load(folder), ask(oracle.config)
    model.images(questions["pixel_values"], Watch())
    model.texts(questions["input_ids"], Watch())
    oracle.set_attn_implementation("eager")
    with torch.no_grad():
        vision = oracle.vision_model(questions["pixel_values"], output_attentions=True)
        text = oracle.text_model(questions["input_ids"], output_attentions=True)
    for tower, theirs in (("vision", vision), ("text", text)):
        for layer, weights in enumerate(theirs.attentions):
            close(seen[tower, layer], weights)
    assert len(seen) == len(vision.attentions) + len(text.attentions)


def test_a_config_is_read_as_transformers_reads_it() -> None:
    hf = transformers.CLIPConfig()
    listed = {
        "model_type": "clip",
        "projection_dim": hf.projection_dim,
        "text_config": hf.text_config.to_dict(),
        "vision_config": hf.vision_config.to_dict(),
    }
    plain = PairConfig.from_hf({"model_type": "clip"})
    assert plain == PairConfig.from_hf(listed)
    assert plain.text.end == 49407
    # What old files say twice.
    said = {"eos_token_id": 2, "num_hidden_layers": 5, "hidden_act": "gelu"}
    twice = {**listed, "text_config": said, "text_config_dict": {"hidden_size": 64}}
    text = transformers.CLIPConfig(**json.loads(json.dumps(twice))).text_config
    ours = PairConfig.from_hf(twice).text
    assert (ours.end, ours.encoder.width) == (text.eos_token_id, text.hidden_size)
    assert ours.encoder.depth == text.num_hidden_layers
    assert ours.encoder.activation == text.hidden_act
    with pytest.raises(ValueError, match="3 channels, not 1"):
        PairConfig.from_hf({**listed, "vision_config": {"num_channels": 1}})
    with pytest.raises(ValueError, match=r"one id here, not \[1, 2\]"):
        PairConfig.from_hf({**listed, "text_config": {"eos_token_id": [1, 2]}})


def test_a_clip_is_not_saved_as_what_it_is_not(written, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loaded here, but not saved"):
        pair_checkpoint.save(load(written[0]), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# Its words


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A folder with a tokenizer.json as transformers writes it."""
    folder = tmp_path_factory.mktemp("words")
    vocabulary, merges = train_words()
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tokenizer.json", "merges in lines", "vocab.json"])
def spelt(request, words: Path, tmp_path: Path) -> Path:
    """The same in each of the forms that files have."""
    raw = json.loads((words / "tokenizer.json").read_text())
    merges = [" ".join(pair) for pair in raw["model"]["merges"]]
    if request.param == "vocab.json":
        (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
        (tmp_path / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
        )
        return tmp_path
    if request.param == "merges in lines":
        raw["model"]["merges"] = merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    return tmp_path


def test_texts_have_the_ids_of_transformers(words: Path, spelt: Path) -> None:
    oracle = transformers.CLIPTokenizer.from_pretrained(words)
    ours = BytePairs.load(spelt, text_config(words))
    for text in WORDS:
        theirs = oracle(text, truncation=True, max_length=77)["input_ids"]
        assert ours.ids([text])[0].tolist() == theirs, text
    how = {"padding": True, "truncation": True, "max_length": 77}
    together = ours.ids(WORDS)
    assert together.tolist() == oracle(WORDS, **how)["input_ids"]
    assert together.shape[1] == 77
    assert together[-1, -1] == ours.end, "cut, and ended all the same"
    joined = {len(ours.word(word)) for word in ("photo", "house", "dogs")}
    assert joined == {1}, "the vocabulary is too small to tell"


def test_each_character_has_the_ids_of_transformers(words: Path) -> None:
    """Of one plane: which are spaces, letters, digits, and how they are lower-cased."""
    oracle = transformers.CLIPTokenizer.from_pretrained(words)
    ours = BytePairs.load(words, text_config(words))
    ranges = (range(0xD800), range(0xE000, 0x10000), range(0x1F000, 0x1FB00))
    known = [c for part in ranges for c in map(chr, part) if assigned(c)]
    texts = [f"a{c}b {c}1{c}! " for c in known]
    theirs = oracle(texts, add_special_tokens=False)["input_ids"]
    wrong = [
        c for c, text, ids in zip(known, texts, theirs) if ours.encode(text) != ids
    ]
    assert not wrong, [hex(ord(c)) for c in wrong[:20]]


def test_half_a_character_is_a_text_too(words: Path) -> None:
    ours = BytePairs.load(words, text_config(words))
    assert ours.encode("a \ud83d") == ours.encode("a ?")


def test_a_vocabulary_that_does_not_fit_is_an_error(
    words: Path, spelt: Path, tmp_path: Path
) -> None:
    config = text_config(words)
    with pytest.raises(ValueError, match=r"ids up to \d+, the text tower rows for 600"):
        BytePairs.load(spelt, text_config(words, vocab_size=600))
    with pytest.raises(ValueError, match="texts end in id 3, the vocabulary in"):
        BytePairs.load(spelt, text_config(words, eos_token_id=3))
    if (spelt / "merges.txt").is_file():
        (spelt / "merges.txt").unlink()
        with pytest.raises(
            ValueError, match=r"no tokenizer\.json .* not both of vocab"
        ):
            BytePairs.load(spelt, config)
        return
    for damage, said in (
        ("version https://git-lfs", "is damaged"),
        ("[]", "is no CLIP's, or damaged"),
        ('{"added_tokens": [], "model": {"vocab": {"a": 1}}}', "'merges'"),
        ('{"added_tokens": [], "model": {"vocab": {"a": 1}, "merges": []}}', END),
    ):
        (spelt / "tokenizer.json").write_text(damage)
        with pytest.raises(ValueError, match=said.replace("|", r"\|")):
            BytePairs.load(spelt, config)


# Its pixels


@pytest.mark.parametrize("edge, size", [(28, 28), (33, 28), (40, 23)])
def test_pixels_equal_transformers(tmp_path: Path, edge: int, size: int) -> None:
    mean, std = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]
    oracle = CLIPImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": size, "width": size},
        image_mean=mean,
        image_std=std,
    )
    oracle.save_pretrained(tmp_path)
    ours = Framing.read(tmp_path, size)
    for sides in [(50, 34), (20, 61), (28, 28), (301, 97), (29, 31), (7, 90)]:
        image = picture(1, sides)
        theirs = oracle(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours.pixels(image), theirs, rtol=0, atol=1e-5)


def test_pixels_are_openais_where_no_file_says_otherwise(tmp_path: Path) -> None:
    theirs = CLIPImageProcessorPil()(picture(2, (640, 480)), return_tensors="pt")
    ours = Framing.read(tmp_path, 224).pixels(picture(2, (640, 480)))
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)
    # As published: sizes are mere numbers.
    said = {"size": 224, "crop_size": 224, "do_resize": True, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert Framing.read(tmp_path, 224) == Framing.read(tmp_path / "none", 224)


def test_a_long_strip_is_seen_in_its_middle(tmp_path: Path, monkeypatch) -> None:
    """Its ends are cut off before it is enlarged: whole it would take a gigabyte."""
    oracle = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    framing = Framing.read(tmp_path, 32)
    for sides in [(400, 20), (20, 480)]:
        theirs = oracle(picture(3, sides), return_tensors="pt")["pixel_values"]
        ours = framing.pixels(picture(3, sides))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    sizes = []
    monkeypatch.setattr(Image.Image, "resize", told(Image.Image.resize, sizes))
    framing.pixels(Image.new("RGB", (1, 60_000)))
    assert sizes == [(32, 512)]


def test_what_is_seen_is_told_in_parts_of_the_sides(tmp_path: Path) -> None:
    framing = Framing.read(tmp_path, 28)
    assert framing.seen(200, 100) == pytest.approx((0.25, 0, 0.75, 1))
    assert framing.seen(100, 400) == pytest.approx((0, 0.375, 1, 0.625))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 56}')
    framing = Framing.read(tmp_path, 28)
    assert framing.seen(200, 100) == pytest.approx((0.375, 0.25, 0.625, 0.75))


@pytest.mark.parametrize(
    "said",
    [
        {"do_center_crop": False},
        {"resample": 2},
        {"crop_size": 32},
        {"size": 20},
        {"size": {"height": 28, "width": 28}},
        {"crop_size": {"height": 28, "width": 30}},
    ],
)
def test_pixels_that_are_made_in_another_way_are_an_error(
    tmp_path: Path, said: dict
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json (asks|has)"):
        Framing.read(tmp_path, 28)


# The whole


@pytest.fixture(scope="module")
def whole(words: Path, tmp_path_factory) -> Path:
    return whole_clip(tmp_path_factory.mktemp("whole"), words)


def test_a_clip_scores_as_transformers_does(whole: Path) -> None:
    pair = vlm.load_pair(whole, device="cpu")
    oracle = transformers.CLIPModel.from_pretrained(whole).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(whole)
    look = CLIPImageProcessorPil.from_pretrained(whole)
    images = [picture(seed, size) for seed, size in enumerate([(50, 34), (20, 61)])]
    asked = tokenizer(WORDS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = oracle(
            **asked, pixel_values=look(images, return_tensors="pt")["pixel_values"]
        ).logits_per_image
    close(pair.model.logits(pair.images(images), pair.texts(WORDS)), logits)
    close(pair.scores(images, WORDS), logits.softmax(dim=1))
    close(pair.scores(images, WORDS, loss="softmax"), logits.softmax(dim=1))
    close(pair.scores(images, WORDS, loss="sigmoid"), logits.sigmoid())
    assert logits.std() > 0.5


def test_the_page_is_told_what_a_clip_sees(whole: Path) -> None:
    pair = vlm.load_pair(whole, device="cpu")
    images = [picture(seed, size) for seed, size in enumerate([(50, 34), (20, 61)])]
    match = matching.matched(pair, images, WORDS[:3])
    oracle = transformers.CLIPModel.from_pretrained(whole, attn_implementation="eager")
    look = CLIPImageProcessorPil.from_pretrained(whole)
    with torch.no_grad():
        last = oracle.vision_model(
            **look(images, return_tensors="pt"), output_attentions=True
        ).attentions[-1]
    shares = last[:, :, 0, 1:].mean(1)
    shares /= shares.sum(1, keepdim=True)
    close(torch.from_numpy(match.looks), shares.reshape(2, 4, 4))
    close(torch.from_numpy(match.logits), torch.from_numpy(match.cosines) * match.scale)
    drawn = json.loads(json.dumps(matching.drawn(match)))
    assert drawn["bias"] is None
    assert drawn["looker"] == "the class token, in the last layer,"
    assert drawn["looks"][0]["seen"] == pytest.approx([0.16, 0, 0.84, 1])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.close()


def test_a_clip_comes_from_the_hub_with_what_it_needs(
    hub: HubServer, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "clip")
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    hub.repositories["some/clip"] = {"main": folder}
    near = vlm.load_pair(whole, device="cpu")
    needed = {"config.json", "preprocessor_config.json", "model.safetensors"}
    for _ in range(2):  # the second time it is here
        far = vlm.load_pair("some/clip", device="cpu")
        assert set(hub.files_asked()) == needed | {"tokenizer.json"}
        asked = ([picture(0, (50, 34))], WORDS[:4])
        assert torch.equal(far.scores(*asked), near.scores(*asked))
    hub.close()
    assert torch.equal(
        vlm.load_pair("some/clip", device="cpu").scores(*asked), near.scores(*asked)
    )


def test_a_clip_without_its_words_is_told_before_its_weights_are_fetched(
    hub: HubServer, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "clip")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    hub.repositories["some/clip"] = {"main": folder}
    with pytest.raises(ValueError, match=r"no tokenizer\.json; .* from openai/"):
        vlm.load_pair("some/clip", device="cpu")
    assert set(hub.files_asked()) == {"config.json"}


# What is compared with


def random_clip(text: dict, vision: dict, top: dict) -> transformers.CLIPModel:
    """Weights large enough that a mistake shows."""
    config = transformers.CLIPConfig(
        text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **top
    )
    model = transformers.CLIPModel(config).eval()
    dice = torch.Generator().manual_seed(5)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=dice)
        if weight.dim() > 1 and "embedding" not in key:
            noise *= 1.7 / weight[0].numel() ** 0.5
        elif weight.dim() == 1 and "embedding" not in key:
            noise = 0.3 * noise + float("norm" in key and "weight" in key)
        weight.data.copy_(noise)
    model.logit_scale.data.fill_(2.3)
    return model


def ask(config: transformers.CLIPConfig, images: int = 2) -> dict[str, Tensor]:
    """Random pixels, and ids for four texts that end at different places."""
    dice = torch.Generator().manual_seed(1)
    vision, text = config.vision_config, config.text_config
    size = vision.image_size
    pixels = torch.randn(images, 3, size, size, generator=dice)
    length, largest = text.max_position_embeddings, text.vocab_size - 1
    end = largest if text.eos_token_id == 2 else text.eos_token_id
    ids = torch.randint(8, 40, (4, length), generator=dice)
    for row, place in enumerate((3, length - 1, 5, 2)):
        ids[row, place] = end
    # Behind the end: more of it, and what is larger.
    ids[2, 6:] = end
    if end != largest:
        ids[3, 4] = largest
    return {"pixel_values": pixels, "input_ids": ids}


def load(folder: Path) -> PairModel:
    config = pair_checkpoint.read_config(folder)
    return pair_checkpoint.load_model(folder, config, device="cpu")


def train_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small vocabulary in CLIP's order: bytes, bytes that end a word, merges."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in merges]
    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    pieces += ["".join(pair) for pair in merges] + [START, END]
    return {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}, merges


def text_config(words: Path, **text):
    size = len(transformers.CLIPTokenizer.from_pretrained(words))
    said = {"vocab_size": size, "eos_token_id": size - 1, **text}
    return PairConfig.from_hf({"model_type": "clip", "text_config": said}).text


def whole_clip(folder: Path, words: Path) -> Path:
    """Everything that a published CLIP's folder holds."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(words)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    return write(folder, random_clip(text, {}, {"projection_dim": 20}))


def assigned(character: str) -> bool:
    return unicodedata.category(character) not in ("Cn", "Co")


def told(resize, sizes: list):
    def resized(image, size, *args, **how):
        sizes.append(tuple(size))
        return resize(image, size, *args, **how)

    return resized


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
