"""The embedded checkpoint's world, its lessons, and the checkpoint itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Pair
from oracle import read

import vlm
from vlm.paligemma import PaliGemma, prefix_mask
from vlm.tiny import recipe
from vlm.tiny.batches import Lessons
from vlm.tiny.evaluate import evaluate, overlap
from vlm.tiny.muon import optimizers, orthogonal
from vlm.tiny.questions import KINDS, TASKS, ask, keywords, locations
from vlm.tiny.scenes import Stock, compose
from vlm.tiny.sprites import load_sprites
from vlm.tiny.student import IGNORE, Student
from vlm.tiny.training import Stage
from vlm.tiny.vocabulary import check_vocabulary, train_vocabulary
from vlm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
PIECES = 1921


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(load_sprites(), backgrounds=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(folder / "tokenizer.model")
    check_vocabulary(folder / "tokenizer.model")
    return Tokenizer.load(folder, image_token=PIECES)


@pytest.fixture
def lessons(stock: Stock, tokenizer: Tokenizer) -> Lessons:
    return Lessons(stock, tokenizer, size=128, grid=8, seed=3)


# --- the checkpoint ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return Pair(TINY, vlm.load(TINY, device="cpu"), read(TINY))


def test_transformers_reads_the_embedded_checkpoint_as_we_do(
    tiny: Pair, stock: Stock
) -> None:
    scene = compose(np.random.default_rng(5), stock)
    for prompt, answer in (("detect cat ; dog", "<loc0100>"), ("caption en", " a cat")):
        with torch.no_grad():
            theirs = tiny.oracle(**tiny.inputs([scene.image], prompt, answer)).logits
        ours = tiny.engine.logits(scene.image, prompt, answer)
        assert float(ours.std()) > 1
        torch.testing.assert_close(ours, theirs[0, -len(ours) :], atol=5e-5, rtol=1e-5)


def test_the_embedded_checkpoint_fits_a_push(tiny: Pair) -> None:
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9.5e6
    stored = json.loads((TINY / "config.json").read_text())
    assert stored["model_type"] == "paligemma"


def test_the_embedded_checkpoint_answers_on_scenes_it_never_saw(tiny: Pair) -> None:
    """The bar is that of a first model: half of what is asked for is found."""
    stock = Stock(load_sprites(), seed=20_000_003)
    figures = evaluate(tiny.engine, stock, scenes=60)
    assert figures["found"][0] >= 0.5
    assert figures["refused"][0] >= 0.5
    assert figures["caption"][0] >= 0.5


def test_the_embedded_checkpoint_needs_no_network(tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import vlm\n"
        "from PIL import Image\n"
        f"engine = vlm.load({str(TINY)!r}, device='cpu')\n"
        "print(engine.generate(Image.new('RGB', (64, 64)), 'caption en').text)\n"
        "assert 'transformers' not in sys.modules\n"
        "assert 'gradio' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- the world -----------------------------------------------------------------------


def test_a_seed_makes_a_scene_again(stock: Stock) -> None:
    one, other = (compose(np.random.default_rng(7), stock) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.things == other.things


def test_a_box_is_that_of_the_visible_pixels(stock: Stock) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = compose(rng, stock, masks=True)
        for thing in scene.things:
            ys, xs = np.nonzero(thing.mask)
            assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        owners = sum(thing.mask.astype(int) for thing in scene.things)
        assert np.max(owners, initial=0) <= 1


def test_half_of_what_is_asked_for_is_absent(stock: Stock) -> None:
    rng = np.random.default_rng(2)
    absent, yes = [], []
    for _ in range(800):
        scene = compose(rng, stock)
        there = {thing.kind for thing in scene.things}
        if question := ask(rng, scene, "detect"):
            asked = question.prefix.removeprefix("detect ").split(" ; ")
            absent += [kind not in there for kind in asked]
        if question := ask(rng, scene, "exists"):
            yes.append(question.suffix == "yes")
    assert np.mean(absent) == pytest.approx(0.5, abs=0.06)
    assert np.mean(yes) == pytest.approx(0.5, abs=0.06)


def test_answers_say_what_is_in_the_scene(stock: Stock) -> None:
    rng, seen = np.random.default_rng(4), set()
    for _ in range(100):
        scene = compose(rng, stock)
        kinds = [thing.kind for thing in scene.things]
        for task in TASKS:
            if not (question := ask(rng, scene, task)):
                continue
            seen.add(task)
            named = keywords(question.prefix)
            if task == "count":
                assert int(question.suffix) == kinds.count(*named)
            elif task == "exists":
                assert question.suffix == ("yes" if named & set(kinds) else "no")
            elif task in ("caption", "describe"):
                assert keywords(question.suffix) == set(kinds)
            elif task == "detect":
                there = [kind for kind in kinds if kind in named]
                assert question.suffix.count("<loc") == 4 * len(there)
    assert seen == set(TASKS)


def test_locations_are_y_x_y_x_in_64_bands() -> None:
    text = locations((0, 32, 64, 128), (128, 128))
    assert text == "<loc0264><loc0008><loc1016><loc0520>"


# --- lessons -------------------------------------------------------------------------


def test_one_question_behind_an_image_is_masked_as_in_an_answer(
    lessons: Lessons,
) -> None:
    scenes = lessons.scenes(2)
    asked = [lessons.questions(scene, recipe.LATER, 2) for scene in scenes]
    texts = lessons.texts(scenes, asked, packed=False)
    expected = prefix_mask(texts.prefix, texts.valid, texts.ids.shape[1])
    assert torch.equal(texts.mask(), expected)


def test_packed_questions_do_not_see_each_other(lessons: Lessons) -> None:
    """Each one's states are the same whatever the others are."""
    torch.manual_seed(0)
    model = PaliGemma(recipe.configuration(PIECES))
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


def test_the_student_learns_a_few_pictures_by_heart(
    lessons: Lessons, tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    words = [tokenizer.answer_ids(" " + kind)[0] for kind in KINDS]
    student = Student(
        PaliGemma(recipe.configuration(PIECES)), words, tokenizer.first_loc
    )
    scenes = lessons.scenes(3)
    asked = [lessons.questions(scene, recipe.LATER, 2) for scene in scenes]
    pictures, texts = (
        lessons.pictures(scenes),
        lessons.texts(scenes, asked, packed=True),
    )
    before = student.answering(pictures, texts)[1]
    for _ in range(12):
        student.zero_grad()
        student.answering(pictures, texts)[0].backward()
        for optimizer in optimizers(student):
            optimizer.step()
    after = student.answering(pictures, texts)[1]
    for figure in ("language", "kind", "place", "attention"):
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


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 2, 2), (2, 2, 3, 3)) == 0
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0
