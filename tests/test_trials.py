"""Tests of a token find what the probes give that they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import Pair, picture

from vlm.probes import (
    METHODS,
    TRIALS,
    Asked,
    Noise,
    activation_patching,
    deletion,
    insertion,
    knockout,
    logit_lens,
    occlusion,
    patches_in,
    random_order,
    rank_correlation,
    region_balance,
    sanity,
    shuffled,
)
from vlm.probes.methods import recorded
from vlm.probes.trials import MAX_POSITIONS, STEPS

PROMPT, ANSWER, INDEX = "detect cat ; dog", "<loc0593><loc0918> dog", 2
HEAT = torch.rand(4, 4, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def asked(both: Pair) -> Asked:
    answer = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    return Asked(both.engine, picture(4), PROMPT, answer)


def end(name: str, asked: Asked, index: int = INDEX, **options) -> dict:
    *_, last = TRIALS[name].run(asked, index, **options)
    assert last.done == last.of
    return last.found


def test_layer_by_layer_is_the_lens_and_the_balance(asked):
    found = end("layers", asked)
    lens = logit_lens(asked, INDEX, top=3, embedding=True)
    assert found["layers"] == [-1, 0, 1, 2, 3]
    assert found["probability"] == lens.probability.tolist()
    ids = [[piece["id"] for piece in pieces] for pieces in found["top"]]
    assert ids == lens.ids.tolist()
    piece = asked.engine.tokenizer.piece
    assert found["top"][0][0]["text"] == piece(ids[0][0])
    balance = region_balance(recorded(asked), INDEX)
    assert found["balance"] == [
        pytest.approx(row, abs=1e-6) for row in balance.tolist()
    ]


@pytest.mark.parametrize("rows", ["answer", "text", "all"])
def test_what_is_cut_changes_as_the_knockout_says(asked, rows):
    box = (0.0, 0.0, 0.6, 0.5)
    found = end("knockout", asked, heat=HEAT, box=box, rows=rows)
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, :2] = True
    hottest = HEAT == HEAT.max()  # a tenth of 16 is 1
    masks = {"box": inside, "others": ~inside, "hottest": hottest}
    assert [each["name"] for each in found["cuts"]] == list(masks)
    for each in found["cuts"]:
        mask = masks[each["name"]]
        assert each["count"] == int(mask.sum())
        change = knockout(asked, INDEX, patches=mask, rows=rows)
        assert each["change"] == pytest.approx(change, abs=1e-5)
        draws = []
        for seed in range(5):
            order = random_order(4, seed=seed).flatten()
            drawn = order >= order.sort().values[-each["count"]]
            draws.append(knockout(asked, INDEX, patches=drawn.view(4, 4), rows=rows))
        assert each["random"] == pytest.approx(np.mean(draws), abs=1e-5)
    changes = [each["change"] for each in found["cuts"]]
    assert len({round(change, 4) for change in changes}) == 3
    for layer, head in ((0, 1), (3, 0)):
        change = knockout(asked, INDEX, heads=[(layer, head)])
        assert found["heads"][layer][head] == pytest.approx(change, abs=1e-5)


def test_no_box_no_cut_of_it(asked):
    found = end("knockout", asked, heat=HEAT.tolist())
    assert [each["name"] for each in found["cuts"]] == ["hottest"]


def test_curves_are_those_of_the_map_and_of_a_random_order(asked):
    found = end("faithfulness", asked, heat=HEAT)
    for way, curve in (("deletion", deletion), ("insertion", insertion)):
        for name, heat in (("heat", HEAT), ("random", random_order(4))):
            known = curve(asked, INDEX, heat, steps=STEPS)
            assert found[way][name]["shares"] == list(known.shares)
            chances = found[way][name]["probabilities"]
            assert chances == pytest.approx(known.probabilities, rel=1e-5)
            assert found[way][name]["area"] == pytest.approx(known.area, rel=1e-5)


@pytest.mark.parametrize("index", [0, INDEX])
@pytest.mark.parametrize("spoilt", ["noise", "other"])
def test_what_is_put_back_mends_as_patching_says(asked, index, spoilt):
    other = picture(8) if spoilt == "other" else None
    found = end("patching", asked, index, layer=1, other=other)
    corrupt = asked.of(other) if other else Noise()
    last = ("answer", index - 1) if index else ("prompt", found_prompt(asked) - 1)
    for name, group in (("image", "image"), ("last", last)):
        known = activation_patching(asked, corrupt, index, axis="layer", at=group)
        layers, scores = zip(*known)
        assert found["layers"] == list(layers)
        assert found[name] == pytest.approx(scores, abs=1e-5)
    known = dict(activation_patching(asked, corrupt, index, axis="position", at=1))
    assert len(found["positions"]) == len(known)
    scores = [each["score"] for each in found["positions"]]
    assert scores == pytest.approx(list(known.values()), abs=1e-5)
    texts = [each["text"] for each in found["positions"]]
    assert "".join(texts[2:]).startswith("detect cat ; dog\n")
    clean = float(asked.log_probability(index).exp())
    assert found["clean"] == pytest.approx(clean, rel=1e-5)
    assert found["corrupt"] != pytest.approx(clean, rel=1e-3)


def found_prompt(asked: Asked) -> int:
    return len(asked.engine.ids(PROMPT))


def test_of_a_long_text_the_nearest_positions_are_tried(both: Pair):
    answer = tuple(both.engine.tokenizer.answer_ids("<loc0001>" * 60))
    asked = Asked(both.engine, picture(4), PROMPT, answer)
    news = TRIALS["patching"].run(asked, 59, layer=3)
    first = next(news)
    kinds = [each["kind"] for each in first.found["positions"]]
    assert kinds == ["image", "bos", *["answer"] * MAX_POSITIONS]
    assert first.of == len(kinds) + 2 * 5


def test_news_counts_passes_and_stays_what_it_was(asked):
    news = list(TRIALS["knockout"].run(asked, INDEX, heat=HEAT))
    assert [each.done for each in news] == list(range(1, news[0].of + 1))
    assert news[0].found["cuts"][0]["change"] is None
    assert news[1].found["cuts"][0]["change"] is not None
    assert news[1].found["heads"] == [[None] * 4] * 4


def test_what_no_test_can_be_of_is_refused(asked):
    wrong = torch.rand(3, 4)
    for name in ("knockout", "faithfulness"):
        with pytest.raises(ValueError, match="grid"):
            next(TRIALS[name].run(asked, INDEX, heat=wrong))
    with pytest.raises(ValueError, match="layer 4 of 4"):
        next(TRIALS["patching"].run(asked, INDEX, layer=4))
    with pytest.raises(ValueError, match="rows are"):
        next(TRIALS["knockout"].run(asked, INDEX, heat=HEAT, rows="none"))
    for name, options in (("layers", {}), ("patching", {"layer": 0})):
        with pytest.raises(ValueError, match="token 3 of 3"):
            next(TRIALS[name].run(asked, 3, **options))


def test_a_picture_that_is_asked_once_pushes_none_out(asked):
    engine = asked.engine
    engine.look(asked.image)
    kept = list(engine.features.kept)
    occlusion(asked, INDEX)
    end("faithfulness", asked, heat=HEAT)
    assert list(engine.features.kept) == kept
    engine.look(picture(77))
    assert len(engine.features.kept) == len(kept) + 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1, 1), [(row, column) for row in range(4) for column in range(4)]),
        ((0, 0, 0.375, 0.25), [(0, 0), (0, 1)]),  # half of the second
        ((0, 0, 0.37, 0.25), [(0, 0)]),
        ((0.3, 0.55, 0.35, 0.6), [(2, 1)]),  # inside one patch, and half of none
    ],
)
def test_patches_in_a_box_are_those_that_lie_half_in_it(box, expected):
    assert [tuple(each) for each in patches_in(box, 4).nonzero().tolist()] == expected


def test_each_way_is_set_beside_itself_on_shuffled_weights(asked):
    blind = replace(asked, engine=shuffled(asked.engine))
    found = end("shuffled", asked)["ways"]
    assert [each["name"] for each in found] == list(METHODS)
    for each in found:
        way = METHODS[each["name"]]
        own, other = (way.heat(model, [INDEX]) for model in (asked, blind))
        assert each["title"] == way.title
        assert each["own"] == [pytest.approx(row, rel=1e-4) for row in own.tolist()]
        rows = [pytest.approx(row, rel=1e-4) for row in other.tolist()]
        assert each["shuffled"] == rows != each["own"]
        assert each["alike"] == pytest.approx(rank_correlation(own, other), abs=1e-3)


def test_no_model_is_copied_that_is_too_large_for_it(asked, monkeypatch):
    monkeypatch.setattr(sanity, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"a second copy of the model, of 0\.\d GB"):
        end("shuffled", asked)
