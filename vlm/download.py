"""Checkpoints from the Hub by their names: what of a repository is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, constants, errors, snapshot_download

from vlm.failures import FAILURES, explain, patiently, reason
from vlm.hub import Progress, beside
from vlm.masks import FILE as MASKS
from vlm.masks import PUBLISHED
from vlm.snapshot import Snapshot
from vlm.weights import INDEX, WEIGHTS, files, read_json, some

CONFIG, EXAMPLE = "config.json", "google/paligemma2-3b-mix-224"
# Who has a vocabulary that goes with most others of its kind.
TOKENIZERS = {
    "tokenizer.model": "google/paligemma-3b-pt-224",
    "tokenizer.json": "openai/clip-vit-base-patch32",
}
# What is read beside the weights, where it is there.
BESIDE = (CONFIG, MASKS, PUBLISHED)


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    check: Callable[[Path], Any],
) -> Path:
    """The local copy of a checkpoint on the Hub, fetched where it is not there yet.

    Where the Hub cannot be asked, it is the copy that is here, if that is complete.

    Args:
        name: owner/name, or owner/name@revision where no revision is given.
        progress: told in words what is being done, by the calling thread. None: bars
            are drawn where there is a terminal.
        check: raises ValueError where a folder's config.json is of no use; asked
            before any weights are fetched.
    Raises:
        ValueError: it cannot be had; the text says what to do.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w[\w.-]*))?", name)
    if not found:
        raise ValueError(
            f"{name!r} is neither a folder here nor a Hub name such as {EXAMPLE}"
        )
    name, branch = found.groups()
    tell = progress or (lambda words: None)
    revision = revision or branch or constants.DEFAULT_REVISION
    copy = complete_copy(name, revision)

    def ask() -> ModelInfo:
        return HfApi(token=token).model_info(
            name,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )

    try:
        about = ask() if copy else patiently(ask, what=name, tell=tell)
    except FAILURES as error:
        if copy is None or isinstance(error, errors.RevisionNotFoundError):
            raise ValueError(explain(error, name, revision, token)) from error
        tell(f"Using the copy of {name} that is here ({reason(error)})")
        return copy
    snapshot = Snapshot(name, about, token, progress)
    try:
        fill(snapshot, check)
        if revision != snapshot.commit:  # whoever is offline finds it by this
            ref = snapshot.cache / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(snapshot.commit)
    except FAILURES as error:
        raise ValueError(explain(error, name, revision, token)) from error
    return snapshot.folder


def fill(snapshot: Snapshot, check: Callable[[Path], Any]) -> None:
    """Have all in the folder that is needed, config.json first.

    Raises:
        ValueError: the repository is of no use here.
        HTTPError, OSError, RuntimeError: it does not arrive.
    """
    name, there = snapshot.name, snapshot.files
    if CONFIG not in there:
        raise ValueError(lacks(snapshot, CONFIG))
    snapshot.bring([CONFIG] if WEIGHTS in there else [CONFIG, INDEX])
    try:
        check(snapshot.folder)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be loaded, its weights were not fetched: {error}; choose "
            f"another, such as {EXAMPLE}"
        ) from error
    sets, more = beside(read_json(snapshot.folder / CONFIG))
    words = next((names for names in sets if there.keys() >= {*names}), None)
    if words is None:
        raise ValueError(
            f"{name} has no {sets[0][0]}; download it to a folder, put that file "
            f"from {TOKENIZERS[sets[0][0]]} there, and pass the folder"
        )
    snapshot.bring([*BESIDE, *more, *words, *weights(snapshot)])


def weights(snapshot: Snapshot) -> list[str]:
    """The file or the shards that the index names; never both."""
    if WEIGHTS in snapshot.files:
        return [WEIGHTS]
    if INDEX not in snapshot.files:
        raise ValueError(lacks(snapshot, WEIGHTS))
    index = read_json(snapshot.folder / INDEX)
    shards = sorted(set(index.get("weight_map", {}).values()))
    if absent := [shard for shard in shards if shard not in snapshot.files]:
        raise ValueError(
            f"{snapshot.name} lacks {some(absent)}, which its {INDEX} names; ask its "
            "owner, or choose another checkpoint"
        )
    return shards


def lacks(snapshot: Snapshot, what: str) -> str:
    return (
        f"{snapshot.name} has no {what}, only {some(sorted(snapshot.files))}; choose a "
        f"checkpoint in Hugging Face layout, such as {EXAMPLE}"
    )


def complete_copy(name: str, revision: str) -> Path | None:
    """The folder of a revision in the cache, if nothing is missing there."""
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=[CONFIG]
            )
        )
        files(folder)
        sets, _ = beside(read_json(folder / CONFIG))
    except (OSError, ValueError):  # nothing there, or not all of the weights
        return None
    whole = any(all((folder / name).is_file() for name in names) for names in sets)
    return folder if whole else None
