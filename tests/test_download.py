"""Checkpoints by name, from a stand-in for the Hub that huggingface_hub talks to.

The stand-in announces plain LFS files, which the library fetches over HTTP; how it
fetches through Xet is its own affair, and what is tested here comes before and after.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from engines import Pair, picture
from hub_server import Answer, HubServer, commit, sha256, stand_in
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http, tqdm
from oracle import read, write

import vlm
from vlm import checkpoint, failures, mask_file, snapshot

NAME = "some/paligemma"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with nothing in it, an empty cache, and little patience."""
    server = stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(failures, "PAUSE", 0.001)
    monkeypatch.setattr(snapshot, "NEWS", 0.01)
    # Masks have a file of tests of their own.
    monkeypatch.setattr(mask_file, "find", lambda folder, **how: None)
    hurried = SimpleNamespace(sleep=lambda seconds: None)
    for library in (file_download, _http):
        monkeypatch.setattr(library, "time", hurried)
    yield server
    server.close()


@pytest.fixture
def one(pairs: dict[str, Pair]) -> Pair:
    """A checkpoint in one file."""
    return pairs["gemma"]


@pytest.fixture
def sharded(pairs: dict[str, Pair], tmp_path: Path) -> Path:
    """PaliGemma 2's structure in several shards, and what else lies in repositories."""
    folder = tmp_path / "sharded"
    write(folder, read(pairs["gemma2"].folder), max_shard_size="80KB")
    shutil.copy(pairs["gemma2"].folder / "tokenizer.model", folder)
    for name in ("model.gguf", "weights.npz", "pytorch_model.bin", "README.md"):
        (folder / name).write_bytes(b"not needed" * 100)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


def load(name: str = NAME, **how) -> vlm.Engine:
    return vlm.load(name, device="cpu", quantize="none", **how)


def refusal(name: str = NAME, **how) -> str:
    """The one sentence that `vlm.load` refuses with."""
    with pytest.raises(ValueError) as caught:
        load(name, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def weights_asked(hub: HubServer) -> list[str]:
    return [name for name in hub.files_asked() if name.endswith(".safetensors")]


def test_a_checkpoint_is_loaded_by_name_and_answers_as_from_its_folder(
    hub: HubServer, both: Pair
):
    hub.repositories[NAME] = {"main": both.folder}
    engine = load()
    assert engine.name == NAME
    logits = engine.logits(picture(), "detect cat", "<loc0001>")
    assert torch.equal(logits, both.engine.logits(picture(), "detect cat", "<loc0001>"))
    count = len(hub.asked)
    load()
    assert [asked.path for asked in hub.asked[count:]] == [
        f"/api/models/{NAME}/revision/main"
    ]


def test_only_what_is_needed_is_fetched(hub: HubServer, sharded: Path, pairs):
    hub.repositories[NAME] = {"main": sharded}
    assert len(shards(sharded)) > 3
    engine = load()
    needed = ["config.json", "generation_config.json", checkpoint.INDEX]
    assert sorted(hub.files_asked()) == sorted(
        [*needed, "tokenizer.model", *shards(sharded)]
    )
    asked = (picture(), "caption en")
    assert torch.equal(engine.logits(*asked), pairs["gemma2"].engine.logits(*asked))


def test_where_there_are_shards_and_one_file_the_one_file_is_fetched(
    hub: HubServer, sharded: Path, pairs: dict[str, Pair]
):
    shutil.copy(pairs["gemma2"].folder / checkpoint.WEIGHTS, sharded)
    hub.repositories[NAME] = {"main": sharded}
    load()
    assert weights_asked(hub) == [checkpoint.WEIGHTS]


def test_a_revision_is_fetched_by_its_name_or_commit(
    hub: HubServer, pairs: dict[str, Pair]
):
    first, second = pairs["gemma"].folder, pairs["gemma2"].folder
    hub.repositories[NAME] = {"main": first, "bfloat16": second}
    assert load(revision="bfloat16").config == pairs["gemma2"].engine.config
    assert load().config == pairs["gemma"].engine.config
    assert load(revision=commit(second)).config == pairs["gemma2"].engine.config
    engine = load(f"{NAME}@bfloat16")
    assert engine.config == pairs["gemma2"].engine.config
    assert engine.name == f"{NAME}@bfloat16"
    assert load(f"{NAME}@bfloat16", revision="main").config == load().config
    told = refusal(revision="float17")
    assert "has no revision 'float17'" in told and "/tree/main lists" in told
    assert refusal(f"{NAME}@float17") == told
    for wrong in ("@", "@../../evil", "@a/b", "@@main"):
        assert "neither a folder here nor a Hub name" in refusal(NAME + wrong)


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: HubServer, sharded: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = {"main": sharded}
    monkeypatch.setenv("HF_TOKEN", "from_environment")
    load()
    assert {asked.host for asked in hub.asked} == {"127.0.0.1", "localhost"}
    for asked in hub.asked:
        expected = "Bearer from_environment" if asked.host == "127.0.0.1" else None
        assert asked.token == expected, asked
    hub.asked.clear()
    load(token="given")
    assert {asked.token for asked in hub.asked} == {"Bearer given"}
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("logged_in")
    hub.asked.clear()
    load()
    assert {asked.token for asked in hub.asked} == {"Bearer logged_in"}


def test_progress_counts_all_files_and_is_told_by_the_caller(
    hub: HubServer, sharded: Path
):
    hub.repositories[NAME] = {"main": sharded}
    hub.pause = 0.01
    told, threads = [], set()

    def progress(words: str) -> None:
        told.append(words)
        threads.add(threading.get_ident())

    load(progress=progress)
    pattern = rf"Downloading {NAME}: ([\d.]+) of ([\d.]+) MB"
    found = [found for words in told if (found := re.match(pattern, words))]
    figures = [(float(each[1]), float(each[2])) for each in found]
    needed = ["config.json", "generation_config.json", "tokenizer.model"]
    sizes = [(sharded / name).stat().st_size for name in (*needed, *shards(sharded))]
    total = round(sum(sizes) / 1e6, 2)
    arrived = [here for here, whole in figures if whole == total]
    assert arrived == sorted(arrived) and len(set(arrived)) > 5
    assert total * 0.7 < arrived[-1] <= total
    assert f"Checking what arrived of {NAME}" in told
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("progress", [None, lambda words: None])
def test_bars_are_drawn_only_on_a_terminal_and_where_nobody_is_told(
    hub: HubServer, one: Pair, progress, monkeypatch: pytest.MonkeyPatch, capsys
):
    hub.repositories[NAME] = {"main": one.folder}
    switches = sys.modules[tqdm.__module__].progress_bar_states
    monkeypatch.setitem(switches, "_global", True)  # oracle.py turns them off
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    load(progress=progress)
    assert capsys.readouterr().err == ""
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(progress=progress)  # last: a bar may clear its line long after its end
    assert ("Downloading bytes" in capsys.readouterr().err) == (progress is None)


def test_twenty_cuts_end_with_a_complete_model(hub: HubServer, sharded: Path):
    hub.repositories[NAME] = {"main": sharded}
    hub.cuts, hub.cut_where = 20, "/storage"  # what is small is not gone on with
    told = []
    engine = load(progress=told.append)
    assert hub.cuts == 0
    assert any(asked.start for asked in hub.asked)  # gone on with
    assert any("reset" in words and "going on in" in words for words in told), told
    assert is_whole(checkpoint.find(NAME), sharded)
    assert engine.generate(picture(), "caption en", max_tokens=3).steps


def is_whole(folder: Path, source: Path) -> bool:
    """Whether all that is needed of a source is in a folder of the cache, unharmed."""
    names = [*shards(source), "tokenizer.model", "config.json"]
    unharmed = all(sha256(folder / name) == sha256(source / name) for name in names)
    return unharmed and not list((folder.parents[1] / "blobs").glob("*.incomplete"))


def test_it_is_given_up_after_some_failures_and_whole_files_are_kept(
    hub: HubServer, sharded: Path
):
    hub.repositories[NAME] = {"main": sharded}
    lost = sharded / shards(sharded)[1]

    def refuse(asked):
        return Answer(503) if asked.path == f"/storage/{sha256(lost)}" else None

    hub.refuse, told = refuse, []
    words = refusal(progress=told.append)
    assert "does not answer for" in words and "files that are whole are kept" in words
    assert "the Hub answers 503" in words
    assert hub.times_sent(lost) == failures.TRIES + 1
    assert sum("going on in" in words for words in told) == failures.TRIES
    hub.refuse = lambda asked: None
    hub.asked.clear()
    load()
    assert weights_asked(hub) == [lost.name]


def test_patience_is_counted_anew_where_bytes_came_but_has_an_end(
    hub: HubServer, one: Pair, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = {"main": one.folder}
    weights = one.folder / checkpoint.WEIGHTS
    monkeypatch.setattr(failures, "MOST_TRIES", 12)
    hub.only_resets, hub.cut_where = True, f"/storage/{sha256(weights)}"
    hub.cuts = 10
    load()
    assert hub.times_sent(weights) == 11
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.cuts = 100
    assert "reset" in refusal()


def test_an_interrupted_download_ends_at_once(hub: HubServer, one: Pair):
    hub.repositories[NAME] = {"main": one.folder}
    weights = one.folder / checkpoint.WEIGHTS
    hub.pause = 60 * 4096 / weights.stat().st_size  # a minute for them
    interrupted = []

    def progress(words: str) -> None:
        if hub.times_sent(weights):
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(progress=progress)
    assert time.monotonic() - interrupted[0] < 20
    hub.pause = 0
    assert load().config


def test_a_killed_download_is_completed(
    hub: HubServer, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By HF_ENDPOINT and HF_HOME, as everybody sets them."""
    hub.repositories[NAME] = {"main": sharded}
    hub.pause = 0.05  # small shards are whole before large ones
    home = tmp_path / "home"
    known = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    code = f"import vlm; vlm.load({NAME!r}, device='cpu', progress=print)"
    folder = home / "hub" / "models--some--paligemma" / "snapshots" / commit(sharded)
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **known},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not (whole := shards(folder)):
        assert program.poll() is None
        time.sleep(0.01)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert len(whole) < len(shards(sharded))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    hub.pause = 0
    hub.asked.clear()
    load()
    assert set(weights_asked(hub)) <= set(shards(sharded)) - set(whole)
    for broken_off in (folder.parents[1] / "blobs").glob("*.incomplete"):
        broken_off.unlink()  # what the library leaves where it is killed
    assert is_whole(folder, sharded)


def test_damage_on_the_way_is_noticed_and_mended_once(hub: HubServer, one: Pair):
    hub.repositories[NAME] = {"main": one.folder}
    weights = one.folder / checkpoint.WEIGHTS
    size = weights.stat().st_size

    def damage(content: bytes) -> bytes:
        if len(content) != size or hub.times_sent(weights) > damaged:
            return content
        return content[:-1] + bytes([content[-1] ^ 1])

    hub.damage, damaged = damage, 2
    words = refusal()
    assert "model.safetensors of some/paligemma arrived damaged, twice" in words
    assert hub.times_sent(weights) == 2
    hub.asked.clear()
    damaged, told = 1, []
    load(progress=told.append)
    assert any("arrived damaged; fetching it again" in words for words in told)
    assert hub.times_sent(weights) == 2
    assert sha256(checkpoint.find(NAME) / checkpoint.WEIGHTS) == sha256(weights)


def test_damage_in_a_small_file_is_noticed_too(hub: HubServer, one: Pair):
    hub.repositories[NAME] = {"main": one.folder}
    config = (one.folder / "config.json").read_bytes()
    wrong = config.replace(b"1", b"2")
    hub.damage = lambda content: wrong if content == config else content
    assert "config.json of some/paligemma arrived damaged, twice" in refusal()


def test_the_library_finds_what_was_fetched(hub: HubServer, sharded: Path):
    hub.repositories[NAME] = {"main": sharded}
    load()
    hub.asked.clear()
    patterns = ["*.safetensors", "config.json"]
    folder = huggingface_hub.snapshot_download(NAME, allow_patterns=patterns)
    assert Path(folder) == checkpoint.find(NAME)
    assert not weights_asked(hub)
    (cached,) = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    (revision,) = cached.revisions
    assert (revision.commit_hash, revision.refs) == (commit(sharded), {"main"})


@pytest.mark.parametrize("how", ["offline", "gone", "silent", "503", "gated now"])
def test_without_the_hub_the_copy_that_is_here_is_used(
    hub: HubServer, sharded: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    hub.repositories[NAME] = {"main": sharded}
    load()
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    hub.silent = how == "silent"
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    gated = Answer(403, {"X-Error-Code": "GatedRepo"})
    refused = {"503": Answer(503), "gated now": gated}.get(how)
    hub.refuse = lambda asked: refused
    told = []
    assert load(progress=told.append).config
    assert any(f"Using the copy of {NAME} that is here" in words for words in told)
    (checkpoint.find(NAME) / shards(sharded)[1]).unlink()
    words = refusal()
    if how == "offline":
        assert "no complete copy" in words and "unset it to download" in words
    elif how == "gated now":
        assert "accept its licence" in words
    else:
        assert "check the connection and try again" in words


LICENCE = "accept its licence at https://huggingface.co/some/paligemma"
GATED = {"X-Error-Code": "GatedRepo"}
UNKNOWN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    "token, answer, words",
    [
        (None, Answer(401, GATED), f"is gated: {LICENCE}, then set HF_TOKEN"),
        ("t", Answer(403, GATED), f"your token is not let in: {LICENCE} with the"),
        ("t", Answer(401, UNKNOWN), "the Hub does not know your token: make one at"),
        (
            "t",
            Answer(403, {"X-Error-Message": "Not for you."}),
            r"does not let you read some/paligemma \(Not for you.\): look at https:",
        ),
        (
            None,
            Answer(404, {"X-Error-Code": "RepoNotFound"}),
            "no some/paligemma on the Hub; check the spelling",
        ),
        (
            None,
            Answer(429, {"RateLimit": '"api";r=0;t=212'}),
            "was asked too often .* again in 212 s, with HF_TOKEN set the limit is hi",
        ),
        (None, Answer(503), r"check the connection and try .* \(the Hub answers 503\)"),
    ],
)
@pytest.mark.parametrize("where", ["/api/", f"/{NAME}/resolve/", "/storage/"])
def test_a_refusal_says_what_to_do(
    hub: HubServer, one: Pair, token, answer: Answer, words: str, where: str
):
    hub.repositories[NAME] = {"main": one.folder}
    hub.refuse = lambda asked: answer if asked.path.startswith(where) else None
    assert re.search(words, refusal(token=token))


@pytest.mark.parametrize("where", ["/api/", f"/{NAME}/resolve/", "/storage/"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_asks_for_a_little_patience_gets_it(
    hub: HubServer, one: Pair, where: str, status: int
):
    hub.repositories[NAME] = {"main": one.folder}
    left = [Answer(status, {"Retry-After": "1"}) for _ in range(3)]

    def refuse(asked):
        return left.pop() if asked.path.startswith(where) and left else None

    hub.refuse, told = refuse, []
    load(progress=told.append)
    assert not left
    if where == "/api/":
        words = f"{NAME}: the Hub answers {status}; going on in 1 s"
        assert told.count(words) == 3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "llava"}, "model_type 'llava'; this loads 'paligemma'"),
        ({"quantization_config": {"bits": 4}}, "are quantized; load the checkpoint"),
        ({"text_config": {"model_type": "gemma3"}}, "the text model is 'gemma3'"),
    ],
)
def test_what_cannot_be_loaded_is_told_before_its_weights_are_fetched(
    hub: HubServer, sharded: Path, change: dict, words: str
):
    raw = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**raw, **change}))
    hub.repositories[NAME] = {"main": sharded}
    told = refusal()
    assert words in told and "choose another, such as google/" in told
    assert set(hub.files_asked()) == {"config.json", checkpoint.INDEX}


@pytest.mark.parametrize(
    "gone, words",
    [
        ("config.json", "has no config.json, only .*model.gguf.*; choose a checkpoint"),
        ("*.safetensors*", "has no model.safetensors, only .*; choose a checkpoint in"),
        ("*-00002-of-*", "lacks model-00002-of.*, which its model.safetensors.index"),
        ("tokenizer.model", "has no tokenizer.model; download it to a folder, put"),
    ],
)
def test_what_a_repository_lacks_is_told_before_weights_are_fetched(
    hub: HubServer, sharded: Path, gone: str, words: str
):
    for path in sharded.glob(gone):
        path.unlink()
    hub.repositories[NAME] = {"main": sharded}
    assert re.search(words, refusal())
    assert not weights_asked(hub)


def test_a_pair_is_not_taken_for_a_paligemma_nor_the_other_way(
    hub: HubServer, one: Pair
):
    hub.repositories[NAME] = {"main": one.folder}
    with pytest.raises(ValueError, match="this loads 'siglip' and 'clip' pairs"):
        vlm.load_pair(NAME)
    assert not weights_asked(hub)


def test_a_disk_that_is_too_small_is_told_before_the_download(
    hub: HubServer, sharded: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = {"main": sharded}
    size = sum((sharded / name).stat().st_size for name in shards(sharded))
    monkeypatch.setattr(snapshot, "free_bytes", lambda folder: size)
    words = refusal()
    assert "is too full for some/paligemma (0.00 GB are missing, 0.00 GB" in words
    assert "set HF_HOME to a folder on another disk" in words
    assert not weights_asked(hub)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_is_told(
    hub: HubServer, one: Pair, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = {"main": one.folder}
    monkeypatch.setattr(file_download.uuid, "uuid4", lambda: uuid.UUID(int=0))
    blobs = Path(constants.HF_HUB_CACHE) / "models--some--paligemma" / "blobs"
    blobs.mkdir(parents=True)
    digest = sha256(one.folder / checkpoint.WEIGHTS)
    (blobs / f"{digest}.00000000.incomplete").symlink_to("/dev/full")
    words = refusal()
    assert "too full for some/paligemma (No space left on device): free some" in words


def test_a_cache_that_cannot_be_written_is_told(
    hub: HubServer, one: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = {"main": one.folder}
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "set HF_HOME to a folder that can be written" in refusal()


def test_free_room_is_that_of_the_disk_where_the_cache_will_be(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    assert snapshot.free_bytes(tmp_path / "a" / "b") == pytest.approx(free, rel=0.05)


def test_a_folder_that_is_no_checkpoint_is_told_what_it_lacks(tmp_path: Path):
    with pytest.raises(ValueError, match="no config.json; a checkpoint folder holds"):
        checkpoint.find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no model.safetensors or model.safetensors.i"):
        checkpoint.find(tmp_path)
    (tmp_path / checkpoint.WEIGHTS).write_text("")
    assert checkpoint.find(str(tmp_path)) == tmp_path


def test_what_is_neither_folder_nor_hub_name_is_refused():
    with pytest.raises(ValueError, match="neither a folder here nor a Hub name"):
        checkpoint.find("./no/such/folder")


def test_the_app_tells_on_a_terminal_how_far_a_download_is(
    hub: HubServer, one: Pair, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    import app

    hub.repositories[NAME] = {"main": one.folder}
    hub.pause = 0.002
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", NAME, "--device", "cpu"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    (engine,) = app.load(app.parse())
    assert engine.name == NAME
    lines = capsys.readouterr().err.split("\r")
    assert any(f"Downloading {NAME}:" in line for line in lines)
