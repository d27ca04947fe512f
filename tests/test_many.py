"""Many questions at once: against transformers, and against one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import Pair, picture
from PIL import Image

import vlm
from vlm.many import padded

PROMPTS = (
    "detect cat ; dog ; a very large penguin",
    "caption en",
    "answer en where is the cat?",
    "detect cat",
)


def asked() -> list[tuple[Image.Image, str]]:
    """Four prompts of different length about three images, one of them twice."""
    images = [picture(5), picture(6, (34, 50)), picture(7)]
    return list(zip([images[0], images[1], images[1], images[2]], PROMPTS))


def left_padded(pair: Pair, questions) -> dict[str, torch.Tensor]:
    """The questions in transformers' terms, in one batch."""
    one = [pair.inputs([image], prompt) for image, prompt in questions]
    length = max(each["input_ids"].shape[1] for each in one)

    def left(name: str, fill: int) -> torch.Tensor:
        rows = torch.full((len(one), length), fill)
        for row, each in zip(rows, one):
            row[length - each[name].shape[1] :] = each[name][0]
        return rows

    return {
        "input_ids": left("input_ids", pair.engine.config.pad),
        "attention_mask": left("attention_mask", 0),
        "token_type_ids": left("token_type_ids", 0),
        "pixel_values": torch.cat([each["pixel_values"] for each in one]),
    }


def test_a_batch_gives_transformers_own_left_padded_batch(both: Pair) -> None:
    questions, count = asked(), 20
    inputs = left_padded(both, questions)
    made = both.oracle.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ours = list(vlm.answers(both.engine, questions, max_tokens=count, stop=()))
    ids = [[step.token for step in answer.steps] for answer in ours]
    assert ids == made.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    assert len({token for row in ids for token in row}) > 12
    chances = torch.stack(made.logits, dim=1).softmax(-1)  # [B, T, V]
    for answer, rows in zip(ours, chances):
        for step, row in zip(answer.steps, rows):
            assert step.probability == pytest.approx(float(row[step.token]), abs=1e-5)


def test_the_heat_is_transformers_attention_on_each_rows_own_patches(
    both: Pair,
) -> None:
    questions, count = asked(), 6
    ours = list(vlm.answers(both.engine, questions, max_tokens=count, stop=()))
    inputs = left_padded(both, questions)
    length = inputs["input_ids"].shape[1]
    said = torch.tensor([[step.token for step in answer.steps] for answer in ours])
    for name, more in (
        ("input_ids", said),
        ("attention_mask", torch.ones_like(said)),
        ("token_type_ids", torch.ones_like(said)),
    ):
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    with torch.no_grad():
        layers = both.oracle(**inputs, output_attentions=True).attentions
    mean = torch.stack(layers).mean((0, 2))  # [B, S, S]
    patches = both.engine.config.vision.patches
    for answer, (_, prompt), rows in zip(ours, questions, mean):
        first = length - patches - len(both.engine.ids(prompt))
        seen = rows[length - 1 : -1, first : first + patches]
        heat, shares = answer.heat.ravel(), [s.image_share for s in answer.steps]
        np.testing.assert_allclose(heat, seen.mean(0).numpy(), atol=2e-5, rtol=0)
        assert shares == pytest.approx(seen.sum(-1).tolist(), abs=5e-5)


def test_it_equals_one_by_one_where_answers_end_at_different_places(
    both: Pair,
) -> None:
    engine, questions = both.engine, asked()
    free = [engine.generate(*one, max_tokens=24, stop=()) for one in questions]
    # Ids that end two of the answers early, at different places, and not all.
    ends = {free[0].steps[3].token, free[2].steps[9].token}
    alone = [engine.generate(*one, max_tokens=24, stop=ends) for one in questions]
    lengths = [len(answer.steps) for answer in alone]
    assert len(set(lengths)) >= 3 and max(lengths) == 24
    for batch in (1, 3, 4, 9):
        found = list(
            vlm.answers(engine, questions, batch=batch, max_tokens=24, stop=ends)
        )
        for one, other in zip(alone, found, strict=True):
            assert_alike(one, other)


def test_the_embedded_model_answers_alike_with_objects_and_masks() -> None:
    engine = vlm.load("assets/tiny", device="cpu")
    names = ("penguins", "kitchen", "meadow")
    images = [Image.open(f"assets/examples/{name}.webp") for name in names]
    prompts = ("segment penguin", "detect cup ; banana", "caption en")
    questions = list(zip(images, prompts))
    found = list(vlm.answers(engine, questions))
    for one, other in zip(questions, found, strict=True):
        assert_alike(engine.generate(*one), other)
    assert any(thing.mask is not None for thing in found[0].objects)


def test_a_sampler_draws_for_each_row_what_it_would_alone(both: Pair) -> None:
    questions, how = asked(), {"sampler": vlm.Temperature(0.8, seed=4)}
    how |= {"max_tokens": 8, "stop": ()}
    for one, answer in zip(questions, vlm.answers(both.engine, questions, **how)):
        alone = both.engine.generate(*one, **how)
        assert [s.token for s in answer.steps] == [s.token for s in alone.steps]


def test_an_answer_that_ends_at_once_is_empty(both: Pair) -> None:
    engine, (one, *_) = both.engine, asked()
    first = engine.generate(*one, max_tokens=1, stop=()).steps[0].token
    (answer,) = vlm.answers(engine, [one], stop=(first,))
    assert (answer.text, answer.steps, answer.objects) == ("", (), ())
    assert answer.timing.tokens == 0 and answer.timing.total > 0
    assert not answer.heat.any()


def test_a_shared_image_is_looked_at_once(both: Pair, monkeypatch) -> None:
    looked: list[int] = []
    tower = both.engine.model.vision.forward
    monkeypatch.setattr(
        both.engine.model.vision,
        "forward",
        lambda x, *rest: looked.append(len(x)) or tower(x, *rest),
    )
    list(vlm.answers(both.engine, asked(), max_tokens=1))
    assert looked == [3]


def test_padding_is_on_the_left() -> None:
    ids, valid = padded([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert valid.tolist() == [[True] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ("question", "how", "says"),
    [
        (("cat.jpg", "detect cat"), {}, "question 0 is about a str"),
        ((picture(), "  "), {}, "prompt of question 0 is empty"),
        ((picture(), "detect cat"), {"batch": 0}, "batch is 0"),
        ((picture(), "detect cat"), {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_bad_questions_are_refused_before_any_work(pairs, question, how, says) -> None:
    with pytest.raises(ValueError, match=says):
        vlm.answers(pairs["gemma"].engine, [question], **how)


def assert_alike(one: vlm.Answer, other: vlm.Answer) -> None:
    assert one.text == other.text
    assert [s.token for s in one.steps] == [s.token for s in other.steps]
    for a, b in zip(one.steps, other.steps, strict=True):
        assert a.text == b.text
        assert a.probability == pytest.approx(b.probability, abs=1e-4)
        assert a.image_share == pytest.approx(b.image_share, abs=1e-4)
    for a, b in zip(one.objects, other.objects, strict=True):
        assert a == replace(b, confidence=a.confidence)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
