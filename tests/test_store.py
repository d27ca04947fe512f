"""What is kept for the viewer: under names nobody guesses, bounded in bytes and age."""

from __future__ import annotations

import base64
import gc
import tracemalloc
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from vlm.ui import store
from vlm.ui.asking import Ask, views
from vlm.ui.store import Entry, Store

PENGUINS = str(Path(__file__).parents[1] / "assets" / "examples" / "penguins.webp")


@given(st.binary(max_size=40) | st.sampled_from([b"\xff" * n for n in range(9)]))
def test_bytes_are_written_as_the_standard_library_writes_them_in_base_85(data):
    assert store.base85(data) == base64.b85encode(data).decode()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set."""
    now = [0.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    return now


def test_names_have_128_bits_and_none_comes_twice():
    kept = Store(100)
    names = {kept.open(None) for _ in range(500)}
    assert len(names) == 500
    assert all(len(name) >= 22 for name in names)  # of 64 characters


def test_a_run_that_nobody_looked_at_for_so_long_is_gone(clock):
    kept = Store(10**6, age=10)
    old, looked = kept.open("old"), kept.open("looked")
    kept.add(old, "a0", Entry(b"maps"))
    clock[0] = 8
    assert kept.get(looked).ask == "looked"
    clock[0] = 12
    assert kept.get(old) is None and kept.read(old, ["a0"]) is None
    assert kept.get(looked) is not None
    assert kept.size == 0
    clock[0] = 23
    kept.open("another")
    assert len(kept._runs) == 1


def test_the_run_looked_at_longest_ago_makes_room():
    kept = Store(100)
    a, b, c = (kept.open(name) for name in "abc")
    for run in (a, b):
        kept.add(run, "a0", Entry(bytes(40)))
    kept.get(a)
    kept.add(c, "a0", Entry(bytes(40)))
    assert [kept.get(run) is None for run in (a, b, c)] == [False, True, False]
    kept.add(c, "a0", Entry(bytes(50)))  # in place of the other one
    assert kept.size == 90


def test_what_runs_take_is_counted_with_their_words():
    kept, engine = Store(2**30), FakeEngine(delay=0)
    ask = Ask("one", PENGUINS, "caption forever")
    list(views(engine, kept, ask))  # what is imported and kept once
    before = kept.size
    tracemalloc.start()
    list(views(engine, kept, ask))
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.size - before == pytest.approx(taken, rel=0.3)
