"""What differs between two answers: known values, brute force, the kept bytes."""

from __future__ import annotations

from math import log, log2

import numpy as np
import pytest

from vlm.ui import difference
from vlm.ui.store import pack, unpack


def divergence(p: list[float], q: list[float]) -> float:
    """Jensen-Shannon by its definition in entropies, number by number."""

    def entropy(values: list[float]) -> float:
        return -sum(v * log2(v) for v in values if v > 0)

    middle = [(a + b) / 2 for a, b in zip(p, q)]
    return entropy(middle) - (entropy(p) + entropy(q)) / 2


def test_the_divergence_of_the_same_is_0_and_of_what_nowhere_meets_1():
    p = np.array([0.2, 0.3, 0.5, 0, 0])
    assert difference.jensen_shannon(p, p) == 0
    assert difference.jensen_shannon(p, np.array([0, 0, 0, 0.9, 0.1])) == 1
    # Half of q lies where p does: 1/2 (log2 4/3) + 1/2 (1/2 log2 2/3 + 1/2 log2 2)
    half = difference.jensen_shannon(np.array([1.0, 0]), np.array([0.5, 0.5]))
    assert half == pytest.approx(0.311278, abs=1e-6)


def test_the_divergence_is_that_of_entropies():
    dice = np.random.default_rng(0)
    p, q = dice.dirichlet(np.full(64, 0.2), (2, 50))
    p[:, :20] = 0  # zeros as in attention that was rounded to bytes
    p /= p.sum(-1, keepdims=True)
    found = difference.jensen_shannon(p, q)
    expected = [divergence(list(a), list(b)) for a, b in zip(p, q)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(difference.jensen_shannon(q, p), found, atol=1e-12)


def test_the_divergence_renormalises_and_takes_nothing_for_even():
    p, q = np.array([1.0, 3, 4]), np.array([5.0, 1, 2])
    same = difference.jensen_shannon(p, q)
    assert difference.jensen_shannon(p / 100, q * 7) == pytest.approx(same)
    even = difference.jensen_shannon(np.ones(3), q)
    assert difference.jensen_shannon(np.zeros(3), q) == pytest.approx(even)


def test_attention_is_set_apart_layer_by_layer_over_the_mean_of_heads():
    a, b = np.random.default_rng(1).random((2, 3, 4, 5, 6))
    b[1] = 0.01 * a[1, ::-1]  # heads in another order, less on the image: the same mean
    found = difference.attention(a, b)
    assert found[1] == pytest.approx(0, abs=1e-12)
    means = [x.mean(1).reshape(3, -1) for x in (a, b)]
    for layer in (0, 2):
        p, q = (mean[layer] / mean[layer].sum() for mean in means)
        assert found[layer] == pytest.approx(divergence(list(p), list(q)))


def test_attention_that_hardly_is_on_the_image_is_not_compared():
    a, b = np.random.default_rng(3).random((2, 3, 4, 5, 6))
    for maps, layer in ((a, 0), (b, 2)):
        maps[layer] *= 0.0009 / maps[layer].mean(0).sum()
    assert list(np.isnan(difference.attention(a, b))) == [True, False, True]


def test_attention_survives_the_store_to_a_thousandth_of_a_bit():
    maps = np.random.default_rng(2).dirichlet(np.full(64, 0.3), (2, 3, 4))
    maps = maps.reshape(2, 3, 4, 8, 8).astype(np.float32) * 0.3
    shares = np.full((3, 4, 4), 0.25, np.float32)
    kept = [unpack(pack(each, shares), (3, 4, 8, 8))[0] for each in maps]
    exact = difference.attention(*maps)
    np.testing.assert_allclose(difference.attention(*kept), exact, atol=1e-3)


def test_words_of_both_stand_in_one_row_and_give_both_texts_back():
    a, b = "two boats and a fish", "two penguins and a big fish"
    row = difference.words(a, b)
    assert [(word["text"].strip(), word["side"]) for word in row] == [
        ("two", "both"),
        ("boats", "a"),
        ("penguins", "b"),
        ("and", "both"),
        ("a", "both"),
        ("big", "b"),
        ("fish", "both"),
    ]
    for text, other in ((a, "b"), (b, "a")):
        assert "".join(w["text"] for w in row if w["side"] != other) == text


def test_places_are_words_of_their_own():
    row = difference.words("<loc0001><loc0002> cat", "<loc0001><loc0003> cat")
    assert [word["text"] for word in row if word["side"] == "both"] == [
        "<loc0001>",
        " cat",
    ]
    assert difference.words("", "") == []
    assert difference.words("a<b", "a<b")[1]["text"] == "<"


def thing(label: str, *box: float | None) -> dict:
    return {"label": label, "box": list(box)}


def test_boxes_of_one_label_are_paired_by_the_greatest_overlap():
    a = [
        thing("cat", 0, 0, 10, 10),
        thing("cat", 50, 50, 60, 60),
        thing("dog", 0, 0, 10, 10),
    ]
    b = [
        thing("cat", 52, 50, 62, 60),  # 8 x 10 of 12 x 10: 2/3
        thing("cat", 0, 0, 10, 5),  # a half
        thing("cat", 50, 50, 60, 60),  # the same as A's second
        thing("bird", 0, 0, 10, 10),
    ]
    found = difference.boxes(a, b, [(100, 100)] * 2)
    assert found["pairs"] == [
        {"label": "cat", "a": 1, "b": 2, "iou": 1.0},
        {"label": "cat", "a": 0, "b": 1, "iou": 0.5},
    ]
    assert found["a"] == [{"number": 2, "label": "dog"}]
    assert [each["number"] for each in found["b"]] == [0, 3]


def test_boxes_are_shares_of_their_pictures_and_those_apart_or_cut_have_no_partner():
    a, b = [thing("cat", 10, 20, 30, 40)], [thing("cat", 20, 10, 60, 20)]
    (pair,) = difference.boxes(a, b, [(100, 100), (200, 50)])["pairs"]
    assert pair["iou"] == 1
    for other in (thing("cat", 50, 50, 60, 60), thing("cat", 10, 20, 30, None)):
        found = difference.boxes(a, [other], [(100, 100)] * 2)
        assert found["pairs"] == [] and len(found["a"]) == len(found["b"]) == 1


def test_likelihood_is_told_in_plain_words():
    a = {"a": -1.0, "b": -2.0 - log(40)}
    b = {"a": -1.0 + log(1.5), "b": -2.0}
    assert difference.in_words(a, b, same=False) == [
        "B finds A’s answer 40 times less likely than its own.",
        "A finds B’s answer 1.5 times more likely than its own.",
    ]
    same = {"a": -1.0, "b": -1.01}
    (told,) = difference.in_words(same, same, same=True)
    assert told == "Both say the same. B finds it as likely as A does."
    far = {"a": 0.0, "b": -500.0}
    assert "more than a million times less" in difference.in_words(far, a, False)[0]
    thousands = {"a": 0.0, "b": -2.0 - log(12_345)}
    assert " 12,000 times less" in difference.in_words(thousands, b, False)[0]
