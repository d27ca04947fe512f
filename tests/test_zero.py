"""ZeroGPU: what a model computes is computed in a fork, and only plain values cross."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image

import vlm
from vlm.ui import faults, zero
from vlm.ui.answering import answered, scored
from vlm.ui.asking import Ask, Settings, views
from vlm.ui.explaining import explained
from vlm.ui.inside import looked
from vlm.ui.matching import matched
from vlm.ui.refusing import refusing_all
from vlm.ui.store import Run as Kept
from vlm.ui.store import Store
from vlm.ui.trying import tried

ASSETS = Path(__file__).parents[1] / "assets"
PENGUINS = str(ASSETS / "examples" / "penguins.webp")
SPACE = Path(__file__).parent / "zero_space.py"
PROMPT = "detect penguin"
HEAT = [[0.0] * 7 + [1.0]] * 8


class Forks:
    """`spaces.GPU` as far as it matters: a fork for each call, pickles, and no waiting.

    What is yielded is taken out of the fork at once. That its caller is gone, the fork
    sees when it yields again.
    """

    def __init__(self) -> None:
        self.seconds: list[int] = []
        self.made = 0  # values by the last fork, whether anybody took them or not

    def gpu(self, *, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def decorated(task: Callable) -> Callable:
            def call(*arguments: Any) -> Iterator[Any]:
                self.seconds.append(duration(*arguments))
                yield from self._forked(task, pickle.dumps(arguments))

            return call

        return decorated

    def _forked(self, task: Callable, call: bytes) -> Iterator[Any]:
        context = multiprocessing.get_context("fork")
        queue, stop = context.SimpleQueue(), context.Event()
        made = context.Value("i", 0)

        def work() -> None:
            torch.set_num_threads(1)  # those that it had are not in the fork
            news = task(*pickle.loads(call))
            try:
                for each in news:
                    made.value += 1
                    if stop.is_set():
                        break
                    queue.put((each,))
            finally:
                news.close()
                queue.put(())

        fork = context.Process(target=work, daemon=True)
        fork.start()

        def taken() -> tuple:
            while queue.empty():
                if not fork.is_alive() and queue.empty():
                    raise gr.Error("GPU task aborted")  # as `spaces` does
                time.sleep(0.001)
            return queue.get()

        end = False
        try:
            while each := taken():
                yield each[0]
            end = True
        finally:
            stop.set()
            while not end:
                with contextlib.suppress(gr.Error):
                    end = not taken()
                end = end or not fork.is_alive()
            fork.join()
            self.made = made.value


@pytest.fixture(scope="module")
def engine() -> vlm.Engine:
    return vlm.load(ASSETS / "tiny", device="cpu")


@pytest.fixture(scope="module")
def pair() -> vlm.Pair:
    return vlm.load_pair(ASSETS / "tiny-pair", device="cpu")


@pytest.fixture(scope="module")
def known(engine: vlm.Engine) -> Kept:
    """What is kept of an answer that was computed here."""
    store = Store(2**26)
    return store.get(ended(engine, store)["run"])


@pytest.fixture
def forks(
    engine: vlm.Engine, pair: vlm.Pair, known: Kept, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Forks]:
    """A room is open; what is computed here all the same is a mistake."""
    forks, home = Forks(), os.getpid()
    monkeypatch.setattr(zero, "_room", zero.Room(forks.gpu, [engine, pair]))

    def guard(model: torch.nn.Module, *_: Any) -> None:
        assert os.getpid() != home, "the model works where there is no GPU"

    parts = [*engine.model.modules(), *pair.model.modules()]
    hooks = [part.register_forward_pre_hook(guard) for part in parts]
    yield forks
    for hook in hooks:
        hook.remove()


def ended(engine: vlm.Engine, store: Store, **how: Any) -> dict[str, Any]:
    ask = Ask("tiny", PENGUINS, PROMPT, settings=Settings(**how))
    (*_, end) = views(engine, store, ask)
    return end


def same(end: dict[str, Any]) -> dict[str, Any]:
    """What must not differ between two runs of one question."""
    own = {"run", "timing", "tries"}
    return {key: value for key, value in end.items() if key not in own}


def test_an_answer_from_a_fork_is_the_same_and_its_maps_are_kept_here(
    engine: vlm.Engine, known: Kept, forks: Forks
) -> None:
    store = Store(2**26)
    end = ended(engine, store)
    assert same(end) == same(known.view) and end["objects"]
    kept = store.get(end["run"])
    assert kept.view == end
    assert kept.entries.keys() == known.entries.keys() and len(kept.entries) > 10
    for key, entry in known.entries.items():
        assert kept.entries[key].maps == entry.maps
        assert np.array_equal(kept.entries[key].bins, entry.bins)


def test_all_that_the_page_asks_of_a_model_is_computed_in_a_fork(
    engine: vlm.Engine, pair: vlm.Pair, forks: Forks
) -> None:
    store = Store(2**26)
    end = ended(engine, store)
    engines, run = {"tiny": engine}, end["run"]
    (*_, told) = explained(engines, store, {"run": run, "tokens": [0]})
    assert told["done"] and len(told["heats"]) == 9
    given = {"run": run, "token": 0, "number": 1, "heat": HEAT, "layer": 0}
    for trial in ("layers", "faithfulness", "patching"):
        (*_, found) = tried(engines, store, {**given, "trial": trial})
        assert found["ended"]
    assert looked(engine, PENGUINS, {"patch": 3})["layers"] > 0
    match = matched(pair, [Image.open(PENGUINS).convert("RGB")], ["a car"])
    assert match.logits.shape == (1, 1)
    (*_, again) = views(engine, store, Ask("tiny", PENGUINS, PROMPT), end)
    assert len(again["before"]["now"]) == len(end["tokens"])
    assert len(forks.seconds) == 1 + 1 + 3 + 1 + 1 + 2


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.float32, {"deep": [torch.nn.Linear(1, 1).weight]}]
)
def test_nothing_of_torch_crosses(value: Any) -> None:
    room = zero.Room(Forks().gpu, [])
    with pytest.raises(TypeError, match="cannot leave its process"):
        room.packed(value)


def test_an_engine_crosses_as_its_number(engine: vlm.Engine) -> None:
    room = zero.Room(Forks().gpu, ["another", engine])
    crossing = room.packed({"engine": engine, "array": np.arange(3)})
    assert len(crossing) < 400
    assert room.unpacked(crossing)["engine"] is engine
    with pytest.raises(TypeError):
        zero.Room(Forks().gpu, []).packed(engine)


def test_what_is_wrong_is_told_in_the_words_of_the_fork(
    engine: vlm.Engine, forks: Forks
) -> None:
    image = Image.open(PENGUINS).convert("RGB")
    with pytest.raises(ValueError, match="token 99999 is none of the"):
        scored(engine, image, PROMPT, [99999])


def test_of_any_fault_in_a_fork_a_sentence_comes_home(
    engine: vlm.Engine, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(engine), "score", lacking)
    with pytest.raises(ValueError, match=faults.MEMORY):
        scored(engine, None, PROMPT, "a cat")


def test_a_fork_that_is_killed_is_told_and_the_next_one_answers(
    engine: vlm.Engine, known: Kept, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = Store(2**26), []
    step = type(engine).step

    def killed(*given: Any) -> vlm.Step:
        steps.append(step)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*given)

    run, asked = "", refusing_all(views(engine, store, Ask("tiny", PENGUINS, PROMPT)))
    with monkeypatch.context() as killing:
        killing.setattr(type(engine), "step", killed)
        with pytest.raises(gr.Error, match="GPU task aborted"):
            for now in asked:
                run = now["run"]
    assert store.get(run).view["stopped"]
    assert not multiprocessing.active_children()
    assert same(ended(engine, store)) == same(known.view)


def test_who_stops_ends_the_fork_and_keeps_what_was_said(
    engine: vlm.Engine, forks: Forks
) -> None:
    store = Store(2**26)
    how = Settings(style="Temperature", temperature=5, max_tokens=512)
    seen = views(engine, store, Ask("tiny", PENGUINS, "caption en", settings=how))
    next(seen), next(seen)
    now = next(seen)
    seen.close()
    assert not multiprocessing.active_children()
    assert forks.made < 400
    assert store.get(now["run"]).view["stopped"]


@pytest.mark.parametrize(
    "side, how, seconds",
    [
        (8, {"max_tokens": 1}, 10),
        (8, {"max_tokens": 256}, 25),
        (64, {"max_tokens": 256}, 29),
        (8, {"max_tokens": 100, "tries": 4, "style": "Top-p"}, 34),
        (8, {"max_tokens": 100, "tries": 4}, 16),
        (64, {"max_tokens": 512, "tries": 8, "style": "Top-p"}, 120),
    ],
)
def test_the_gpu_is_asked_for_as_long_as_the_answer_may_take(
    monkeypatch: pytest.MonkeyPatch, side: int, how: dict[str, Any], seconds: int
) -> None:
    asked = []

    def gpu(*, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def call(*arguments: Any) -> Iterator[Any]:
            asked.append(duration(*arguments))
            yield from ()

        return lambda task: call

    engine = SimpleNamespace(describe=lambda: {"grid": [side, side]})
    monkeypatch.setattr(zero, "_room", zero.Room(gpu, [engine]))
    ask = Ask("tiny", PENGUINS, PROMPT, settings=Settings(**how))
    image = Image.new("RGB", (8, 8))
    assert list(answered(engine, image, ask)) == []
    assert asked == [seconds]


needs_spaces = pytest.mark.skipif(
    importlib.util.find_spec("spaces") is None, reason="needs the package spaces"
)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The app with the real `spaces`: a client of it, and what its host was asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("space")
    own = {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            # On a GPU it would be bfloat16, which is not what a CPU computes with.
            [sys.executable, str(SPACE), "--port", str(port), "--dtype", "float32"],
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    said = (folder / "log").read_text
    try:
        deadline = time.monotonic() + 90
        while "Running on local URL" not in said() and time.monotonic() < deadline:
            assert process.poll() is None, said()
            time.sleep(0.2)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        yield SimpleNamespace(client=client, said=said)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its forks outlive a mere SIGTERM
        process.wait(20)


@needs_spaces
@pytest.mark.parametrize(
    "name, how",
    [
        ("/probe", {}),
        ("/attention", {"token": 0, "layer": 0, "head": 0}),
        ("/explain", {"token": 0, "method": "relevancy"}),
        ("/logit_lens", {"token": 0}),
        ("/knockout", {"token": 0}),
        ("/patching", {"token": 0}),
    ],
)
def test_endpoints_answer_on_a_zero_gpu_space_as_anywhere(
    space: SimpleNamespace, engine: vlm.Engine, name: str, how: dict[str, Any]
) -> None:
    answer = space.client.predict(handle_file(PENGUINS), PROMPT, api_name=name, **how)
    known = engine.generate(Image.open(PENGUINS).convert("RGB"), PROMPT).steps
    assert [token["id"] for token in answer["tokens"]] == [s.token for s in known]
    told = [line for line in space.said().splitlines() if line.startswith("HOST")]
    kinds = {line.split("?")[0] for line in told}
    paths = ("startup-report", "schedule", "allow", "release")
    assert kinds == {f"HOST /{path}" for path in paths}
    asked = sum(line.startswith("HOST /schedule") for line in told)
    assert asked == sum("/release" in line and "fail=false" in line for line in told)


@needs_spaces
def test_pairs_and_comparisons_answer_there_too(space: SimpleNamespace) -> None:
    picture = handle_file(PENGUINS)
    found = space.client.predict([picture], ["a car", "a cat"], api_name="/pairs")
    assert np.shape(found["logits"]) == (1, 2)
    told = space.client.predict(
        picture, PROMPT, None, "caption en", api_name="/compare"
    )
    assert told["a"]["text"] != told["b"]["text"] and told["difference"]["sentences"]


@needs_spaces
def test_a_refusal_keeps_its_words_there(space: SimpleNamespace) -> None:
    with pytest.raises(Exception, match="There is no model 'nope'"):
        picture = handle_file(PENGUINS)
        space.client.predict(picture, PROMPT, model="nope", api_name="/probe")


@needs_spaces
def test_who_goes_away_gives_the_gpu_back(space: SimpleNamespace) -> None:
    how = {"style": "Temperature", "temperature": 5.0, "max_tokens": 512}
    picture = handle_file(PENGUINS)
    job = space.client.submit(picture, "caption en", **how, api_name="/probe")
    next(job)
    job.cancel()
    space.client.predict(picture, PROMPT, api_name="/probe")
    told = space.said()
    assert told.count("HOST /schedule") == told.count("HOST /release")
