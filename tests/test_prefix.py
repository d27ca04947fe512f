"""Image and prompt are read once for the same question, and never for another."""

from __future__ import annotations

import pytest
import torch
from engines import Pair, picture

import vlm
from vlm.kept import Kept
from vlm.prefix import prefix_bytes

PROMPT = "detect cat ; dog"
ANSWER = "a cat and a dog"


@pytest.fixture
def reads(both: Pair, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each pass over a whole prefix had, from an empty store on."""
    model, counts = both.engine.model, []
    states = model.states

    def counted(ids, features=None, **how):
        if features is not None:
            counts.append(ids.shape[1])
        return states(ids, features, **how)

    monkeypatch.setattr(model, "states", counted)
    monkeypatch.setattr(both.engine, "prefixes", Kept(64 << 20))
    return counts


def asked(engine: vlm.Engine, image, prompt: str = PROMPT, **how):
    """Steps and trace of a question."""
    trace = vlm.Trace()
    how = {"max_tokens": 6, "stop": (), "tap": trace, **how}
    return list(engine.stream(image, prompt, **how)), trace


def assert_same(one, other) -> None:
    (steps, trace), (again, replayed) = one, other
    assert [s.token for s in again] == [s.token for s in steps]
    for step, second in zip(steps, again):
        assert second.probability == pytest.approx(step.probability, abs=1e-6)
        assert second.image_share == pytest.approx(step.image_share, abs=1e-6)
        rows = (t.answer_row(step.index) for t in (trace, replayed))
        torch.testing.assert_close(*rows, atol=1e-6, rtol=0)
    for position in range(trace.where.prompt):
        rows = (t.prompt_row(position) for t in (trace, replayed))
        torch.testing.assert_close(*rows, atol=0, rtol=0)


def test_the_same_question_is_not_read_again(both: Pair, reads) -> None:
    image = picture(3)
    first = asked(both.engine, image)
    assert_same(first, asked(both.engine, image.copy()))
    warm = vlm.Temperature(2.0, seed=1)
    asked(both.engine, image, sampler=warm, max_tokens=9)
    assert len(reads) == 1


def test_a_branch_goes_on_from_the_prefix_that_was_read(both: Pair, reads) -> None:
    image = picture(4)
    fresh = asked(both.engine, image, answer=ANSWER, echo=True)
    both.engine.prefixes.kept.clear()
    asked(both.engine, image)
    branch = asked(both.engine, image, answer=ANSWER, echo=True)
    assert len(reads) == 2
    assert_same(fresh, branch)
    with torch.no_grad():
        theirs = both.oracle(**both.inputs([image], PROMPT, ANSWER)).logits[0]
    chances = theirs.softmax(-1)
    forced = len(both.engine.ids("", ANSWER)) - len(both.engine.ids(""))
    for step in branch[0][: forced + 1]:
        row = chances[len(theirs) - 1 - forced + step.index]
        assert step.probability == pytest.approx(float(row[step.token]), abs=1e-5)


@pytest.mark.parametrize(
    ("image", "prompt"),
    [(5, "detect dog ; cat"), (5, "detect cat ; dogs"), (5, "detect cat"), (6, PROMPT)],
)
def test_another_question_never_goes_on_from_it(both, reads, image, prompt) -> None:
    alone = asked(both.engine, picture(image), prompt)
    both.engine.prefixes.kept.clear()
    asked(both.engine, picture(5), PROMPT)
    assert_same(alone, asked(both.engine, picture(image), prompt))
    assert len(reads) == 3


def test_the_order_of_images_makes_another_question(both: Pair, reads) -> None:
    one, two = picture(1), picture(2)
    forward = asked(both.engine, [one, two])[0][0]
    backward = asked(both.engine, [two, one])[0][0]
    assert len(reads) == 2
    assert forward.probability != pytest.approx(backward.probability, rel=1e-4)


@pytest.mark.parametrize("what", ["residual", "heads"])
def test_who_looks_at_more_than_attention_is_shown_a_pass(both, reads, what) -> None:
    class More(vlm.Tap):
        def __init__(self):
            self.rows = []

    def see(self, tower, layer, *tensors):
        self.rows.append(tensors[-1].shape[-2])

    setattr(More, what, see)
    image = picture(7)
    asked(both.engine, image)
    more = More()
    next(both.engine.stream(image, PROMPT, tap=more, stop=()))
    assert len(reads) == 2
    assert more.rows == [reads[0]] * both.engine.config.decoder.depth


def test_going_on_leaves_what_is_kept_as_it_was(both: Pair, reads) -> None:
    image = picture(8)
    asked(both.engine, image)
    (kept,) = both.engine.prefixes.kept.values()
    before = [t.clone() for t in (*kept.cache.keys, *kept.cache.values)]
    both_at_once = [
        both.engine.stream(image, PROMPT, answer=text, max_tokens=5, stop=())
        for text in ("", ANSWER)
    ]
    assert all(zip(*both_at_once))
    assert kept.cache.length == kept.cache.capacity == reads[0]
    for tensor, was in zip((*kept.cache.keys, *kept.cache.values), before):
        assert torch.equal(tensor, was)


def test_what_is_kept_is_as_large_as_foretold(both: Pair, reads) -> None:
    asked(both.engine, picture(9))
    (kept,) = both.engine.prefixes.kept.values()
    foretold = prefix_bytes(both.engine.config.decoder, reads[0], 4)
    assert kept.nbytes == foretold + kept.logits.nbytes


def test_a_prefix_too_large_to_keep_is_read_each_time(both: Pair, reads) -> None:
    engine = both.engine
    positions = engine.config.vision.patches + len(engine.ids(PROMPT))
    size = prefix_bytes(engine.config.decoder, positions, 4)
    engine.prefixes.limit = size - 1
    first = asked(both.engine, picture(10))
    assert_same(first, asked(both.engine, picture(10)))
    assert len(reads) == 2
    assert not both.engine.prefixes.kept


def test_what_is_too_large_drives_nothing_out() -> None:
    kept = Kept(limit=100)
    kept.put("small", torch.zeros(10))
    kept.put("large", torch.zeros(26))
    assert list(kept.kept) == ["small"]


def test_the_last_layer_works_for_the_last_row_only(both: Pair, reads) -> None:
    rows = []
    last = both.engine.model.decoder.blocks[-1]
    hook = last.mlp.register_forward_pre_hook(
        lambda module, given: rows.append(given[0].shape[1])
    )
    with hook:
        asked(both.engine, picture(11), max_tokens=1)
    assert rows == [1]
