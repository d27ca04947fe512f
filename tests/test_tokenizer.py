"""vlm.tokenizer against sentencepiece and against transformers' processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import GemmaTokenizer, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)

from vlm.tokenizer import Tokenizer

CORPUS = [
    "detect cat ; dog\n",
    "segment the blue bird",
    "what color is the red car?",
    "answer en How many cats are there? 12345",
    "caption de\n",
    "a small dog runs on the beach",
    "déjà vu über der Straße",
    "the cat sat on the mat  and   then",
]
CONTROL = ("pad", "eos", "bos", "unk")
GEMMA = dict(
    model_type="bpe",
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    normalization_rule_name="identity",
    character_coverage=1.0,
    hard_vocab_limit=False,
    minloglevel=2,
    **{f"{name}_id": id for id, name in enumerate(CONTROL)},
    **{f"{name}_piece": f"<{name}>" for name in CONTROL},
)
GROUNDING = [f"<loc{i:04d}>" for i in range(1024)] + [
    f"<seg{i:03d}>" for i in range(128)
]
NAMES = ["<image>", "<bos>", "<eos>", "<pad>", "<unk>"]
PROMPTS = [
    "",
    " ",
    "detect cat",
    "detect cat ; dog",
    " caption en",
    "caption en ",
    "caption en\n",
    "\n\n",
    "a\nb\n\nc",
    "the  cat   sat        down",
    "tab\there",
    "carriage\r\nreturn",
    "déjà vu, e\u0301 ﬁne",
    "日本語 مرحبا 🙂👨‍👩‍👧",
    "12345 cats",
    "caption <loc0000><loc0512><loc1023><loc0007>",
    "<loc0001> cat <seg127> dog<seg000>",
    "a<loc0001>b",
    "  <loc0001>  ",
    "<loc1024> <seg128> <loc12> <LOC0001> <loc00012>",
    "<<loc0001>>",
    "<loc٠٠٠١>",
    "<start_of_turn><b>",
    "\x00 null",
]


def train(folder: Path, *, grounding: bool, more: tuple[str, ...] = ()) -> Path:
    """A vocabulary of Gemma's structure, with or without PaliGemma's loc and seg."""
    runs = ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)]
    pieces = ["<mask>", *runs, *more, *(GROUNDING if grounding else [])]
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=4 + 256 + len(pieces) + 160,
        user_defined_symbols=pieces,
        **GEMMA,
    )
    return folder


def sentencepiece_of(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    )


def processor_of(folder: Path) -> PaliGemmaProcessor:
    """transformers' own; on a plain Gemma file loc and seg must be added before it
    adds `<image>`, or `<image>` takes the id of `<loc0000>`."""
    tokenizer = GemmaTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(GROUNDING)
    images = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, tokenizer)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocabularies")
    return {
        "paligemma": train(root / "paligemma", grounding=True),
        "gemma": train(root / "gemma", grounding=False),
    }


@pytest.fixture(scope="module", params=["paligemma", "gemma"])
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    pieces = sentencepiece_of(folder)
    image = pieces.get_piece_size()
    if folder.name == "gemma":
        image += 1024 + 128
    return Tokenizer.load(folder, image, size=image + 64)


@pytest.fixture(scope="module")
def theirs(folder) -> Callable[..., list[int]]:
    """Ids of a prompt by transformers, 4 placeholders per image."""
    processor = processor_of(folder)
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))

    def ids(text: str, images: int = 1) -> list[int]:
        inputs = processor(images=[[image] * images], text=["<image>" * images + text])
        return list(inputs["input_ids"][0])

    return ids


@pytest.mark.parametrize("text", PROMPTS)
def test_a_prompt_has_the_ids_of_transformers(tokenizer, theirs, text):
    ids = tokenizer.prompt(text, patches=4)
    assert ids == theirs(text)
    assert ids == [tokenizer.image_token] * 4 + tokenizer.text_ids(text)


def test_the_placeholders_of_several_images_stand_side_by_side(tokenizer, theirs):
    ids = tokenizer.prompt("answer en How many cats", 3, patches=4)
    assert ids == theirs("answer en How many cats", images=3)
    assert ids.count(tokenizer.image_token) == 12
    assert ids.count(tokenizer.bos) == 1


@settings(deadline=None)
@given(st.text(alphabet="the cat\n \t;<>loc0123seg45é日🙂", max_size=40))
def test_any_text_has_the_ids_of_transformers(tokenizer, theirs, text):
    assume(not any(name in text for name in [*NAMES, "<mask>"]))
    assert tokenizer.prompt(text, patches=4) == theirs(text)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_without_tokens_has_the_ids_of_sentencepiece(folders, text):
    folder = folders["paligemma"]
    pieces = sentencepiece_of(folder)
    tokenizer = Tokenizer.load(folder, pieces.get_piece_size())
    assert tokenizer.answer_ids(text) == pieces.encode(text)
    assert tokenizer.text_ids(text) == [2, *pieces.encode(text + "\n")]


def test_text_and_newline_are_one_where_they_meet(tokenizer):
    pieces = tokenizer.pieces
    one, two = (pieces.piece_to_id("\n" * n) for n in (1, 2))
    assert tokenizer.text_ids("\n") == [tokenizer.bos, two] != [tokenizer.bos, one, one]
    assert tokenizer.text_ids("") == [tokenizer.bos, one]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*NAMES, "cat", " ", "<", "image>", "é"]), max_size=8))
def test_typed_names_of_control_tokens_stay_text(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer.answer_ids(text)
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.image_token}
    assert not special & {*ids} and tokenizer.pieces.unk_id() not in ids
    assert tokenizer.decode(ids) == text


def test_a_typed_placeholder_stays_text_even_if_the_file_has_a_piece_for_it(tmp_path):
    folder = train(tmp_path / "with_image", grounding=True, more=("<image>",))
    pieces = sentencepiece_of(folder)
    image = pieces.piece_to_id("<image>")
    assert image in pieces.encode("a <image> b")
    tokenizer = Tokenizer.load(folder, image)
    for text in ("a <image> b", "<image><image>", "<<image>>\0"):
        assert image not in tokenizer.text_ids(text)
        assert tokenizer.decode(tokenizer.answer_ids(text)) == text
    assert tokenizer.answer_ids("the cat") == pieces.encode("the cat")
    assert tokenizer.decode([image]) == "<image>"


def test_typed_regions_are_tokens_and_do_not_touch_their_neighbours(tokenizer):
    loc, seg, plain = tokenizer.first_loc, tokenizer.first_seg, tokenizer.answer_ids
    expected = [*plain("the"), loc + 5, *plain(" cat"), seg + 127]
    assert plain("the<loc0005> cat<seg127>") == expected
    assert plain("<loc1023>") == [loc + 1023]


def test_ids_know_which_bin_or_code_they_are(tokenizer):
    loc, seg = tokenizer.first_loc, tokenizer.first_seg
    bins = [tokenizer.loc(loc + n) for n in (-1, 0, 1023, 1024)]
    codes = [tokenizer.seg(seg + n) for n in (-1, 0, 127, 128)]
    assert (bins, codes) == ([None, 0, 1023, None], [None, 0, 127, None])


def test_numbers_out_of_range_are_no_regions(tokenizer):
    for text in ("<loc1024>", "<loc9999>", "<seg128>", "<loc001>", "<loc٠٠٠١>"):
        ids = tokenizer.answer_ids(text)
        assert all(tokenizer.loc(i) is tokenizer.seg(i) is None for i in ids)
        assert tokenizer.decode(ids) == text


def test_the_offsets_are_those_of_the_published_vocabulary(folders):
    """Behind 256000 pieces: shown on a file that says it has as many."""

    class Gemma(sentencepiece.SentencePieceProcessor):
        def get_piece_size(self) -> int:
            return 256000

    pieces = Gemma(model_file=str(folders["gemma"] / "tokenizer.model"))
    tokenizer = Tokenizer(pieces, 257152, size=257216)
    ids = tokenizer.answer_ids("<loc0000><loc1023><seg000><seg127>")
    assert ids == [256000, 257023, 257024, 257151]
    assert tokenizer.piece(257152) == "<image>"


def test_ids_in_the_file_are_those_of_the_file(folders):
    folder = folders["paligemma"]
    pieces = sentencepiece_of(folder)
    tokenizer = Tokenizer.load(folder, pieces.get_piece_size())
    for name in ("<loc0000>", "<loc0777>", "<seg000>", "<seg127>"):
        assert tokenizer.answer_ids(name) == [pieces.piece_to_id(name)]
        assert tokenizer.piece(pieces.piece_to_id(name)) == name


@settings(deadline=None)
@given(st.text(max_size=60))
@example("é日🙂\n  \t\0")
def test_text_comes_back_from_its_ids(tokenizer, text):
    # "▁" is how sentencepiece spells a space, so it comes back as one.
    assert tokenizer.decode(tokenizer.answer_ids(text)) == text.replace("▁", " ")


def test_half_a_character_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.answer_ids("a\ud800b")) == "a?b"


@settings(deadline=None)
@given(data=st.data())
def test_streamed_text_is_decoded_text(tokenizer, data):
    """Any ids at all, half of them bytes, so that most characters are broken."""
    pieces = tokenizer.pieces
    zero = pieces.piece_to_id("<0x00>")
    byte = st.integers(zero, zero + 255)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1) | byte, max_size=30))
    stream = tokenizer.stream()
    parts = [stream.add(i) for i in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)
    assert stream.finish() == ""


@settings(deadline=None)
@given(data=st.data())
def test_broken_characters_decode_as_in_sentencepiece(tokenizer, data):
    pieces = tokenizer.pieces
    zero = pieces.piece_to_id("<0x00>")
    lead = st.sampled_from([0x41, 0xC3, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF8, 0xC0])
    trail = st.sampled_from([0x80, 0x82, 0x90, 0x9F, 0xA0, 0xAC, 0xBF])
    byte = (lead | trail | st.integers(0, 255)).map(lambda b: zero + b)
    word = st.sampled_from(pieces.encode("the cat"))
    ids = data.draw(st.lists(byte | word | st.just(tokenizer.eos), max_size=20))
    assert tokenizer.decode(ids) == pieces.decode(ids)


def test_bytes_are_held_back_until_the_character_is_whole(tokenizer):
    ids = tokenizer.answer_ids("日a")
    assert len(ids) == 4
    stream = tokenizer.stream()
    assert [stream.add(i) for i in ids] == ["", "", "日", "a"]
    assert [stream.add(i) for i in (ids[0], ids[1], ids[3])] == ["", "", "��a"]
    assert stream.add(ids[0]) == "" and stream.finish() == "�"


def test_tokens_with_a_name_are_streamed_by_it_and_control_tokens_are_silent(tokenizer):
    stream = tokenizer.stream()
    first_byte = tokenizer.answer_ids("日")[0]
    loc, seg = tokenizer.first_loc + 12, tokenizer.first_seg + 3
    assert stream.add(loc) == "<loc0012>" and stream.add(seg) == "<seg003>"
    assert stream.add(tokenizer.image_token) == "<image>"
    assert stream.add(tokenizer.pieces.unk_id()) == "<unk>"
    assert [*map(stream.add, (tokenizer.pad, tokenizer.eos, tokenizer.bos))] == [""] * 3
    assert stream.add(first_byte) == "" and stream.add(loc) == "\ufffd<loc0012>"


def test_every_id_has_a_piece_to_show(tokenizer):
    pieces = tokenizer.pieces
    for token in range(tokenizer.size):
        assert tokenizer.piece(token)
    assert tokenizer.piece(tokenizer.answer_ids(" cat")[0]).startswith(" ")
    assert tokenizer.piece(pieces.piece_to_id("<0xE2>")) == "<0xE2>"
    assert [*map(tokenizer.piece, (0, 1, 2))] == ["<pad>", "<eos>", "<bos>"]
    for token in (-1, tokenizer.size):
        with pytest.raises(ValueError, match=f"{token} is not in a vocabulary of"):
            tokenizer.piece(token)


def test_a_missing_file_is_an_error_that_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="google/paligemma-3b-pt-224 has it"):
        Tokenizer.load(tmp_path, 5)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="only tokenizer.json"):
        Tokenizer.load(tmp_path, 5)


def test_a_pointer_in_place_of_the_file_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        Tokenizer.load(tmp_path, 5)


def test_a_file_of_another_checkpoint_is_an_error(folders):
    pieces = sentencepiece_of(folders["gemma"])
    count = pieces.get_piece_size()
    with pytest.raises(ValueError, match=f"is {count}, which is <loc0000> here"):
        Tokenizer.load(folders["gemma"], count)
    with pytest.raises(ValueError, match=f"need {count + 1153} ids.* has {count}"):
        Tokenizer.load(folders["gemma"], count + 1152, size=count)
