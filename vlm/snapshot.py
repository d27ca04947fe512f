"""The files of a model at one commit, fetched into huggingface_hub's cache and checked.

`huggingface_hub.snapshot_download` brings them, several at once: in chunks that have
hashes where the repository lies in Xet, as most do, else over HTTP. Over HTTP it goes
on inside a file after a connection that ended early or was silent, and begins the file
anew after one that was reset. It compares sizes only; the hashes are compared here.
What is whole stays in the cache, whatever ends a download.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

from huggingface_hub import ModelInfo, constants, errors, snapshot_download
from huggingface_hub.utils import tqdm
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from vlm.failures import DamagedError, patiently
from vlm.hub import Progress
from vlm.weights import some

NEWS = 0.5  # seconds between two words about how far it is


class Snapshot:
    """What the Hub says of a model at one commit, and the folder for its files."""

    def __init__(
        self, name: str, about: ModelInfo, token: str | None, progress: Progress | None
    ) -> None:
        """`about` with `files_metadata`."""
        self.name, self.token, self.progress = name, token, progress
        self.files = {file.rfilename: file for file in about.siblings}
        self.commit = about.sha
        cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        self.cache = cache / f"models--{name.replace('/', '--')}"
        self.folder = self.cache / "snapshots" / about.sha
        self.counts: Counter[int] = Counter()  # bytes of this try, as each bar has them

    def bring(self, names: Iterable[str], *, once_more: bool = True) -> None:
        """Have those of the files that there are; if one was missing, check them all.

        What is damaged is fetched once more.

        Raises:
            HTTPError, OSError, RuntimeError: they cannot be had.
        """
        names = [name for name in names if name in self.files]
        if not self.missing(names):
            return
        patiently(
            lambda: self.fetch(names),
            what=self.name,
            tell=self.tell,
            bytes_came=lambda: any(self.counts.values()),
        )
        self.tell(f"Checking what arrived of {self.name}")
        with ThreadPoolExecutor() as pool:
            intact = list(pool.map(self.is_intact, names))
        damaged = [name for name, is_good in zip(names, intact) if not is_good]
        for path in (self.folder / name for name in damaged):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if damaged and not once_more:
            raise DamagedError(some(damaged))
        if damaged:
            self.tell(f"{some(damaged)} arrived damaged; fetching it again")
            self.bring(damaged, once_more=False)

    def fetch(self, names: list[str]) -> None:
        """Try to have all of these files, and tell meanwhile how far it is."""
        whole, lacking = self.size(names), self.size(self.missing(names))
        if lacking > (free := free_bytes(self.cache)):
            words = f"{lacking / 1e9:.2f} GB are missing, {free / 1e9:.2f} GB are free"
            raise OSError(errno.ENOSPC, words)
        self.counts.clear()
        stop = Event()
        bar = counting(self.counts, stop, draw=self.progress is None)
        with ThreadPoolExecutor(1) as pool:
            arriving = pool.submit(
                snapshot_download,
                self.name,
                revision=self.commit,
                token=self.token,
                allow_patterns=names,
                tqdm_class=bar,
            )
            try:
                while wait([arriving], NEWS).not_done:
                    arrived = max(self.counts.values(), default=0)
                    here = min(whole, whole - lacking + arrived)
                    self.tell(f"Downloading {self.name}: {amount(here, whole)}")
            except BaseException:  # Ctrl-C: the files end at their next bytes
                stop.set()
                raise
        arriving.result()
        if missing := self.missing(names):
            raise errors.HTTPError(f"{some(missing)} did not arrive")

    def tell(self, words: str) -> None:
        if self.progress:
            self.progress(words)

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not (self.folder / name).exists()]

    def size(self, names: Iterable[str]) -> int:
        return sum(self.files[name].size for name in names)

    def is_intact(self, name: str) -> bool:
        """Whether a file has the hash that the Hub names."""
        about, path = self.files[name], self.folder / name
        if about.lfs is None:
            return git_hash(path.read_bytes()) == about.blob_id
        with path.open("rb") as file:
            return sha_fileobj(file).hex() == about.lfs.sha256


def counting(counts: Counter[int], stop: Event, *, draw: bool) -> type[tqdm]:
    """A progress bar for the library that counts bytes; it has one for what came over
    the network and one for what is on the disk, of all files together."""

    class Bar(tqdm):
        def __init__(self, *args: Any, unit: str = "it", **how: Any) -> None:
            self.counts_bytes = unit == "B"
            how |= {"disable": None if draw else True, "leave": False}
            super().__init__(*args, unit=unit, **how)

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise InterruptedError
            if self.counts_bytes:
                with self.get_lock():
                    counts[id(self)] += n
            return super().update(n)

    return Bar


def free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is or will be."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def amount(part: float, whole: int) -> str:
    """`1.00 of 4.00 GB`."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((u for u in units if whole >= u[0] / 10), units[-1])
    return f"{part / unit:.2f} of {whole / unit:.2f} {name}"
