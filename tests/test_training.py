"""Lessons, stages and what is learnt in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

import vlm
from vlm import checkpoint, pair_checkpoint
from vlm.caption import Captions
from vlm.contrastive import clip_loss, siglip_loss
from vlm.masks import MaskAutoencoder, Masks
from vlm.paligemma import PaliGemma, prefix_mask
from vlm.siglip import PairModel
from vlm.tiny import recipe
from vlm.tiny.answering import EMPTY, IGNORE, OUTLINED, Codes, answer
from vlm.tiny.batches import Lessons
from vlm.tiny.language import GERMAN
from vlm.tiny.looking import PatchReader, Pictures, match
from vlm.tiny.masking import SHAPE
from vlm.tiny.muon import optimizers, orthogonal
from vlm.tiny.plot import plot, read
from vlm.tiny.questions import KINDS, SPOKEN, ask, forms
from vlm.tiny.scenes import Stock
from vlm.tiny.sprites import load_sprites
from vlm.tiny.start import carry_over
from vlm.tiny.student import Student
from vlm.tiny.train import word_ids, write
from vlm.tiny.training import Stage
from vlm.tiny.vocabulary import train_vocabulary
from vlm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(folder / "tokenizer.model")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(load_sprites(), backgrounds=20)


@pytest.fixture
def lessons(stock: Stock, tokenizer: Tokenizer) -> Lessons:
    torch.manual_seed(5)
    config = recipe.configuration(tokenizer.image_token)
    lessons = Lessons(
        stock,
        tokenizer,
        captions=Captions(tokenizer.pieces, recipe.pair_configuration(config).text),
        masks=Masks(MaskAutoencoder(**SHAPE)),
        size=config.vision.image_size,
        grid=config.vision.grid,
    )
    lessons.seed(3)
    return lessons


def load_tokenizer(folder: Path) -> Tokenizer:
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return Tokenizer.load(folder, image_token=len(pieces))


def new_student(tokenizer: Tokenizer) -> Student:
    torch.manual_seed(0)
    config = recipe.configuration(tokenizer.image_token)
    return Student(
        PaliGemma(config),
        recipe.pair_configuration(config),
        forms=word_ids(tokenizer),
        entries=torch.randn(128, 8),
        loc=tokenizer.first_loc,
        seg=tokenizer.first_seg,
    )


def test_one_question_behind_an_image_is_masked_as_in_an_answer(
    lessons: Lessons,
) -> None:
    scenes = lessons.scenes(2)
    asked = [lessons.questions(scene, recipe.LATER, 2) for scene in scenes]
    texts = lessons.texts(scenes, asked, packed=False)
    rows = torch.arange(texts.ids.shape[1])
    expected = prefix_mask(texts.prefix, texts.valid, rows)
    assert torch.equal(texts.mask(), expected)


def test_packed_questions_do_not_see_each_other(lessons: Lessons) -> None:
    """Each one's states are the same whatever the others are."""
    torch.manual_seed(0)
    model = PaliGemma(recipe.configuration(lessons.tokenizer.image_token))
    scenes = lessons.scenes(1)
    first, *others = lessons.questions(scenes[0], recipe.LATER, 4)
    features = model.look(lessons.pictures(scenes).pixels)

    def states(questions) -> torch.Tensor:
        texts = lessons.texts(scenes, [questions], packed=True)
        return model.decoder(
            model.embed(texts.ids, features),
            positions=texts.positions,
            masks={None: texts.mask()},
        )

    alone, packed = states([first]), states([first, *others])
    length = alone.shape[1]
    torch.testing.assert_close(packed[:, :length], alone, atol=1e-5, rtol=0)
    last = states([others[-1]])[:, 64:]
    torch.testing.assert_close(packed[:, -last.shape[1] :], last, atol=1e-5, rtol=0)


def test_a_stage_that_goes_on_is_given_other_scenes(lessons: Lessons) -> None:
    drawn = []
    for steps in (0, 20, 0):
        lessons.seed(1, 0, steps)
        drawn.append(lessons.scenes(1)[0].image.tobytes())
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("packed", [True, False])
def test_labels_stand_where_the_answer_is_predicted(
    lessons: Lessons, tokenizer: Tokenizer, packed: bool
) -> None:
    scenes = lessons.scenes(3)
    asked = [lessons.questions(scene, recipe.LATER, 3) for scene in scenes]
    texts = lessons.texts(scenes, asked, packed=packed)
    found = texts.labels != IGNORE
    assert torch.equal(texts.labels[found], texts.ids.roll(-1, dims=1)[found])
    answers = [tokenizer.decode(row[row != IGNORE].tolist()) for row in texts.labels]
    expected = ["".join(q.suffix for q in questions) for questions in asked]
    if packed:
        assert answers == expected
    else:
        assert answers == [q.suffix for questions in asked for q in questions]
    assert int((texts.first > 0).sum()) == 9
    silent = sum(not q.suffix for questions in asked for q in questions)
    assert int(texts.empty.sum()) == silent


def test_attention_is_asked_for_on_the_thing_itself(lessons: Lessons) -> None:
    scene = next(s for s in iter(lambda: lessons.scenes(1)[0], None) if s.things)
    question = None
    while question is None or not question.target:
        question = ask(lessons.rng, scene, "detect")
    texts = lessons.texts([scene], [[question]], packed=False)
    asked = len(lessons.tokenizer.text_ids(question.prefix))
    row = texts.targets[0, asked - 1].reshape(8, 8)  # it predicts the first loc
    x1, y1, x2, y2 = (value / 16 for value in question.target[0].box)
    ys, xs = row.nonzero().T
    assert len(ys) and ys.min() >= int(y1) and ys.max() <= y2
    assert xs.min() >= int(x1) and xs.max() <= x2


def test_a_masks_code_is_looked_for_under_its_own_cell(lessons: Lessons) -> None:
    question = None
    while question is None or len(question.target) != 2:
        scene = lessons.scenes(1)[0]
        question = ask(lessons.rng, scene, "segment", codes=lessons.masks.encode)
    texts = lessons.texts([scene], [[question]], packed=False)
    labels = texts.labels[0, 64:].tolist()
    coded = [
        row for row, token in enumerate(labels) if token >= lessons.tokenizer.first_seg
    ]
    assert len(coded) == 32
    assert texts.coded[0].nonzero()[:, 0].tolist() == [64 + row for row in coded]
    for place, row in enumerate(coded):
        x1, y1, x2, y2 = question.target[place // 16].box
        cell = np.zeros((128, 128))  # a fine picture of where the cell lies
        ys = y1 + (place % 16 // 4 + np.arange(0.005, 1, 0.01)) * (y2 - y1) / 4
        xs = x1 + (place % 4 + np.arange(0.005, 1, 0.01)) * (x2 - x1) / 4
        cell[np.ix_(ys.astype(int), xs.astype(int))] = 1
        under = cell.reshape(8, 16, 8, 16).max((1, 3)).ravel().nonzero()[0]
        assert texts.targets[0, row].nonzero()[:, 0].tolist() == under.tolist()


def test_credit_for_a_code_is_shared_with_those_that_mean_nearly_the_same() -> None:
    torch.manual_seed(0)
    entries = 9 * torch.randn(128, 8)
    entries[5] = entries[4] + 0.01
    codes = Codes(entries, first=100)
    assert torch.allclose(codes.credit.sum(1), torch.ones(128))
    assert codes.credit[4, 5] == pytest.approx(float(codes.credit[4, 4]), rel=0.01)
    assert codes.credit[4].sort().values[-3] < codes.credit[4, 5]
    logits = torch.randn(3, 240, requires_grad=True)
    labels = torch.tensor([104, 227, 100])
    loss = codes.loss(logits, labels)
    chances = logits.detach().double().softmax(-1).log().numpy()
    for row, label in enumerate(labels.tolist()):
        apart = ((entries - entries[label - 100]) ** 2).sum(1).double().numpy()
        every = ((entries[:, None] - entries) ** 2).sum(-1).double().numpy()
        scale = 0.1 * np.sort(np.sort(every, axis=1)[:, 32])[63]
        credit = np.exp(-apart / scale) / np.exp(-apart / scale).sum()
        expected = -(credit * chances[row, 100:228]).sum()
        assert float(loss[row].detach()) == pytest.approx(expected, rel=1e-4)
    loss.sum().backward()
    pulled = -logits.grad[0]  # towards the code and its twin alike
    assert pulled[104] > 0.2 and pulled[105] > 0.2
    assert float(pulled[:100].max()) < 0


def test_codes_and_empty_answers_have_weights_of_their_own(
    lessons: Lessons, tokenizer: Tokenizer
) -> None:
    student = new_student(tokenizer)
    # Rows this large make each answer's loss a different one, so that weights show.
    student.model.decoder.embedding.weight.data.mul_(6)
    chances = {"detect": 1.0, "segment": 1.0, "caption": 0.1}
    scenes = lessons.scenes(3)
    asked = [lessons.questions(scene, chances, 4) for scene in scenes]
    texts = lessons.texts(scenes, asked, packed=True)
    with torch.no_grad():
        features = student.model.look(lessons.pictures(scenes).pixels)
        _, figures = answer(student.model, features, texts, student.codes)
        states = student.model.decoder(
            student.model.embed(texts.ids, features),
            positions=texts.positions,
            masks={None: texts.mask()},
        )
        chances = student.model.decoder.logits(states).log_softmax(-1)
    sums = {"empty": [], "code": [], "other": []}
    for row, place in (texts.labels != IGNORE).nonzero().tolist():
        label = int(texts.labels[row, place])
        here = chances[row, place]
        if (code := tokenizer.seg(label)) is not None:
            credit = student.codes.credit[code]
            loss = -(credit * here[tokenizer.first_seg :][:128]).sum()
            sums["code"].append(float(loss))
        else:
            empty = label == tokenizer.eos and bool(texts.first[row, place])
            sums["empty" if empty else "other"].append(-float(here[label]))
    assert all(len(part) > 2 for part in sums.values())
    weights = {"empty": EMPTY, "code": OUTLINED, "other": 1.0}
    total = sum(weights[name] * sum(part) for name, part in sums.items())
    share = sum(weights[name] * len(part) for name, part in sums.items())
    assert float(figures["language"]) == pytest.approx(total / share, rel=1e-4)


def test_patches_are_told_what_they_show_and_where_it_ends(lessons: Lessons) -> None:
    scenes = lessons.scenes(6)
    pictures = lessons.pictures(scenes)
    told = 0
    for number, scene in enumerate(scenes):
        for patch in range(64):
            top, left = (16 * part for part in divmod(patch, 8))
            here = np.s_[top : top + 16, left : left + 16]
            shares = [float(thing.mask[here].mean()) for thing in scene.things]
            if max(shares, default=0) < 1 / 8:
                assert pictures.kinds[number, patch] == len(KINDS)
            elif shares.count(max(shares)) == 1:
                thing = scene.things[int(np.argmax(shares))]
                assert KINDS[pictures.kinds[number, patch]] == thing.kind
                x1, y1, x2, y2 = (min(63, int(value / 2)) for value in thing.box)
                assert pictures.edges[number, patch].tolist() == [y1, x1, y2, x2]
                cells = thing.mask[here].reshape(4, 4, 4, 4).mean((1, 3)) > 0.5
                shape = pictures.shapes[number, patch].reshape(4, 4).numpy()
                assert np.array_equal(shape, cells)
                told += 1
    assert told > 50


def test_another_language_is_asked_only_where_it_is_spoken(lessons: Lessons) -> None:
    scene = next(s for s in iter(lambda: lessons.scenes(1)[0], None) if s.things)
    chances = dict.fromkeys(("detect", "exists", "caption"), 1.0)
    asked = lessons.questions(scene, chances, 300, foreign=1.0)
    german = [question for question in asked if question.language is GERMAN]
    assert 60 < len(german) < 140  # half of two thirds
    assert all(GERMAN in SPOKEN[question.task] for question in german)
    asked = lessons.questions(scene, chances, 50)
    assert all(question.language is not GERMAN for question in asked)


def test_patches_are_read_with_any_form_of_a_kinds_name(tokenizer: Tokenizer) -> None:
    ids = word_ids(tokenizer)
    assert ids.shape == (len(KINDS), max(len(forms(kind)) for kind in KINDS))
    names = {tokenizer.piece(int(token)).strip() for token in ids[KINDS.index("cat")]}
    assert names == {"cat", "cats", "Katze", "Katzen"}
    torch.manual_seed(0)
    reader = PatchReader(96, ids, tokenizer.first_loc)
    rows = torch.zeros(tokenizer.size, 96)
    rows[ids] = torch.eye(96)[: len(KINDS), None]  # a kind's words are all alike
    kinds = torch.randint(len(KINDS), (2, 64))
    edges = torch.zeros(2, 64, 4, dtype=torch.long)
    shapes = torch.zeros(2, 64, 16, dtype=torch.bool)
    pixels, captions = torch.zeros(2), torch.zeros(2)
    picture = Pictures(pixels, kinds, edges, shapes, captions)
    for _ in range(8):  # a form is drawn each time
        _, figures = reader(9 * torch.eye(96)[kinds], rows, picture)
        assert figures["patches"] == 1
        assert figures["kind"] < 0.01


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_the_pair_is_taught_by_the_loss_that_is_named(
    loss: str, tokenizer: Tokenizer, lessons: Lessons
) -> None:
    student = new_student(tokenizer)
    pictures = lessons.pictures(lessons.scenes(4))
    states = student.model.vision(pictures.pixels)
    value, figures = match(student.pair, states, pictures.captions, loss=loss)
    images = student.pair.images(pictures.pixels)
    texts = student.pair.texts(pictures.captions)
    scale, bias = student.pair.logit_scale.exp(), student.pair.logit_bias
    expected = {
        "sigmoid": siglip_loss(images, texts, scale=scale, bias=bias),
        "softmax": clip_loss(images, texts, scale=scale),
    }
    torch.testing.assert_close(value, expected[loss])
    for name in expected:
        torch.testing.assert_close(figures[name], expected[name])
    assert not torch.allclose(expected["sigmoid"], expected["softmax"])


def test_a_checkpoint_and_its_pair_share_one_eye(
    tmp_path: Path, tokenizer: Tokenizer, lessons: Lessons
) -> None:
    student = new_student(tokenizer)
    model = tokenizer.pieces.serialized_model_proto()
    (tmp_path / "tokenizer.model").write_bytes(model)
    lessons.masks.save(tmp_path / "masks.safetensors")
    write(student, student.model.config, tmp_path, tmp_path / "tiny")
    engine = vlm.load(tmp_path / "tiny", device="cpu")
    pair = vlm.load_pair(tmp_path / "tiny-pair", device="cpu")
    scenes = lessons.scenes(2)
    pixels = lessons.pictures(scenes).pixels
    seen = pair.model.vision(pixels)
    torch.testing.assert_close(seen, engine.model.vision(pixels), atol=0, rtol=0)
    student.bfloat16().float()  # as it was written
    texts = ["a cat", "two dogs", "a boat and a bus"]
    ids = lessons.captions.ids(texts)
    expected = student.pair.images(pixels) @ student.pair.texts(ids).T
    cosines = pair.images([scene.image for scene in scenes]) @ pair.texts(texts).T
    assert float(expected.detach().std()) > 0.02
    torch.testing.assert_close(cosines, expected, atol=1e-3, rtol=0)


def test_a_start_brings_its_rows_by_their_pieces(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    proto = ModelProto.FromString(tokenizer.pieces.serialized_model_proto())
    gone = next(p for p in proto.pieces if p.piece == "\u2581cat")
    proto.pieces.remove(gone)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    before = load_tokenizer(tmp_path)
    torch.manual_seed(1)
    earlier = PaliGemma(recipe.configuration(before.image_token))
    checkpoint.save(earlier, tmp_path, dtype=torch.float32)
    pair = PairModel(recipe.pair_configuration(earlier.config))
    beside = tmp_path.with_name(f"{tmp_path.name}-pair")
    pair_checkpoint.save(pair, beside, dtype=torch.float32)
    student = new_student(tokenizer)
    mine = student.model.decoder.embedding.weight, student.pair.text.embedding.weight
    theirs = earlier.decoder.embedding.weight, pair.text.embedding.weight
    kept = [rows[tokenizer.answer_ids(" cat")].clone() for rows in mine]
    taken = carry_over(student.model, student.pair, tokenizer, tmp_path)
    assert taken == tokenizer.size - 1
    for now, then, own in zip(mine, theirs, kept):
        for text in (" dog", "<loc0512>", "<seg127>", "Katze"):
            old = then[before.answer_ids(text)]
            assert torch.equal(now[tokenizer.answer_ids(text)], old), text
        assert torch.equal(now[tokenizer.image_token], then[before.image_token])
        assert torch.equal(now[tokenizer.answer_ids(" cat")], own)
    # One eye for both: the checkpoint's, whatever lies in the pair's files.
    for name, old in earlier.vision.state_dict().items():
        assert torch.equal(student.model.vision.state_dict()[name], old)
        assert torch.equal(student.pair.vision.state_dict()[name], old)
    assert torch.equal(student.pair.pool.probe, pair.pool.probe)


def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    goal = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))

    def stage(minutes: float) -> Stage:
        torch.manual_seed(0)
        student = torch.nn.Linear(6, 8)

        def batch(progress: float):
            x = torch.randn(32, 6)
            loss = (student(x) - x @ goal.T).square().mean()
            return loss, {"loss": loss}

        return Stage("s", minutes, student, batch, optimizers(student), tmp_path, 32)

    first = stage(1e-9)
    first.run()
    assert first.steps == 1
    second = stage(0.03)
    second.run()
    assert second.steps > 50
    assert second.means["loss"] < 0.05 * first.means["loss"]
    third = stage(0.03)
    third.run()  # nothing is left to do
    assert third.steps == second.steps
    kept, last = third.student.state_dict(), second.student.state_dict()
    assert all(torch.equal(kept[name], last[name]) for name in last)
    fourth = stage(0.04)
    fourth.run()
    assert fourth.steps > third.steps  # and it counts on, not from one


def test_the_stages_of_a_log_follow_each_other(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"stage": "looking", "step": 20, "minute": 1.0, "kind": 3.0},
        {"stage": "looking", "step": 40, "minute": 2.5, "kind": 2.0},
        {"stage": "answering", "step": 20, "minute": 0.5, "kind": 1.0, "tokens": 0.1},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves, begins = read(log)
    assert begins == {"looking": 0, "answering": 2.5}
    assert curves == {
        "kind": [(1.0, 3.0), (2.5, 2.0), (3.0, 1.0)],
        "tokens": [(3.0, 0.1)],
    }
    plot(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1100, 700)
    log.write_text("")
    with pytest.raises(ValueError, match="empty"):
        read(log)


def test_the_student_learns_a_few_pictures_by_heart(
    lessons: Lessons, tokenizer: Tokenizer
) -> None:
    student = new_student(tokenizer)
    scenes = lessons.scenes(3)
    asked = [lessons.questions(scene, recipe.LATER, 2) for scene in scenes]
    pictures, texts = (
        lessons.pictures(scenes),
        lessons.texts(scenes, asked, packed=True),
    )
    before = student.answering(pictures, texts)[1]
    for _ in range(18):
        student.zero_grad()
        student.answering(pictures, texts)[0].backward()
        for optimizer in optimizers(student):
            optimizer.step()
    after = student.answering(pictures, texts)[1]
    for figure in ("language", "kind", "place", "shape", "sigmoid", "attention"):
        assert after[figure] < 0.8 * before[figure], figure


def test_orthogonal_drives_singular_values_towards_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        stack = torch.randn(shape)
        values = torch.linalg.svdvals(orthogonal(stack))
        assert 0.6 < float(values.min()) and float(values.max()) < 1.3
        u, _, v = torch.linalg.svd(stack, full_matrices=False)
        along = (orthogonal(stack) * (u @ v)).sum((1, 2)) / min(shape[1:])
        assert float(along.min()) > 0.8
