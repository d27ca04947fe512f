"""A small vocabulary with the structure of PaliGemma's own.

Ids 0 to 3 are pad, eos, bos and unk; runs of line breaks and of spaces are pieces;
bytes spell what no piece covers; the locations `<loc0000>` .. `<loc1023>` and the mask
codes `<seg000>` .. `<seg127>` have consecutive ids and come last.  `<image>` is not in
the file: as it stands for a picture and never for text, it takes the id after the last
piece.

Text is split by byte-pair encoding: the two neighbours that make the piece of the
highest score are joined, until no two make a piece.  transformers does the same from
this file, but takes the ids for the order.  So scores fall as ids rise.

    python -m vlm.tiny.vocabulary OUT

trains the model, writes it to OUT and checks it.
"""

import argparse
import io
import string
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from vlm.tiny.questions import WORDS

TRAINED = 840  # pieces from training, 256 of which are bytes
SPACE = "\u2581"  # how sentencepiece writes a space
# As transformers names them; their order is that of their ids.
CONTROL = ("pad", "eos", "bos", "unk")
# Of two, four, eight ... any number is made in the same way whether the longest are
# taken first (sentencepiece) or neighbours are joined (transformers).
RUNS = [mark * n for mark in ("\n", SPACE) for n in (1, 2, 4, 8, 16)]
RUNS.remove(SPACE)  # one space must join the word behind it
# Pieces that every question and answer is made of besides words, each kept whole.
MARKS = (" ;", ";", ",", "?", ".", *string.digits, *(f" {n}" for n in range(10)))
# The locations, then the codes of masks.
CODED = [f"<loc{n:04d}>" for n in range(1024)] + [f"<seg{n:03d}>" for n in range(128)]
WEIGHT = 100  # of a word of the questions over one that people may write
# What English words are made of, so that an unknown one falls into few pieces.
ENDINGS = "able ers est ful ght ing less ment ness sh tion"
# Other words that people write in prompts, for the trainer to choose from.
COMMON = """
about above all animal animals any around baby background bag beach bear bed before
behind below beside between bicycle big book both box boy bright building button camera
chair child children city clock close clothes cloud coat coffee colorful computer count
cow cut dark day desk different dinner door down drawing dress drink eat every face
family field find fire floor food football for forest from front fruit full game garden
giraffe girl glass glasses good grass ground group hair hand happy has have head holding
horse hot hotdog image inside into it its jumping kitchen knife lady lamp large laptop
light line list little long look lying made main man men middle moon more motorcycle
mountain near next night number object objects old on one open over people person phone
photo photograph picture plane plant plate playing please point rain road room round
running school sea sentence shape shirt shoe short show side sign sitting sky sleeping
small smiling snow some something square standing station store street sun sunny table
tall tell text that thing things this tiger to toy traffic train truck under up
vegetable visible walking wall watch water wearing who wild window with woman women
wooden word words world write written wrong year you young your zebra
"""


def train_vocabulary(path: str | Path) -> None:
    """Train the sentencepiece model and write it."""
    # Only training needs the protobuf package, to add pieces to what was trained.
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ModuleNotFoundError as error:
        need = "making a vocabulary needs protobuf: pip install protobuf"
        raise ModuleNotFoundError(need) from error

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=trained,
        model_type="bpe",
        vocab_size=TRAINED,
        byte_fallback=True,
        user_defined_symbols=["<mask>", *RUNS],
        character_coverage=1.0,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        **{f"{name}_id": id for id, name in enumerate(CONTROL)},
        **{f"{name}_piece": f"<{name}>" for name in CONTROL},
    )
    model = ModelProto.FromString(trained.getvalue())
    # A space joins its word when the word is whole: each costs one piece, and whether
    # a space stands before a word changes nothing else.
    spaced = dict.fromkeys(["", *WORDS, *(mark[1:] for mark in MARKS if " " in mark)])
    score = min(piece.score for piece in model.pieces)
    for place, word in enumerate(spaced, 1):
        model.pieces.add(piece=SPACE + word, score=score - place)
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
    "answer de was ist größer, der Elefant oder das Häuschen?\n",
    "  leading, inner    and trailing spaces  ",
    "two\nlines\n\nand a \ttab",
    "Ein Häuschen für 2 Käfer, bitte!",
    "\U0001f431 \u732b \u043a\u043e\u0442 100 %",
    "<seg000><seg127> <loc12> <image> {code}[0] ~`@#$^&*()_+=|\\",
    "",
)


def _sentences() -> Iterator[str]:
    """Characters, and words without a space.

    Those of the questions come so often that they become whole first; what is left of
    the vocabulary goes to what other words have in common.
    """
    yield from string.printable[:94]
    yield from [*COMMON.split(), *ENDINGS.split()]
    for word in dict.fromkeys(WORDS):
        yield from [word] * WEIGHT


def main() -> None:
    """Train, write and check the vocabulary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    train_vocabulary(arguments.out)
    print(check_vocabulary(arguments.out))


if __name__ == "__main__":
    main()
