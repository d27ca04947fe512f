"""The engine against transformers, and what it promises to those who call it."""

from __future__ import annotations

import gc
import weakref
from itertools import islice

import numpy as np
import pytest
import torch
from engines import Pair, picture

import vlm
from vlm.kept import Kept
from vlm.samplers import BLOCK, Sampler, likeliest

PROMPT = "detect cat ; dog"


def greedy_ids(pair: Pair, images, prompt: str, answer: str = "", count: int = 24):
    """transformers' own greedy continuation, never ended."""
    inputs = pair.inputs(images, prompt, answer)
    made = pair.oracle.generate(
        **inputs, max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return made[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_stream_gives_transformers_greedy_ids(both: Pair) -> None:
    image = picture(5)
    steps = both.engine.stream(image, PROMPT, max_tokens=24, stop=())
    ids = [step.token for step in steps]
    assert ids == greedy_ids(both, [image], PROMPT)
    assert len(set(ids)) > 3  # a model that repeats itself would prove little


def test_logits_are_those_of_one_teacher_forced_pass(both: Pair) -> None:
    image, answer = picture(1), "a cat and a dog"
    ours = both.engine.logits(image, PROMPT, answer)
    ids = both.engine.ids(PROMPT, answer)
    assert ours.shape == (len(ids), both.engine.config.decoder.vocabulary)
    with torch.no_grad():
        theirs = both.oracle(**both.inputs([image], PROMPT, answer)).logits[0]
    torch.testing.assert_close(ours, theirs[-len(ids) :], atol=5e-5, rtol=0)


def test_a_step_tells_the_models_own_probabilities(both: Pair) -> None:
    image = picture(2)
    sampler = vlm.Temperature(3.0, seed=5)  # must not show in the probabilities
    steps = list(
        both.engine.stream(image, PROMPT, sampler=sampler, max_tokens=6, stop=())
    )
    inputs = both.inputs([image], PROMPT)
    given = torch.tensor([[step.token for step in steps]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], given], dim=1)
    for name, fill in (("token_type_ids", 1), ("attention_mask", 1)):
        more = torch.full_like(given, fill)
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    with torch.no_grad():
        chances = both.oracle(**inputs).logits[0, -len(steps) - 1 : -1].softmax(-1)
    for step, row in zip(steps, chances):
        assert step.probability == pytest.approx(float(row[step.token]), abs=1e-5)
        best = row.topk(5)
        assert [c.probability for c in step.candidates] == pytest.approx(
            best.values.tolist(), abs=1e-5
        )
        assert step.candidates[0].token == int(row.argmax())


def test_a_loc_step_tells_its_share_among_the_bins(pairs: dict[str, Pair]) -> None:
    engine, image = pairs["gemma"].engine, picture(3)
    first = engine.tokenizer.first_loc
    (row,) = engine.logits(image, PROMPT)[-1:]
    within = row[first : first + 1024].softmax(-1)

    class Bin:
        def start(self):
            return lambda logits: first + 77

    (step,) = engine.stream(image, PROMPT, sampler=Bin(), max_tokens=1)
    assert (step.loc, step.seg) == (77, None)
    assert step.text == "<loc0077>"
    assert step.bin_probability == pytest.approx(float(within[77]), rel=1e-4)


def test_the_image_share_is_the_oracles_mean_over_layers_and_heads(both: Pair) -> None:
    image = picture(4)
    steps = list(both.engine.stream(image, PROMPT, max_tokens=1, stop=()))
    with torch.no_grad():
        seen = both.oracle(**both.inputs([image], PROMPT), output_attentions=True)
    patches = both.engine.config.vision.patches
    shares = [layer[0, :, -1, :patches].sum(-1).mean() for layer in seen.attentions]
    expected = float(torch.stack(shares).mean())
    assert steps[0].image_share == pytest.approx(expected, abs=2e-5)


def test_a_forced_start_is_gone_on_from(both: Pair) -> None:
    image, start = picture(5), "<loc0100><loc0200> cat"
    steps = list(both.engine.stream(image, PROMPT, answer=start, max_tokens=8, stop=()))
    forced = len(both.engine.tokenizer.answer_ids(start))
    assert [step.index for step in steps] == list(range(forced, forced + 8))
    expected = greedy_ids(both, [image], PROMPT, start, count=8)
    assert [step.token for step in steps] == expected


def test_several_images_are_read_in_order(both: Pair) -> None:
    images = [picture(6), picture(7)]
    steps = list(both.engine.stream(images, PROMPT, max_tokens=12, stop=()))
    assert [s.token for s in steps] == greedy_ids(both, images, PROMPT, count=12)
    swapped = both.engine.logits(images[::-1], PROMPT)
    assert not torch.allclose(swapped, both.engine.logits(images, PROMPT), atol=1e-3)


def test_any_id_of_the_list_ends_the_answer(pairs: dict[str, Pair]) -> None:
    engine, image = pairs["gemma"].engine, picture()
    free = [s.token for s in engine.stream(image, PROMPT, max_tokens=24, stop=())]
    end = free[9]
    cut = [s.token for s in engine.stream(image, PROMPT, stop=(-1, end))]
    assert cut == free[: free.index(end)]


def test_the_checkpoints_own_ending_ids_are_the_default(pairs) -> None:
    class Ending:
        def start(self):
            given = iter([5, 6, 1, 7])
            return lambda logits: next(given)

    stream = pairs["gemma"].engine.stream(picture(), PROMPT, sampler=Ending())
    assert [step.token for step in stream] == [5, 6]


def test_the_text_of_the_steps_is_the_answer(both: Pair) -> None:
    answer = both.engine.generate(picture(), PROMPT, max_tokens=16, stop=())
    decoded = both.engine.tokenizer.decode(step.token for step in answer.steps)
    assert answer.text == decoded
    assert answer.text.startswith("".join(step.text for step in answer.steps))
    assert answer.timing.tokens == 16
    assert 0 < answer.timing.first_token <= answer.timing.total


def test_closing_a_stream_frees_its_cache(pairs, monkeypatch) -> None:
    alive: list[weakref.ref] = []

    class Watched(vlm.cache.KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(vlm.cache, "KVCache", Watched)
    stream = pairs["gemma"].engine.stream(picture(), PROMPT, stop=())
    next(stream)
    assert alive[0]() is not None
    stream.close()
    gc.collect()
    assert alive[0]() is None


def test_the_tower_looks_once_per_image_content(pairs, monkeypatch) -> None:
    engine = pairs["gemma"].engine
    engine.features.kept.clear()
    looks = []
    tower = engine.model.vision.forward
    monkeypatch.setattr(
        engine.model.vision, "forward", lambda *a: looks.append(1) or tower(*a)
    )
    list(engine.stream(picture(8), PROMPT, max_tokens=5, stop=()))
    list(engine.stream(picture(8), "caption en", max_tokens=5, stop=()))
    assert len(looks) == 1
    list(engine.stream(picture(9), PROMPT, max_tokens=1, stop=()))
    assert len(looks) == 2


def test_kept_features_are_bounded_in_bytes() -> None:
    kept = Kept(limit=100)
    for name in "abc":
        kept.put(name, torch.zeros(10))  # 40 bytes
        kept.get("a")
    assert list(kept.kept) == ["c", "a"]


def test_two_requests_at_once_do_not_mix(pairs: dict[str, Pair]) -> None:
    engine = pairs["gemma2"].engine
    asked = [(picture(0), PROMPT), (picture(1), "caption en")]
    alone = [
        [s.token for s in engine.stream(*one, max_tokens=10, stop=())] for one in asked
    ]
    both = [engine.stream(*one, max_tokens=10, stop=()) for one in asked]
    mixed = [[a.token, b.token] for a, b in zip(*both)]
    assert [list(column) for column in zip(*mixed)] == alone


@pytest.mark.parametrize(
    ("image", "prompt", "how", "says"),
    [
        (None, PROMPT, {}, "PIL image"),
        ([], PROMPT, {}, "PIL image"),
        ("cat.jpg", PROMPT, {}, "PIL image"),
        (picture(), "  ", {}, "prompt is empty"),
        (picture(), PROMPT, {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_bad_questions_are_refused_with_advice(pairs, image, prompt, how, says) -> None:
    with pytest.raises(ValueError, match=says):
        pairs["gemma"].engine.stream(image, prompt, **how)


def test_a_model_may_write_image_tokens(pairs: dict[str, Pair]) -> None:
    engine = pairs["gemma"].engine

    class Images:
        def start(self):
            return lambda logits: engine.config.image_token

    steps = list(engine.stream(picture(), PROMPT, sampler=Images(), max_tokens=3))
    assert [step.text for step in steps] == ["<image>"] * 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_are_looked_at(pairs, mode: str) -> None:
    image = picture().convert(mode)
    engine = pairs["gemma"].engine
    seen = engine.logits(image, PROMPT)
    assert torch.equal(seen, engine.logits(image.convert("RGB"), PROMPT))
    other = picture(1).convert(mode)
    assert not torch.allclose(seen, engine.logits(other, PROMPT), atol=1e-3)


def test_describe_says_what_is_loaded(pairs: dict[str, Pair]) -> None:
    pair = pairs["gemma2"]
    told = pair.engine.describe()
    count = sum(p.numel() for p in pair.oracle.parameters())
    assert told["parameters"] == count
    assert (told["layers"], told["heads"], told["grid"]) == (4, 4, [4, 4])
    assert (told["device"], told["dtype"]) == ("cpu", "float32")


def test_load_says_what_it_is_doing(pairs: dict[str, Pair]) -> None:
    words: list[str] = []
    vlm.load(pairs["gemma"].folder, device="cpu", progress=words.append)
    assert any("weights" in line for line in words)


# --- samplers ------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def drawn(sampler: Sampler, count: int = 4000) -> torch.Tensor:
    """How often each token was drawn."""
    pick = sampler.start()
    tokens = torch.tensor([pick(LOGITS) for _ in range(count)])
    return torch.bincount(tokens, minlength=len(LOGITS)) / count


def test_temperature_draws_from_the_tempered_softmax() -> None:
    expected = (LOGITS / 0.7).softmax(-1)
    assert drawn(vlm.Temperature(0.7)).sub(expected).abs().max() < 0.03


def test_top_p_keeps_the_fewest_tokens_that_hold_p() -> None:
    chances = LOGITS.softmax(-1)  # .61 .22 .14 .03 .00
    for p, kept in ((0.5, 1), (0.62, 2), (0.9, 3), (1.0, 5)):
        expected = torch.where(torch.arange(5) < kept, chances, 0)
        expected = expected / expected.sum()
        assert drawn(vlm.TopP(p)).sub(expected).abs().max() < 0.03


def test_top_k_keeps_k() -> None:
    expected = (LOGITS[:2] / 2).softmax(-1)
    found = drawn(vlm.TopK(2, t=2.0))
    assert found[:2].sub(expected).abs().max() < 0.03
    assert found[2:].sum() == 0
    assert drawn(vlm.TopK(1), 20)[0] == 1


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 1, 100 * BLOCK])
@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("levels", [3, 1 << 20])  # few: many are as large as others
def test_the_likeliest_are_those_of_topk(size: int, count: int, levels: int) -> None:
    dice = torch.Generator().manual_seed(size + count)
    row = torch.randint(-levels, levels, (size,), generator=dice).float()
    row[row < 0] = -torch.inf  # as of tokens that are ruled out
    values, places = likeliest(row, count)
    assert torch.equal(values, row.topk(min(count, size)).values)
    assert torch.equal(row[places], values) and len(set(places.tolist())) == len(values)


def test_a_sampler_may_write_to_its_logits(pairs: dict[str, Pair]) -> None:
    class Another:
        """The most probable token but one, or one that was said."""

        def start(self):
            said: list[int] = []

            def pick(logits):
                logits[[*said, int(logits.argmax())]] = -torch.inf
                said.append(int(logits.argmax()))
                return said[-1]

            return pick

    engine = pairs["gemma"].engine
    how = {"max_tokens": 6, "stop": ()}

    def said(**sampler) -> list[int]:
        steps = engine.stream(picture(), "caption en", **sampler, **how)
        return [step.token for step in steps]

    before, others = said(), said(sampler=Another())
    assert len(set(others)) == 6 and others[0] != before[0]
    assert said() == before  # what is kept of the question is as it was


def test_a_seed_makes_an_answer_repeatable(pairs: dict[str, Pair]) -> None:
    def answer(seed: int) -> list[int]:
        how = {"sampler": vlm.Temperature(5.0, seed=seed), "stop": ()}
        stream = pairs["gemma"].engine.stream(picture(), PROMPT, **how)
        return [step.token for step in islice(stream, 12)]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: vlm.Temperature(0),
        lambda: vlm.TopP(0.0),
        lambda: vlm.TopP(1.5),
        lambda: vlm.TopP(0.9, t=-1),
        lambda: vlm.TopK(0),
    ],
)
def test_samplers_refuse_what_makes_no_sense(make) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_an_echoed_start_is_yielded_with_the_models_probabilities(both: Pair) -> None:
    engine, image, start = both.engine, picture(), "<loc0100> cat <loc0200>"
    ids = engine.ids("detect cat", start)
    forced = ids[len(engine.ids("detect cat")) :]
    chances = engine.logits(image, "detect cat", start).softmax(-1)
    steps = list(
        engine.stream(
            image, "detect cat", answer=start, echo=True, max_tokens=3, stop=()
        )
    )
    assert [step.index for step in steps] == list(range(len(forced) + 3))
    assert [step.token for step in steps[: len(forced)]] == forced
    first = len(ids) - len(forced) - 1  # this row predicts the first forced token
    for step in steps[: len(forced)]:
        expected = float(chances[first + step.index, step.token])
        assert step.probability == pytest.approx(expected, rel=1e-4)
    silent = engine.stream(image, "detect cat", answer=start, max_tokens=3, stop=())
    rest = [(step.index, step.token, step.image_share) for step in silent]
    assert rest == [(s.index, s.token, s.image_share) for s in steps[len(forced) :]]


def test_an_echoed_share_is_the_share_of_its_own_row(both: Pair) -> None:
    engine, image = both.engine, picture()
    said = engine.generate(image, "detect cat", max_tokens=5, stop=())
    ids = [step.token for step in said.steps]
    for step, read in zip(said.steps, engine.score(image, "detect cat", ids)):
        assert read.token == step.token
        assert read.probability == pytest.approx(step.probability, rel=1e-3)
        assert read.image_share == pytest.approx(step.image_share, rel=1e-3)


def test_a_start_of_ids_is_the_start_of_their_text(both: Pair) -> None:
    engine = both.engine
    ids = engine.ids("caption en", " cat")[len(engine.ids("caption en")) :]
    assert engine.ids("caption en", ids) == engine.ids("caption en", " cat")
    assert engine.score(picture(), "caption en", ()) == ()
    with pytest.raises(ValueError, match="none of the"):
        engine.ids("caption en", [10**9])


def test_bins_are_the_distribution_among_the_locs(both: Pair) -> None:
    engine, image = both.engine, picture()
    (step,) = engine.score(image, "detect cat", "<loc0100>")
    first = engine.tokenizer.first_loc
    logits = engine.logits(image, "detect cat")[-1, first : first + 1024]
    expected = logits.softmax(-1).numpy()
    np.testing.assert_allclose(step.bins, expected, rtol=1e-4, atol=1e-8)
    assert step.bin_probability == pytest.approx(float(expected[100]), rel=1e-4)
