"""vlm.grounding on worked examples, and on any tokens whatever."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.grounding import Object, bin_of, mask_tokens, objects

SIZE = (2048, 1024)  # W, H: one bin is 2 pixels wide and 1 high


@dataclass(frozen=True)
class Said:
    """A step as the engine makes them, as far as grounding looks."""

    index: int
    text: str
    probability: float = 1.0
    loc: int | None = None
    seg: int | None = None
    bin_probability: float | None = None


def said(answer: str) -> list[Said]:
    """Steps of an answer: loc and seg as tokens, all else a token per word."""
    steps = []
    for text in re.findall(
        r"<loc\d{4}>|<seg\d{3}>|\s*(?:[^<\s;]|<(?!loc|seg))+|\s*;|\s+", answer
    ):
        loc = int(text[4:8]) if text.startswith("<loc") else None
        seg = int(text[4:7]) if text.startswith("<seg") else None
        bin = None if loc is None else 1.0
        steps.append(Said(len(steps), text, 1.0, loc, seg, bin))
    assert "".join(step.text for step in steps) == answer
    return steps


def found(answer: str) -> list[tuple[str, tuple]]:
    return [(thing.label, thing.box) for thing in objects(said(answer), SIZE)]


BOX = "<loc0100><loc0200><loc0300><loc0400>"
PIXELS = (400, 100, 800, 300)  # x1, y1, x2, y2
CODES = "".join(f"<seg{n:03d}>" for n in range(16))


def test_a_box_may_be_read_as_the_evaluators_do():
    said_so = said("<loc0000><loc0341><loc0682><loc1023> cat")
    (thing,) = objects(said_so, (3069, 1023), parts=1023)
    assert thing.box == pytest.approx((1023, 0, 3069, 682))


def test_a_box_is_y1_x1_y2_x2_in_parts_of_1024_of_the_side():
    (thing,) = objects(said(f"{BOX} cat"), SIZE)
    assert thing == Object("cat", PIXELS, None, 1.0, (0, 1, 2, 3, 4))
    assert thing.complete and thing.valid
    (thing,) = objects(said("<loc0000><loc0000><loc1023><loc1023> all"), (1024, 512))
    assert thing.box == (0, 0, 1023, 511.5)


def test_objects_are_separated_by_semicolons():
    assert found(f"{BOX} cat ; {BOX} black dog ;{BOX}bird") == [
        ("cat", PIXELS),
        ("black dog", PIXELS),
        ("bird", PIXELS),
    ]


def test_each_object_knows_its_tokens_and_the_separator_is_in_none():
    steps = said(f"{BOX} black cat ; {BOX} dog")
    assert [thing.tokens for thing in objects(steps, SIZE)] == [
        (0, 1, 2, 3, 4, 5),
        (8, 9, 10, 11, 12),
    ]
    assert [step.text for step in steps[6:8]] == [" ;", " "]


def test_a_token_that_holds_a_semicolon_ends_the_label_inside_it():
    steps = [*said(BOX), Said(4, " cat; do"), Said(5, "g")]
    assert [thing.label for thing in objects(steps, SIZE)] == ["cat"]
    assert objects(steps, SIZE)[0].tokens == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("text", ["", "no objects", "cat ; dog", CODES, ";", " "])
def test_text_without_a_box_is_no_object(text):
    assert found(text) == []


def test_text_before_a_box_belongs_to_no_object():
    assert found(f"I see {BOX} cat") == [("cat", PIXELS)]
    assert found(f"{BOX} cat ; also {BOX} dog") == [("cat", PIXELS), ("dog", PIXELS)]


def test_a_box_grows_coordinate_by_coordinate():
    steps = said(f"{BOX} cat")
    assert [objects(steps[:n], SIZE)[0].box for n in range(1, 5)] == [
        (None, 100, None, None),
        (400, 100, None, None),
        (400, 100, None, 300),
        PIXELS,
    ]
    complete = [objects(steps[:n], SIZE)[0].complete for n in range(1, 5)]
    assert complete == [False, False, False, True]
    assert not objects(steps[:3], SIZE)[0].valid


def test_a_box_that_is_cut_short_stays_so():
    cut = ("cat", (400, 100, None, None))
    assert found(f"<loc0100><loc0200> cat ; {BOX} dog") == [cut, ("dog", PIXELS)]
    # The run was broken, so what follows is the next box and not the rest of this.
    assert found(f"<loc0100><loc0200> cat{BOX} dog") == [cut, ("dog", PIXELS)]
    assert not objects(said("<loc0100><loc0200> cat"), SIZE)[0].complete


def test_a_fifth_location_starts_another_object():
    assert found(BOX + "<loc0512> cat") == [
        ("", PIXELS),
        ("cat", (None, 512, None, None)),
    ]
    assert found(f"{BOX}{BOX}") == [("", PIXELS)] * 2


def test_a_box_after_a_label_needs_no_semicolon():
    assert found(f"{BOX} cat {BOX} dog") == [("cat", PIXELS), ("dog", PIXELS)]


@pytest.mark.parametrize(
    "box", ["0300 0200 0100 0400", "0100 0400 0300 0200", "5 5 5 5"]
)
def test_inverted_and_empty_boxes_are_kept_and_not_valid(box):
    answer = "".join(f"<loc{int(n):04d}>" for n in box.split()) + " cat"
    (thing,) = objects(said(answer), SIZE)
    y1, x1, y2, x2 = map(int, box.split())
    assert thing.box == (2 * x1, y1, 2 * x2, y2)
    assert thing.complete and not thing.valid


def test_what_only_looks_like_a_location_is_label():
    spelled = [Said(i, c) for i, c in enumerate("<loc0100>" * 4)]
    assert objects(spelled, SIZE) == []
    steps = [*said(BOX), Said(4, " <loc0512>")]
    assert objects(steps, SIZE)[0].label == "<loc0512>"


def test_characters_that_come_in_bytes_keep_their_tokens():
    steps = [*said(BOX), Said(4, "", 0.5), Said(5, "", 0.5), Said(6, "日", 0.5)]
    (thing,) = objects(steps, SIZE)
    assert (thing.label, thing.tokens[4:]) == ("日", (4, 5, 6))
    assert thing.confidence == pytest.approx(0.125)


def test_sixteen_codes_are_a_mask():
    asked = []

    def masks(codes: tuple[int, ...]) -> np.ndarray:
        asked.append(codes)
        return np.full((64, 64), 0.5, np.float32)

    steps = said(f"{BOX}{CODES} cat ; {BOX} dog")
    cat, dog = objects(steps, SIZE, masks=masks)
    assert asked == [tuple(range(16))] and cat.codes == tuple(range(16))
    assert cat.mask.shape == (64, 64) and cat.label == "cat" and cat.complete
    assert cat.tokens == tuple(range(21))
    assert (dog.mask, dog.codes) == (None, ())
    without = objects(steps, SIZE)[0]
    assert without.mask is None and without.codes == tuple(range(16)) and without == cat


def test_too_few_codes_are_no_mask():
    def masks(codes: tuple[int, ...]) -> np.ndarray:
        raise AssertionError(f"asked for a mask of {len(codes)} codes")

    (thing,) = objects(said(BOX + CODES[: 15 * 8] + " cat"), SIZE, masks=masks)
    assert thing.mask is None and thing.codes == tuple(range(15))
    assert thing.label == "cat" and not thing.complete and thing.valid


@pytest.mark.parametrize(
    "answer",
    [f"{BOX}{CODES}<seg099> cat", f"{BOX}{CODES} cat<seg099>"],
)
def test_codes_out_of_place_belong_to_no_object(answer):
    (thing,) = objects(said(answer), SIZE)
    assert thing.codes == tuple(range(16)) and thing.label == "cat"
    assert "<seg099>" not in {said(answer)[i].text for i in thing.tokens}
    (thing,) = objects(said(f"<loc0100><loc0200>{CODES} cat"), SIZE)
    assert (thing.codes, thing.tokens, thing.label) == ((), (0, 1, 18), "cat")


def test_confidence_is_the_mean_coordinate_times_the_label():
    steps = [
        Said(0, "<loc0100>", 0.1, loc=100, bin_probability=0.9),
        Said(1, "<loc0200>", 0.1, loc=200, bin_probability=0.8),
        Said(2, "<loc0300>", 0.1, loc=300, bin_probability=0.5),
        Said(3, "<loc0400>", 0.1, loc=400, bin_probability=0.4),
        Said(4, " black", 0.7),
        Said(5, " cat", 0.6),
        Said(6, " ;", 0.01),
        Said(7, "<loc0001>", 0.3, loc=1),
    ]
    first = [objects(steps[:n], SIZE)[0].confidence for n in range(1, 8)]
    assert first == pytest.approx(
        [
            0.9,
            (0.9 * 0.8) ** (1 / 2),
            (0.9 * 0.8 * 0.5) ** (1 / 3),
            (0.9 * 0.8 * 0.5 * 0.4) ** (1 / 4),
            0.144**0.25 * 0.7,
            0.144**0.25 * 0.7 * 0.6,
            0.144**0.25 * 0.7 * 0.6,
        ]
    )
    # Without a probability among the bins, that among all tokens stands in.
    assert objects(steps, SIZE)[1].confidence == pytest.approx(0.3)


def anything() -> st.SearchStrategy[list[Said]]:
    probability = st.floats(0, 1)
    loc = st.builds(
        lambda n, p, q: (f"<loc{n:04d}>", p, n, None, q),
        st.integers(0, 1023),
        probability,
        st.none() | probability,
    )
    seg = st.builds(
        lambda n, p: (f"<seg{n:03d}>", p, None, n, None),
        st.integers(0, 127),
        probability,
    )
    texts = st.sampled_from(
        [" cat", "dog", "", " ", " ;", ";", "; a", "b ;", "<loc0001>"]
    )
    word = st.builds(
        lambda t, p: (t, p, None, None, None), texts | st.text(max_size=5), probability
    )
    run = st.lists(loc, min_size=3, max_size=5) | st.lists(
        seg, min_size=15, max_size=17
    )
    parts = st.lists(
        run | word.map(lambda one: [one]) | loc.map(lambda one: [one]), max_size=12
    )
    return parts.map(
        lambda parts: [Said(i, *s) for i, s in enumerate(s for p in parts for s in p)]
    )


@settings(deadline=None)
@given(anything())
def test_nothing_that_a_model_says_raises(steps):
    for thing in objects(steps, SIZE, masks=lambda codes: np.zeros((64, 64))):
        assert 0 <= thing.confidence <= 1
        assert (thing.mask is not None) == (len(thing.codes) == 16)
        assert thing.tokens == tuple(sorted(set(thing.tokens)))


@settings(deadline=None)
@given(anything())
def test_what_is_known_of_an_object_never_changes(steps):
    before = []
    for count in range(len(steps) + 1):
        now = objects(steps[:count], SIZE)
        assert len(now) >= len(before)
        for old, fresh in zip(before, now, strict=False):
            pairs = zip(old.box, fresh.box, strict=True)
            assert all(a == b for a, b in pairs if a is not None)
            assert fresh.label.startswith(old.label)
            assert fresh.tokens[: len(old.tokens)] == old.tokens
            assert fresh.codes[: len(old.codes)] == old.codes
        before = now


@settings(deadline=None)
@given(anything())
def test_objects_are_those_of_a_parser_by_pattern(steps):
    """The grammar as a regular expression over one letter per token."""
    if any(";" in step.text and step.text != ";" for step in steps):
        steps = [s for s in steps if ";" not in s.text or s.text == ";"]
    kind = "".join(
        "L"
        if s.loc is not None
        else "S"
        if s.seg is not None
        else s.text == ";" and ";" or "w"
        for s in steps
    )
    expected = []
    for match in re.finditer(
        r"(?P<box>LLLL|L{1,3})(?P<codes>S*)(?P<rest>[^L;]*)", kind
    ):
        locs = steps[match.start("box") : match.end("box")]
        codes = steps[match.start("codes") : match.end("codes")]
        rest = steps[match.start("rest") : match.end("rest")]
        y1, x1, y2, x2 = [s.loc for s in locs] + [None] * (4 - len(locs))
        label = "".join(s.text for s in rest if s.seg is None).strip()
        box = tuple(
            None if n is None else n * scale
            for n, scale in ((x1, 2), (y1, 1), (x2, 2), (y2, 1))
        )
        kept = tuple(s.seg for s in codes[:16]) if len(locs) == 4 else ()
        expected.append((label, box, kept))
    assert [(o.label, o.box, o.codes) for o in objects(steps, SIZE)] == expected


# --- from a mask to tokens -----------------------------------------------------------


class Lossless:
    """Codes that stand for the very mask that was encoded."""

    def __init__(self) -> None:
        self.mask = np.zeros((64, 64), np.float32)

    def encode(self, mask: np.ndarray) -> tuple[int, ...]:
        self.mask = mask
        return tuple(range(16))

    def decode(self, codes: tuple[int, ...]) -> np.ndarray:
        assert codes == tuple(range(16))
        return self.mask


def a_leaf(size: tuple[int, int], edges: tuple[float, ...]) -> np.ndarray:
    """Half of an ellipse, like in no two directions; edges x1, y1, x2, y2 as shares."""
    (width, height), (x1, y1, x2, y2) = size, edges
    y, x = (np.mgrid[:height, :width] + 0.5) / np.reshape([height, width], (2, 1, 1))
    across, down = (x - x1) / (x2 - x1), (y - y1) / (y2 - y1)
    inside = (2 * across - 1) ** 2 + (2 * down - 1) ** 2 < 1
    return inside & (across < 1.1 - 0.6 * down)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of all pixels, one by one."""
    there = [(x, y) for y, row in enumerate(mask) for x, seen in enumerate(row) if seen]
    xs, ys = zip(*there)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def laid(thing: Object, size: tuple[int, int]) -> np.ndarray:
    """The mask of an object over the picture: each pixel asks for its nearest entry."""
    x1, y1, x2, y2 = thing.box
    columns = ((np.arange(size[0]) + 0.5 - x1) / (x2 - x1) * 64).astype(int)
    rows = ((np.arange(size[1]) + 0.5 - y1) / (y2 - y1) * 64).astype(int)
    inside = [(0 <= at) & (at < 64) for at in (rows, columns)]
    picked = thing.mask[np.ix_(rows.clip(0, 63), columns.clip(0, 63))] >= 0.5
    return picked & np.outer(*inside)


def shared(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("parts", [1024, 1023])
@pytest.mark.parametrize(
    ("size", "edges"),
    [
        ((640, 480), (0.11, 0.32, 0.57, 0.81)),
        ((301, 777), (0.0, 0.0, 0.4, 0.2)),
        ((1500, 200), (0.62, 0.3, 1.0, 1.0)),
        ((90, 70), (0.4, 0.05, 0.6, 0.95)),
    ],
)
def test_the_tokens_of_a_mask_give_back_its_box_and_the_mask(size, edges, parts):
    codes, mask = Lossless(), a_leaf(size, edges)
    text = mask_tokens(mask, codes.encode, parts=parts)
    steps = said(f"{text} leaf")
    (thing,) = objects(steps, size, masks=codes.decode, parts=parts)
    assert thing.label == "leaf" and thing.complete and thing.valid
    told = [step.loc for step in steps[:4]]
    x1, y1, x2, y2 = (edge / size[i % 2] for i, edge in enumerate(bounds(mask)))
    known = [
        min(range(1024), key=lambda bin: abs(bin / parts - share))
        for share in (y1, x1, y2, x2)
    ]
    assert told == known
    assert shared(laid(thing, size), mask) > 0.96


def test_the_way_back_is_the_one_that_is_asked_for():
    mask, codes = np.zeros((1023, 1023), bool), Lossless()
    mask[341:682, 682:1023] = True
    locs = {parts: mask_tokens(mask, codes.encode, parts=parts)[:36] for parts in PARTS}
    assert locs[1023] == "<loc0341><loc0682><loc0682><loc1023>"  # round(x * 1023)
    assert locs[1024] == "<loc0341><loc0683><loc0683><loc1023>"  # 683 / 1024 is nearest


PARTS = (1024, 1023)


@given(
    st.integers(1, 3000), st.integers(0, 2999), st.sampled_from(PARTS), st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_the_thinnest_mask_has_a_box_and_is_not_lost(side, at, parts, banded):
    mask, codes = np.zeros((3, side), bool), Lossless()
    mask[1, at % side] = True
    text = mask_tokens(mask, codes.encode, parts=parts, band=16 if banded else 1)
    (thing,) = objects(said(text), (side, 3), masks=codes.decode, parts=parts)
    assert thing.valid
    assert thing.mask.max() >= 0.5


def test_places_can_be_told_in_bands_and_the_mask_stays_where_it_is():
    codes, size = Lossless(), (640, 480)
    mask = a_leaf(size, (0.117, 0.32, 0.573, 0.81))
    text = mask_tokens(mask, codes.encode, band=16)
    steps = said(text)
    assert [step.loc % 16 for step in steps[:4]] == [8] * 4
    (thing,) = objects(steps, size, masks=codes.decode)
    known = np.divide(bounds(mask), [*size, *size])
    assert np.divide(thing.box, [*size, *size]) == pytest.approx(known, abs=8.5 / 1024)
    cut = shared(laid(thing, size), mask)
    assert cut > 0.93
    tight = mask[slice(*bounds(mask)[1::2]), slice(*bounds(mask)[::2])]
    codes.mask = np.asarray(tight)[
        np.ix_(
            *(np.linspace(0, side - 1, 64).round().astype(int) for side in tight.shape)
        )
    ].astype(np.float32)
    (stretched,) = objects(steps, size, masks=codes.decode)
    assert shared(laid(stretched, size), mask) < cut - 0.01


def test_a_band_is_told_by_its_middle():
    edges = {0.0: 8, 15.4 / 1024: 8, 16 / 1024: 24, 0.5: 520, 1.0: 1016}
    assert {share: bin_of(share, band=16) for share in edges} == edges
    assert [bin_of(share) for share in (0.0, 0.25, 1.0)] == [0, 256, 1023]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 5), bool), "nothing is in the mask"),
        (np.zeros((0, 5), bool), "nothing is in the mask"),
        (np.ones((4, 5), np.float32), r"not float32 \[4, 5\]; write `mask > 0.5`"),
        (np.ones((4, 5, 3), bool), r"not bool \[4, 5, 3\]"),
    ],
)
def test_what_is_no_mask_of_an_image_is_an_error(mask, message):
    with pytest.raises(ValueError, match=message):
        mask_tokens(mask, Lossless().encode)
