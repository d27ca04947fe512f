from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from browser import find_browser
from engines import Pair, pair
from hypothesis import settings
from oracle import CASES, Case, case
from playwright.sync_api import Browser, expect, sync_playwright

from vlm import int8_file

# The same inputs in each run, however slow the machine; bench/hostile.py draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
# The models here are so small that threads only wait for each other.
torch.set_num_threads(1)
expect.set_options(timeout=20_000)  # milliseconds; a shared machine may be slow


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Files with a browser take longest: last of all, one would run all alone."""
    browsed = {item.path for item in items if "browser" in item.fixturenames}
    items.sort(key=lambda item: item.path not in browsed)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every checkpoint of the oracle, written and read once."""
    return {name: case(name, tmp_path_factory.mktemp(name)) for name in CASES}


@pytest.fixture(params=CASES)
def any_case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Engines with a vocabulary: PaliGemma 1's structure and PaliGemma 2's."""
    names = ("gemma", "gemma2")
    return {name: pair(name, tmp_path_factory.mktemp(name)) for name in names}


@pytest.fixture(params=["gemma", "gemma2"])
def both(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is written lies in here and not in the user's own cache."""
    cached = partial(int8_file.cached_assets_path, assets_dir=tmp_path / "cache")
    monkeypatch.setattr(int8_file, "cached_assets_path", cached)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser()
    assert path, "no Chromium here: run tests/run, which installs one"
    # The rest keeps Chromium from calling home.
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
