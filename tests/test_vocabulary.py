"""The embedded model's vocabulary: ours and transformers' reading of one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, PaliGemmaProcessor

from vlm.hub import config_json
from vlm.image import pixels
from vlm.tiny import recipe
from vlm.tiny.processor import processor_files
from vlm.tiny.questions import SPOKEN, TASKS, WORDS, Question, ask
from vlm.tiny.scenes import Stock, compose
from vlm.tiny.sprites import load_sprites
from vlm.tiny.vocabulary import (
    CODED,
    COMMON,
    CONTROL,
    MARKS,
    check_vocabulary,
    train_vocabulary,
)
from vlm.tokenizer import Tokenizer

SPACE = "\u2581"
BOXES = (
    "<loc0008><loc0120><loc1000><loc1016> cat ; "
    "<loc0024><loc0008><loc0504><loc0488> dog"
)
TYPED = [
    "",
    " ",
    "detect cat ; dog",
    "  two  spaces,   three ",
    "a\nb\n\nc\n\n\n\n\n",
    "Draw a T. rex's house: (3 trees) & 12 cups!",
    "tab\there",
    "déjà vu 日本語 🙂",
    "<loc0000> cat <seg127>dog<loc1024>",
]
# transformers takes these for tokens when they are typed.
NAMES = ["<image>", "<mask>", *(f"<{name}>" for name in CONTROL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder without weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    train_vocabulary(folder / "tokenizer.model")
    image = 1 + Tokenizer.load(folder, 1 << 20).pieces.piece_to_id(CODED[-1])
    config = recipe.configuration(image)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    vision = config.vision
    processor_files(folder, vision.image_size, vision.patches, image)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    image = json.loads((folder / "config.json").read_text())["image_token_index"]
    return Tokenizer.load(folder, image, size=image + 1)


@pytest.fixture(scope="module")
def processor(folder: Path) -> PaliGemmaProcessor:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(asked(scenes=60))


def asked(scenes: int) -> Iterator[Question]:
    rng = np.random.default_rng(11)
    stock = Stock(load_sprites(), backgrounds=4)
    for _ in range(scenes):
        scene = compose(rng, stock, masks=True)
        for task in TASKS:
            for language in SPOKEN[task]:
                question = ask(rng, scene, task, language=language, codes=codes_of)
                if question is not None:
                    yield question


def codes_of(mask: np.ndarray) -> list[int]:
    return [int(mask.sum()) * n % 128 for n in range(16)]


def prompt_of(processor: PaliGemmaProcessor, text: str) -> list[int]:
    image = Image.new("RGB", (8, 8))
    inputs = processor(images=[[image]], text=["<image>" + text])
    return list(inputs["input_ids"][0])


def answer_of(processor: PaliGemmaProcessor, text: str) -> list[int]:
    return processor.tokenizer(text)["input_ids"]


def test_transformers_makes_the_same_ids_of_questions_and_answers(
    tokenizer, processor, questions
):
    spoken = {(task, language) for task in TASKS for language in SPOKEN[task]}
    assert {(question.task, question.language) for question in questions} == spoken
    for question in questions:
        ours = tokenizer.prompt(question.prefix, patches=64)
        assert ours == prompt_of(processor, question.prefix)
        ours = tokenizer.answer_ids(question.suffix)
        assert ours == answer_of(processor, question.suffix)


@pytest.mark.parametrize("text", [*TYPED, BOXES])
def test_transformers_makes_the_same_ids_of_other_prompts(tokenizer, processor, text):
    assert tokenizer.prompt(text, patches=64) == prompt_of(processor, text)
    assert tokenizer.answer_ids(text) == answer_of(processor, text)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, *" ;,?.\n1\té日🙂"])).map("".join)
    | st.text(alphabet="abcdefghilmnoprstuwy \n", max_size=60)
    | st.text(max_size=40)
)
@example(" " * 35 + "cat" + "\n" * 37)
def test_transformers_makes_the_same_ids_of_any_text(tokenizer, processor, text):
    assume(not any(name in text for name in NAMES))
    assert tokenizer.answer_ids(text) == answer_of(processor, text)


def test_transformers_finds_the_image_token_behind_the_last_piece(folder, tokenizer):
    for theirs in (
        AutoTokenizer.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder).tokenizer,
    ):
        assert len(theirs) == tokenizer.size
        assert theirs.convert_tokens_to_ids("<image>") == tokenizer.image_token
        control = theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id
        assert control == (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
        assert theirs.unk_token_id == tokenizer.pieces.unk_id() == 3


def test_transformers_makes_the_same_pixels(processor):
    noise = np.random.default_rng(0).integers(0, 256, (97, 160, 3), np.uint8)
    image = Image.fromarray(noise)
    theirs = processor(images=[[image]], text=["<image>"], return_tensors="pt")
    torch.testing.assert_close(
        theirs["pixel_values"], pixels(image, 128), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("space", ["", " "])
def test_every_word_of_the_questions_is_one_piece(tokenizer, space):
    for word in WORDS:
        pieces = [*map(tokenizer.piece, tokenizer.answer_ids(space + word))]
        assert pieces == [space + word]


def test_questions_and_answers_fall_into_words_marks_and_locations(
    tokenizer, questions
):
    known = {*WORDS, *(f" {word}" for word in WORDS), *MARKS, *CODED, "\n", " "}
    for question in questions:
        for text in (question.prefix + "\n", question.suffix):
            pieces = [*map(tokenizer.piece, tokenizer.answer_ids(text))]
            assert "".join(pieces) == text and {*pieces} <= known
        # A box is four locations and its name; between two are " ;" and " ".
        boxes = question.suffix.count("<loc") // 4
        codes = question.suffix.count("<seg")
        assert codes in (0, 16 * boxes)
        assert not boxes or len(pieces) == 7 * boxes + codes - 2


@pytest.mark.parametrize(
    "text, expected",
    [
        ("zwei Häuser und ein Haus", ["zwei", " Häuser", " und", " ein", " Haus"]),
        ("Herz, Herzen", ["Herz", ",", " Herzen"]),
        ("Ball Bälle Herzballs balls", ["Ball", " Bälle", " Herz", "balls", " balls"]),
        ("bus buses Bus Busse?", ["bus", " buses", " Bus", " Busse", "?"]),
        ("question de oben links", ["question", " de", " oben", " links"]),
        ("eine rote Schildkröte", ["eine", " rote", " Schildkröte"]),
    ],
)
def test_a_word_in_another_stays_whole(tokenizer, text, expected):
    assert [*map(tokenizer.piece, tokenizer.answer_ids(text))] == expected


def test_a_word_of_the_questions_is_not_listed_as_another_that_people_write():
    assert not {*WORDS} & {*COMMON.split()}
    assert len(COMMON.split()) == len({*COMMON.split()})


def test_boxes_are_parted_by_a_mark_and_a_space(tokenizer):
    pieces = [*map(tokenizer.piece, tokenizer.answer_ids(BOXES))]
    first, second = [CODED[n] for n in (8, 120, 1000, 1016)], ["<loc0024>", "<loc0008>"]
    assert pieces[:9] == [*first, " cat", " ;", " ", *second]


def test_scores_fall_as_ids_rise_so_that_both_readers_join_in_one_order(tokenizer):
    pieces = tokenizer.pieces
    ordinary = [
        piece
        for piece in range(pieces.piece_to_id("<0xFF>") + 1, len(pieces) - len(CODED))
        if len(pieces.id_to_piece(piece)) > 1
    ]
    scores = [pieces.get_score(piece) for piece in ordinary]
    assert all(high > low for high, low in zip(scores, scores[1:]))
    assert len(scores) > 300


def test_the_file_is_small_and_the_same_each_time(folder, tmp_path):
    train_vocabulary(tmp_path / "again.model")
    written = (folder / "tokenizer.model").read_bytes()
    assert (tmp_path / "again.model").read_bytes() == written
    assert len(written) < 60_000
    others = ("preprocessor_config.json", "tokenizer_config.json")
    assert sum((folder / name).stat().st_size for name in others) < 1000


def test_the_check_notices_a_vocabulary_that_is_not_as_promised(folder, tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    good = folder / "tokenizer.model"
    assert check_vocabulary(good).startswith("1061 pieces, 1152 locations and codes")
    model = ModelProto.FromString(good.read_bytes())
    next(p for p in model.pieces if p.piece == f"{SPACE}penguin").piece = "unseen"
    (tmp_path / "bad.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="' penguin' has 2 pieces, not 1"):
        check_vocabulary(tmp_path / "bad.model")
