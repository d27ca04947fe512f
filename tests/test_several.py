"""Several images in one question: transformers' own processor and model beside ours."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from engines import Pair, picture
from PIL import Image
from torch import Tensor
from transformers import GemmaTokenizer, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)

import vlm
from vlm.kept import Kept
from vlm.probes import (
    METHODS,
    TRIALS,
    Asked,
    Noise,
    activation_patching,
    covered,
    deletion,
    gradient_attention,
    image_attention,
    knockout,
    logit_lens,
    on_image,
    patch_lens,
    relevancy,
)
from vlm.probes.occlusion import GREY
from vlm.probes.tam import token_activation

PROMPT = "answer en how many cats are there?"
ANSWER = "<loc0593><loc0918> dog"
GRID, PATCHES = 4, 16
LOGITS = {"atol": 5e-5, "rtol": 0}
SOME = torch.zeros(GRID, GRID, dtype=torch.bool)
SOME[1, 2] = SOME[1, 3] = SOME[3, 0] = True


def pictures(count: int, size: tuple[int, int] = (28, 28)) -> list[Image.Image]:
    return [picture(20 + number, size) for number in range(count)]


def processed(pair: Pair, images: list[Image.Image], prompt: str, answer: str = ""):
    """What transformers makes of nested images, the answer's ids put behind."""
    look = SiglipImageProcessorPil(size={"height": 28, "width": 28}, resample=3)
    look.image_seq_length = PATCHES
    processor = PaliGemmaProcessor(look, GemmaTokenizer.from_pretrained(pair.folder))
    text = "<image>" * len(images) + prompt
    inputs = dict(processor(images=[images], text=[text], return_tensors="pt"))
    inputs.pop("labels", None)
    more = torch.tensor([pair.engine.tokenizer.answer_ids(answer)], dtype=torch.long)
    for name, added in (
        ("input_ids", more),
        ("token_type_ids", torch.ones_like(more)),
        ("attention_mask", torch.ones_like(more)),
    ):
        inputs[name] = torch.cat([inputs[name], added], dim=1)
    return inputs


@pytest.mark.parametrize("count", [1, 2, 3])
def test_logits_and_attention_are_transformers(both: Pair, count: int) -> None:
    images = pictures(count, (50, 34))
    inputs = processed(both, images, PROMPT, ANSWER)
    places = [both.engine.config.image_token] * (count * PATCHES)
    given = both.engine.ids(PROMPT, ANSWER)
    assert inputs["input_ids"][0].tolist() == places + given
    with torch.no_grad():
        theirs = both.oracle(**inputs, output_attentions=True)
    ours = both.engine.logits(images, PROMPT, ANSWER)
    torch.testing.assert_close(ours, theirs.logits[0, -len(given) :], **LOGITS)

    trace = vlm.Trace()
    how = {"answer": ANSWER, "max_tokens": 1, "stop": (), "tap": trace}
    (step,) = both.engine.stream(images, PROMPT, **how)
    rows = torch.stack(theirs.attentions)[:, 0, :, -1]  # [L, N, S]
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(trace.answer_row(step.index), rows, **close)
    for number, part in enumerate(rows.split(PATCHES, dim=-1)[:count]):
        found = image_attention(trace, step.index, image=number)
        assert found.shape == (*rows.shape[:2], GRID, GRID)
        torch.testing.assert_close(found.flatten(2), part, **close)
    with pytest.raises(ValueError, match=f"image {count} of {count} was asked for"):
        image_attention(trace, step.index, image=count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_greedy_answers_are_transformers(both: Pair, count: int) -> None:
    images = pictures(count, (50, 34))
    inputs = processed(both, images, PROMPT)
    how = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    theirs = both.oracle.generate(**inputs, **how)[0, inputs["input_ids"].shape[1] :]
    steps = list(both.engine.stream(images, PROMPT, max_tokens=16, stop=()))
    assert [step.token for step in steps] == theirs.tolist()
    assert len(set(theirs.tolist())) > 3


def test_another_question_looks_at_no_image_again(both: Pair, monkeypatch) -> None:
    looks, look = [], both.engine.model.look
    monkeypatch.setattr(
        both.engine.model, "look", lambda *a: looks.append(a) or look(*a)
    )
    monkeypatch.setattr(both.engine, "features", Kept(64 << 20))
    monkeypatch.setattr(both.engine, "prefixes", Kept(64 << 20))
    images = pictures(3)
    for asked, prompt, answer in (
        (images, PROMPT, ""),
        (images, "detect cat", ""),
        (images[::-1], PROMPT, ""),
        (images[1:], PROMPT, ANSWER),
        (images, PROMPT, ANSWER),  # goes on from the first one's prefix
    ):
        steps = both.engine.score(asked, prompt, answer or ANSWER)
        with torch.no_grad():
            inputs = processed(both, asked, prompt, ANSWER)
            theirs = both.oracle(**inputs).logits[0, -len(steps) - 1 : -1].softmax(-1)
        for step, row in zip(steps, theirs, strict=True):
            assert step.probability == pytest.approx(float(row[step.token]), abs=1e-5)
    assert len(looks) == 3


def test_features_of_several_stand_one_behind_the_other(both: Pair) -> None:
    images = pictures(3)
    features = both.engine.look(images)
    assert features.shape == (1, 3 * PATCHES, both.engine.config.decoder.width)
    for number, image in enumerate(images):
        part = features[:, number * PATCHES : (number + 1) * PATCHES]
        assert torch.equal(part, both.engine.look(image))


def test_boxes_are_in_pixels_of_the_first(both: Pair) -> None:
    images = [picture(1, (1024, 512)), picture(2, (64, 64))]
    box = "<loc0256><loc0128><loc0768><loc0512> cat"
    how = {"answer": box, "echo": True, "max_tokens": 1, "stop": ()}
    answer = both.engine.generate(images, PROMPT, **how)
    assert answer.objects[0].box == (128, 128, 512, 384)


def test_more_than_the_decoder_has_positions_for_is_refused(both, monkeypatch) -> None:
    config = both.engine.config
    room = len(both.engine.ids(PROMPT)) + 2 * PATCHES
    small = replace(config, decoder=replace(config.decoder, positions=room))
    monkeypatch.setattr(both.engine, "config", small)
    assert len(both.engine.logits(pictures(2), PROMPT)) == room - 2 * PATCHES
    for ask in (both.engine.stream, both.engine.logits, both.engine.generate):
        with pytest.raises(ValueError, match=rf"{room} positions.*: 3 x 16 for images"):
            ask(pictures(3), PROMPT)
    with pytest.raises(ValueError, match="1 for the start of the answer"):
        both.engine.stream(pictures(2), PROMPT, answer=(5,))


@dataclass(frozen=True)
class Explained:
    """A token of an answer about two images, the second in focus; float64 beside."""

    asked: Asked
    inputs: dict[str, Tensor]
    oracle: torch.nn.Module
    logits: Tensor  # [V]
    attentions: tuple[Tensor, ...]

    @property
    def token(self) -> int:
        return self.asked.token(2)

    def changed(self, **inputs: Tensor) -> float:
        """Change of the token's log-probability with other inputs."""
        with torch.no_grad():
            after = self.oracle(**{**self.inputs, **inputs}).logits[0, -1]
        chances = (each.log_softmax(-1)[self.token] for each in (after, self.logits))
        return float(next(chances) - next(chances))


@pytest.fixture
def explained(both: Pair) -> Explained:
    oracle = copy.deepcopy(both.oracle).double()
    images = pictures(2)
    inputs = processed(both, images, PROMPT, "<loc0593><loc0918>")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    seen = oracle(**inputs, output_attentions=True)
    ids = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, images, PROMPT, ids, focus=1)
    return Explained(asked, inputs, oracle, seen.logits[0, -1], seen.attentions)


def close(ours: Tensor, theirs: Tensor) -> None:
    most = float(theirs.abs().max())
    assert most > 1e-4
    torch.testing.assert_close(ours.double(), theirs, atol=1e-3 * most, rtol=0)


def test_gradients_are_those_of_the_image_in_focus(explained: Explained) -> None:
    score = explained.logits.log_softmax(-1)[explained.token]
    by_weight = torch.autograd.grad(score, explained.attentions, retain_graph=True)
    rows = [
        (weights * gradient.clamp(min=0))[0, :, -1].detach()
        for weights, gradient in zip(explained.attentions, by_weight)
    ]
    ours = gradient_attention(explained.asked, 2).flatten(2)
    close(ours, torch.stack(rows)[..., PATCHES : 2 * PATCHES])

    by_weight = torch.autograd.grad(
        explained.logits[explained.token], explained.attentions
    )
    whole = torch.eye(len(explained.inputs["input_ids"][0]), dtype=torch.float64)
    for weights, gradient in zip(explained.attentions, by_weight):
        whole = whole + (weights * gradient)[0].detach().clamp(min=0).mean(0) @ whole
    row = relevancy(explained.asked, 2)
    close(row[:-1], whole[-1, :-1])
    seen = on_image(row, explained.asked.layout(2), 1)
    assert torch.equal(seen.flatten(), row[PATCHES : 2 * PATCHES])
    heat = METHODS["relevancy"].heat(explained.asked, [2])
    torch.testing.assert_close(heat, seen)


def test_what_is_covered_is_covered_in_the_image_in_focus(explained: Explained):
    values = np.array(explained.asked.images[1])
    values[np.kron(SOME.numpy(), np.ones((7, 7))) > 0] = GREY
    grey = torch.from_numpy(values).permute(2, 0, 1).double() / 127.5 - 1
    pixels = explained.inputs["pixel_values"].clone()
    pixels[1] = grey
    expected = -explained.changed(pixel_values=pixels)
    assert abs(expected) > 1e-3
    found = covered(explained.asked, 2, SOME)
    assert found == pytest.approx(expected, abs=1e-4)

    mean = np.asarray(explained.asked.images[1]).mean((0, 1)).round()
    pixels[1] = torch.from_numpy(mean)[:, None, None] / 127.5 - 1
    gone = deletion(explained.asked, 2, torch.ones(GRID, GRID), steps=1)
    before = float(explained.logits.softmax(-1)[explained.token])
    after = before * np.exp(explained.changed(pixel_values=pixels))
    assert gone.probabilities == pytest.approx((before, after), abs=1e-5)


@pytest.mark.parametrize("rows", ["text", "all"])
def test_what_is_cut_is_cut_from_the_image_in_focus(explained: Explained, rows: str):
    length = len(explained.inputs["input_ids"][0])
    keys = torch.zeros(length, dtype=torch.bool)
    keys[PATCHES : 2 * PATCHES] = SOME.flatten()
    hidden = keys.expand(length, length).clone()
    hidden[keys] = False
    hidden[: 0 if rows == "all" else 2 * PATCHES] = False

    def change(_, args, given):
        given["attention_mask"] = given["attention_mask"].masked_fill(hidden, -1e30)
        return args, given

    for layer in explained.oracle.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(change, with_kwargs=True)
    expected = explained.changed()
    assert abs(expected) > 1e-3
    found = knockout(explained.asked, 2, patches=SOME, rows=rows)
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_of_the_images_can_be_put_back(explained: Explained) -> None:
    clean = explained.asked
    groups = [("image", 0), ("image", 1), "image"]
    how = {"index": 2, "axis": "position", "at": -1, "groups": groups}
    scores = dict(activation_patching(clean, Noise(), **how))
    assert scores["image"] == pytest.approx(1 if scores["image"] > 0 else -1, abs=1e-3)
    noisy = Noise().on(clean.engine.look(clean.image))
    features = clean.engine.look(clean.image)
    for number in range(2):
        mixed = noisy.clone()
        part = slice(number * PATCHES, (number + 1) * PATCHES)
        mixed[:, part] = features[:, part]
        runs = [clean.logits(2, features=f)[clean.token(2)] for f in (noisy, mixed)]
        whole = abs(float(clean.logits(2)[clean.token(2)] - runs[0]))
        expected = float(runs[1] - runs[0]) / whole
        assert scores["image", number] == pytest.approx(expected, abs=1e-3)
    other = replace(clean, image=clean.images[:1], focus=0)
    with pytest.raises(ValueError, match="2 and 1 images"):
        activation_patching(clean, other, **how)


def test_lenses_read_the_patches_of_the_image_in_focus(explained: Explained) -> None:
    asked = explained.asked
    read = patch_lens(asked, 2).probability
    position = PATCHES + 1 * GRID + 2
    one = logit_lens(asked, 2, position=position).probability
    torch.testing.assert_close(read[:, 1, 2], one, atol=1e-7, rtol=1e-4)
    first = replace(asked, focus=0)
    assert not torch.allclose(read, patch_lens(first, 2).probability, rtol=1e-2)
    assert not torch.allclose(token_activation(first, 2), token_activation(asked, 2))


@pytest.mark.parametrize("name", METHODS)
def test_every_way_explains_each_image(both: Pair, name: str) -> None:
    ids = tuple(both.engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(both.engine, pictures(2), PROMPT, ids)
    heats = [METHODS[name].heat(replace(asked, focus=n), [1]) for n in range(2)]
    assert all(heat.shape == (GRID, GRID) for heat in heats)
    assert all(bool(heat.isfinite().all()) for heat in heats)
    assert not torch.allclose(*heats)
    # The same pictures the other way round are another question.
    other = METHODS[name].heat(replace(asked, image=asked.images[::-1]), [1])
    assert not torch.allclose(other, heats[1])
    with pytest.raises(ValueError, match="image 2 of 2 was asked for"):
        replace(asked, focus=2)


@pytest.mark.parametrize("name", ["layers", "knockout", "faithfulness", "patching"])
def test_every_test_can_be_of_another_image_than_the_first(pairs, name: str):
    engine = pairs["gemma2"].engine
    ids = tuple(engine.tokenizer.answer_ids(ANSWER))
    asked = Asked(engine, pictures(2), PROMPT, ids)
    heat = torch.arange(PATCHES).view(GRID, GRID).tolist()
    options = {"knockout": {"heat": heat}, "faithfulness": {"heat": heat}}
    options["patching"] = {"layer": 0}
    found = []
    for number in range(2):
        focused = replace(asked, focus=number)
        *_, news = TRIALS[name].run(focused, 1, **options.get(name, {}))
        assert news.done == news.of
        found.append(news.found)
    of_patches = name in ("knockout", "faithfulness")
    assert (found[0] != found[1]) == of_patches
