"""The engines of the page: loaded in the background, switched, freed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import until

from vlm.ui.models import Models

SECONDS = 20  # a shared machine may be slow


class Engine:
    def __init__(self, source: str) -> None:
        self.source, self.name = source, "none yet"

    def describe(self) -> dict:
        return {"name": self.name, "layers": 3}


class Loader:
    """Loads when a test lets it; `live` are the engines in memory, `most` of them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.live = weakref.WeakSet()
        self.most = 0
        self.at_once = self.most_at_once = 0

    def __call__(self, source: str, *, progress: Callable[[str], None]) -> Engine:
        self.begun.append(source)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while not self.gate(source).wait(0.01):
                progress(f"reading {source}")
            if "broken" in source:
                raise ValueError(f"{source} is broken. Choose another.")
            if "mistaken" in source:
                raise KeyError("a mistake")
            engine = Engine(source)
            self.live.add(engine)
            self.most = max(self.most, len(self.live))
            return engine
        finally:
            self.at_once -= 1

    def gate(self, source: str) -> threading.Event:
        return self.gates.setdefault(source, threading.Event())

    def open(self, *sources: str) -> None:
        for source in sources:
            self.gate(source).set()


@pytest.fixture
def loader() -> Loader:
    loader = Loader()
    loader.open("a")
    return loader


@pytest.fixture
def models(loader: Loader) -> Models:
    models = Models(loader, ["a"], switching=True)
    models.wait()
    return models


def still(models: Models) -> None:
    until(lambda: not models.news()["loading"], "the loading to end")


def test_what_is_asked_for_is_waited_for():
    loader = Loader()
    models = Models(loader, ["a"])
    assert models.names == ("a",)
    assert models.about()["name"] == "a" and models.about()["layers"] == 1
    until(lambda: models.news()["words"] == "reading a")
    threading.Timer(0.1, loader.open, "a").start()
    assert models["a"].source == "a"
    assert models.about()["layers"] == 3
    assert models.news() == {
        "version": 1,
        "names": ["a"],
        "loading": "",
        "words": "",
        "error": "",
    }


def test_a_first_loading_that_fails_tells_all_who_wait():
    loader = Loader()
    loader.open("broken")
    models = Models(loader, ["broken"])
    for ask in (models.wait, lambda: models["broken"], lambda: list(models)):
        with pytest.raises(ValueError, match="broken is broken. Choose another."):
            ask()
    assert models.news()["error"].startswith("broken is broken")


def test_several_are_loaded_one_after_the_other_and_stay():
    loader = Loader()
    loader.open("a", "b")
    models = Models(loader, ["a", "b", "a"], switching=True)
    assert [engine.name for engine in models] == ["a", "b"]
    assert loader.begun == ["a", "b"] and loader.most_at_once == 1
    with pytest.raises(ValueError, match="--menu, and with one model"):
        models.choose("c")


def test_the_old_one_answers_until_the_next_is_ready_and_is_freed(models, loader):
    models.choose("b")
    until(lambda: models.news()["words"] == "reading b")
    assert models.news()["loading"] == "b" and models.names == ("a",)
    assert models["a"].source == "a"
    loader.open("b")
    still(models)
    assert models.names == ("b",) and models["b"].source == "b"
    assert models.news()["version"] == 2
    gc.collect()
    assert [engine.source for engine in loader.live] == ["b"]
    with pytest.raises(ValueError, match="a is no longer loaded, b answers here now"):
        models["a"]


def test_an_answer_keeps_its_engine_and_no_third_is_loaded_meanwhile(models, loader):
    answering = models["a"]
    loader.open("b", "c")
    models.choose("b")
    still(models)
    models.choose("c")
    until(lambda: "Waiting for the last answer" in models.news()["words"])
    assert {engine.source for engine in loader.live} == {"a", "b"}
    assert loader.begun == ["a", "b"] and models["b"].source == "b"
    del answering
    still(models)
    assert models.names == ("c",) and loader.most == 2


def test_memory_holds_two_at_most_however_often_one_switches(models, loader):
    for i in range(8):
        loader.open(f"m{i}")
        models.choose(f"m{i}")
        if i % 3:
            still(models)
    still(models)
    assert models.names == ("m7",)
    assert loader.most == 2 and loader.most_at_once == 1


def test_a_loading_that_fails_leaves_the_old_one_and_is_told(models, loader):
    loader.open("broken", "mistaken", "b")
    models.choose("broken")
    still(models)
    assert models.news()["error"] == "broken is broken. Choose another."
    assert models["a"].source == "a" and models.news()["version"] == 1
    models.choose("mistaken")  # what nobody foresaw ends the loading too
    still(models)
    assert "mistaken cannot be loaded" in models.news()["error"]
    models.choose("b")
    still(models)
    assert models.names == ("b",) and models.news()["error"] == ""


def test_what_is_chosen_last_wins(models, loader):
    models.choose("b")
    until(lambda: "b" in loader.begun)
    models.choose("c")
    assert models.news()["loading"] == "c"
    until(lambda: "c" in loader.begun)
    loader.open("b", "c")
    still(models)
    assert models.names == ("c",) and models.news()["version"] == 2
    assert loader.most_at_once == 1


def test_a_loading_that_has_no_words_is_overtaken_too(loader):
    began = threading.Event()

    def silent(source: str, *, progress: Callable[[str], None]) -> Engine:
        began.set()
        loader.gate(source).wait(SECONDS)
        return Engine(source)

    models = Models(silent, ["a"], switching=True)
    models.wait()
    began.clear()
    models.choose("b")
    assert began.wait(SECONDS)
    models.choose("c")
    loader.open("b", "c")
    still(models)
    assert models.names == ("c",) and models.news()["version"] == 2


@pytest.mark.parametrize("instead", ["", "  ", "a"])
def test_a_loading_is_called_off(models, loader, instead):
    models.choose("b")
    until(lambda: "b" in loader.begun)
    models.choose(instead)
    assert models.news()["loading"] == ""
    until(lambda: not loader.at_once)
    loader.open("b", "c")
    models.choose("c")
    still(models)
    assert loader.begun == ["a", "b", "c"] and models.names == ("c",)


def test_chosen_from_many_threads_one_answers_and_one_loads_at_a_time(models, loader):
    sources = [f"m{i}" for i in range(12)]
    loader.open(*sources)
    threads = [threading.Thread(target=models.choose, args=(s,)) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    still(models)
    assert models.names[0] in sources
    assert loader.most_at_once == 1 and loader.most <= 2


def test_a_name_never_means_two_checkpoints(tmp_path: Path, loader):
    folders = [tmp_path / side / "tiny" for side in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = map(str, folders)
    loader.open(first, second)
    models = Models(loader, [first], switching=True)
    assert [engine.name for engine in models] == ["tiny"]
    models.choose(second)
    still(models)
    assert models.names == (second,)
    models.choose(f" {first} ")
    still(models)
    assert models.names == ("tiny",) and models["tiny"].source == first


def test_who_asks_for_none_or_for_what_is_gone_asks_the_first(models, loader):
    loader.open("b")
    assert models.asked() == models.asked("gone") == models.asked("a") == "a"
    models.choose("b")
    still(models)
    assert models.asked("a") == "b" and models.about("a")["name"] == "b"


def test_nobody_switches_where_it_is_not_allowed(loader):
    models = Models(loader, ["a"])
    with pytest.raises(ValueError, match="cannot be switched here"):
        models.choose("b")
    given = Models.of([Engine("x")])
    with pytest.raises(ValueError, match="cannot be switched here"):
        given.choose("b")
    assert given["none yet"].source == "x"
