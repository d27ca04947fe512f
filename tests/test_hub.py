"""Finding a checkpoint: folders, Hub names, and what to do when neither works."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from oracle import Case

from vlm import checkpoint, hub


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


def failure(kind: type[Exception]) -> Exception:
    try:
        return kind("as the Hub says it", response=FakeResponse())
    except TypeError:
        return kind("as the Hub says it")


class FakeResponse:
    headers: dict[str, str] = {}
    request = None
    status_code = 403


@pytest.mark.parametrize(
    "kind, words",
    [
        (
            errors.GatedRepoError,
            "accept its licence at https://huggingface.co/some/name, then set HF_TOKEN",
        ),
        (errors.RepositoryNotFoundError, "no some/name on the Hub; check the spelling"),
        (errors.RevisionNotFoundError, "has no revision 'float17'"),
        (errors.LocalEntryNotFoundError, "check the connection, or pass a folder"),
        (errors.HfHubHTTPError, "check the connection, or pass a folder"),
    ],
)
def test_a_failing_download_says_what_to_do(monkeypatch, kind, words):
    def fail(*_, **__):
        raise failure(kind)

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=words):
        checkpoint.find("some/name", revision="float17")


def test_a_download_is_asked_for_what_is_needed_and_tells_how_far_it_is(
    cases: dict[str, Case], monkeypatch
):
    asked, told = {}, []

    def download(name, **how):
        asked.update(how, name=name)
        with how["tqdm_class"](total=4_000_000_000, unit="B") as bar:
            bar.update(1_000_000_000)
            bar.refresh()
        return str(cases["gemma"].folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    folder = checkpoint.find(
        "some/name", revision="main", token="secret", progress=told.append
    )
    assert folder == cases["gemma"].folder
    assert (asked["name"], asked["revision"], asked["token"]) == (
        "some/name", "main", "secret",
    )  # fmt: skip
    assert "Downloading some/name: 1.00 of 4.00 GB" in told
    files = ["config.json", "model-00001-of-00003.safetensors", "tokenizer.model"]
    files += [checkpoint.INDEX, "preprocessor_config.json", "generation_config.json"]
    fetched = huggingface_hub.utils.filter_repo_objects(
        [*files, "pytorch_model.bin", "model.npz", "README.md"],
        allow_patterns=asked["allow_patterns"],
    )
    assert list(fetched) == files
