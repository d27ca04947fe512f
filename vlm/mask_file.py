"""Which file draws a checkpoint's masks: its own, or Google's.

PaliGemma learnt the codes of one autoencoder, which does not lie beside its weights but
in an open Space, https://huggingface.co/spaces/big-vision/paligemma-hf, as 8.5 MB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download

from vlm.failures import FAILURES, DamagedError, reason, root
from vlm.hub import Progress
from vlm.masks import FILE, PUBLISHED

SPACE = "big-vision/paligemma-hf"
SHA256 = "5586010257b8536dddefab65e7755077f21d5672d5674dacf911f73ae95a4447"


def find(
    folder: Path, *, fetch: bool, tell: Progress, token: str | None = None
) -> Path | None:
    """The file beside a checkpoint's weights, else Google's.

    None where neither is here and it cannot be had: an answer is one without masks
    too, so that is only told.

    Args:
        fetch: whether to ask the Hub for what is not in its cache.
    """
    for name in (FILE, PUBLISHED):
        if (folder / name).is_file():
            return folder / name
    try:
        return published(fetch=fetch, token=token)
    except FAILURES as error:
        if fetch:
            tell(
                f"Masks will not be drawn: {PUBLISHED} cannot be had "
                f"({reason(root(error))}); load again, or put it beside the weights"
            )
        return None


def published(*, fetch: bool, token: str | None = None) -> Path:
    """Google's file in the Hub's cache, whole.

    Raises:
        HTTPError, OSError, RuntimeError: it is not there, or does not arrive.
    """
    for from_hub in (False, True) if fetch else (False,):
        try:
            path = Path(
                hf_hub_download(
                    SPACE,
                    PUBLISHED,
                    repo_type="space",
                    token=token,
                    local_files_only=not from_hub,
                )
            )
        except FAILURES:
            if from_hub or not fetch:
                raise
            continue
        if is_whole(path):
            return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    raise DamagedError(f"{PUBLISHED} arrived damaged")


def is_whole(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
