"""A small vocabulary with the structure of PaliGemma's own.

Ids 0 to 3 are pad, eos, bos and unk; bytes spell what no piece covers; `\\n` is a
piece; the locations `<loc0000>` .. `<loc1023>` and the mask codes `<seg000>` ..
`<seg127>` have consecutive ids and come last.  `<image>` is not in the file: as it
stands for a picture and never for text, it takes the id after the last piece.

    python -m vlm.tiny.vocabulary OUT

trains the model, writes it to OUT and checks it.
"""

import argparse
import io
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from vlm.tiny.questions import WORDS

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

TRAINED = 570  # pieces from training, 256 of which are bytes
SPACE = "\u2581"  # how sentencepiece writes a space
# Pieces that every question and answer is made of, each kept whole.
MARKS = (" ;", ";", ",", "?", ".", *string.digits, *(f" {n}" for n in range(10)))
# The locations, then the codes of masks.
CODED = [f"<loc{n:04d}>" for n in range(1024)] + [f"<seg{n:03d}>" for n in range(128)]
# What English words are made of, so that an unknown one falls into few pieces.
PARTS = """
th he er re on es st nt ti to it ou ea ng as or te ed et al ar ve le se me de ro ll ri
li ne ra ch co la el io ur no ta ma ca ic sh om us ha tr ee oo ck ss ay ow ly ing ion
tion ent ers ter est ers all ght ble ment ness able ful less
"""
# Other words that people write in prompts, for the trainer to choose from.
COMMON = """
about above all animal animals any apples around baby background bag beach bear bed
before behind below beside between bicycle big boat book both box boy bright building
bus butterfly button cake camera chair child children city clock close clothes cloud
coat coffee colorful computer count cow cut dark day describe desk different dinner
door down drawing dress drink eat elephant every face family field find fire floor
food football for forest from front fruit full game garden giraffe girl glass glasses
good grass ground group hair hand happy hat has have head holding horse hot hotdog
image inside into it its jumping kitchen knife lady lamp large laptop light line list
little long look lying made main man men middle moon more motorcycle mountain near
next night number object objects of old on one open orange over people person phone
photo photograph picture plane plant plate playing please point rabbit rain red road
rocket room round running school sea segment sentence shape shirt shoe short show side
sign sitting sky sleeping small smiling snow some something square standing star
station store street sun sunny table tall tell text that thing things this three tiger
to toy traffic train truck umbrella under up vegetable visible walking wall was watch
water wearing which white who wild window with woman women wooden word words world
write written wrong year you young your zebra
"""


def train_vocabulary(path: str | Path) -> None:
    """Train the sentencepiece model and write it."""
    # Only training needs the protobuf package, to add pieces to what was trained.
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=trained,
        model_type="unigram",
        vocab_size=TRAINED,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        byte_fallback=True,
        user_defined_symbols=["\n", SPACE * 2, SPACE * 4],
        required_chars=string.printable[:94],
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    model = ModelProto.FromString(trained.getvalue())
    _keep_whole(model)
    user_defined = ModelProto.SentencePiece.USER_DEFINED
    for piece in CODED:
        model.pieces.add(piece=piece, score=0.0, type=user_defined)
    model.trainer_spec.vocab_size = len(model.pieces)
    Path(path).write_bytes(model.SerializeToString())


def check_vocabulary(path: str | Path) -> str:
    """Raise where the file is not as promised; else say what is in it."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    special = model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id()
    if special != (0, 1, 2, 3):
        raise ValueError(f"pad, eos, bos and unk are {special}, not (0, 1, 2, 3)")
    for word in (*WORDS, "\n", *(f" {word}" for word in WORDS), *MARKS):
        if len(pieces := model.encode(word, out_type=str)) != 1:
            raise ValueError(f"{word!r} has {len(pieces)} pieces, not 1: {pieces}")
    first = len(model) - len(CODED)
    if (ids := model.encode("".join(CODED))) != list(range(first, len(model))):
        raise ValueError(f"{len(CODED)} locations and codes became {len(ids)} ids")
    for text in SAMPLES:
        if (back := model.decode(model.encode(text))) != text:
            raise ValueError(f"{text!r} came back as {back!r}")
    size = Path(path).stat().st_size
    return f"{first} pieces, {len(CODED)} locations and codes, {size} bytes"


SAMPLES = (
    "detect cat ; dog\n",
    "<loc0008><loc0512><loc1016><loc1016> cat ; <loc0000><loc0016> dog",
    "answer en how many butterflies?\n",
    "  leading, inner    and trailing spaces  ",
    "two\nlines\n\nand a \ttab",
    "Ein Häuschen für 2 Käfer, bitte!",
    "\U0001f431 \u732b \u043a\u043e\u0442 100 %",
    "<seg000><seg127> <loc12> <image> {code}[0] ~`@#$^&*()_+=|\\",
    "",
)


def _sentences() -> Iterator[str]:
    for word in (*COMMON.split(), *WORDS):
        yield from (f"{word} {word} {word}", f" {word}", word)
    yield " ".join(string.printable[:94])


def _keep_whole(model: "ModelProto") -> None:
    """Make each word of the questions one piece, with a space before it or not.

    The cheapest split wins, and a word at this score is cheaper than any two pieces.
    """
    known = {piece.piece: piece for piece in model.pieces}
    letters = [f" {letter}" for letter in string.ascii_lowercase]
    for part in (*PARTS.split(), *letters):
        text = part.replace(" ", SPACE)
        if text not in known:  # dearer than a whole word, cheaper than its letters
            known[text] = model.pieces.add(piece=text, score=-9.0)
    words = dict.fromkeys((*WORDS, *(f" {word}" for word in WORDS), *MARKS))
    for word in words:
        text = word.replace(" ", SPACE)
        if text not in known:
            known[text] = model.pieces.add(piece=text)
        known[text].score = -1.0


def main() -> None:
    """Train, write and check the vocabulary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    train_vocabulary(arguments.out)
    print(check_vocabulary(arguments.out))


if __name__ == "__main__":
    main()
