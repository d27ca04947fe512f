"""The running app, in a process of its own, as many users ask it.

    with running() as app:
        answer = app.ask(Question(picture, "detect penguin")).answer()

It is `app.py` with the embedded checkpoint, asked over HTTP by the protocol of its own
page. `python tests/bench/running.py OPTIONS OF THE APP` is that process: it answers a
line on its standard input by the number of caches that are in its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "assets" / "examples"
PROMPTS = (
    "caption en",
    "detect penguin ; car",
    "answer en how many bananas are there?",
    "segment turtle",
    "answer en is there a dog?",
    "detect banana ; boat",
)
LONGEST = 256  # tokens of an answer
TOLD = "caches: "


@dataclass(frozen=True)
class Question:
    picture: Path
    prompt: str


def questions(count: int) -> list[Question]:
    """So many, all different as long as there are enough pictures and prompts."""
    pictures = sorted(EXAMPLES.glob("*.webp"))
    every = [Question(picture, prompt) for prompt in PROMPTS for picture in pictures]
    return [every[i % len(every)] for i in range(count)]


class App:
    """The running app."""

    def __init__(self, url: str, process: psutil.Popen, folder: Path) -> None:
        self.process, self.folder = process, folder
        # One for all users: to make one takes longer than a short answer.
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=url, timeout=600, limits=limits)
        self.sent: dict[Path, dict[str, Any]] = {}
        config = self.http.get("/config").json()
        names = {each["api_name"]: each["id"] for each in config["dependencies"]}
        self.function = names["probe"]

    def ask(self, question: Question) -> Call:
        """Join the queue with it."""
        if question.picture not in self.sent:
            self.sent[question.picture] = self.upload(question.picture)
        drawn = ["", "Greedy", 1.0, 0.9, 40, 0, 1, LONGEST, "", None]
        picture = self.sent[question.picture]
        return Call(self.http, self.function, [picture, question.prompt, *drawn])

    def upload(self, picture: Path) -> dict[str, Any]:
        files = {"files": (picture.name, picture.read_bytes())}
        reply = self.http.post("/gradio_api/upload", files=files)
        return {"path": reply.json()[0], "meta": {"_type": "gradio.FileData"}}

    def resident(self) -> float:
        """Memory in MB."""
        return self.process.memory_info().rss / 1e6

    def caches(self) -> int:
        """How many caches of keys and values are in its memory, kept ones included."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(TOLD):
                return int(line.removeprefix(TOLD))
        raise RuntimeError("the app has come to its end")

    def files(self) -> tuple[int, int]:
        """How many files its temporary folder holds, and their bytes."""
        sizes = []
        for folder, _, names in os.walk(self.folder):  # the app deletes meanwhile
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
        return len(sizes), sum(sizes)


class Call:
    """A question in the queue.

    Times are of the monotonic clock: when it was `sent`, when that was `joined` is
    known, when its answer `started` and `ended`.
    """

    def __init__(self, http: httpx.Client, function: int, data: list[Any]) -> None:
        self.http, self.session = http, secrets.token_hex(8)
        self.started = self.ended = 0.0
        body = {"data": data, "fn_index": function, "session_hash": self.session}
        self.sent = time.monotonic()
        reply = http.post("/gradio_api/queue/join", json=body)
        self.joined = time.monotonic()
        reply.raise_for_status()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the app tells about it. Closing the iterator breaks the connection."""
        with self.http.stream("GET", self._address()) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    if message["msg"] == "process_starts":
                        self.started = time.monotonic()
                    yield message

    def answer(self) -> dict[str, Any]:
        """The whole answer, without the times that it took; {"error": ...} if none."""
        every = [each for each in self.messages() if each["msg"] == "process_completed"]
        self.ended = time.monotonic()
        (end,) = every
        if not end["success"]:
            return {"error": end["output"].get("error")}
        return {k: v for k, v in end["output"]["data"][0].items() if k != "timing"}

    def leave_after(self, seconds: float) -> None:
        """Listen for so long, then break the connection, whatever has come."""
        host = self.http.base_url
        asked = f"GET {self._address()} HTTP/1.1\r\nHost: {host.host}\r\n\r\n"
        end = time.monotonic() + seconds
        with socket.create_connection((host.host, host.port)) as wire:
            wire.sendall(asked.encode())
            while (left := end - time.monotonic()) > 0:
                wire.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    if not wire.recv(1 << 16):
                        return

    def _address(self) -> str:
        return f"/gradio_api/queue/data?session_hash={self.session}"


@contextlib.contextmanager
def running(*options: str) -> Iterator[App]:
    """The app with these options, asked once; its temporary files are in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as folder:
        own = {"GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_served(url):
                assert process.poll() is None, "the app does not start"
                time.sleep(0.1)
            app = App(url, process, Path(folder))
            app.ask(questions(1)[0]).answer()
            yield app
        finally:
            process.kill()
            process.wait()


def is_served(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=60).status_code == 200
    return False


def options(doc: str, count: int, of: str) -> argparse.ArgumentParser:
    """What each of these benchmarks may be told: so many of what it is about."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=count, help=of)
    return parser


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through points (x, y) that is nearest to them."""
    if len(points) < 2:
        return float("nan")
    x0, y0 = (sum(each) / len(points) for each in zip(*points))
    return sum((x - x0) * (y - y0) for x, y in points) / sum(
        (x - x0) ** 2 for x, _ in points
    )


def table(title: str, rows: dict[str, object]) -> str:
    """In Markdown, a row for each figure."""
    lines = [f"| {title} | |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {told} |" for name, told in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser()
    words = "seconds instead of an hour; 100 runs, 16 MiB of what the model computed"
    parser.add_argument("--kept", type=int, help=words)
    own, options = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    import app
    from vlm.cache import KVCache

    if own.kept:
        from vlm import engine
        from vlm.ui import page, store

        store.MAX_RUNS = 100
        page.KEPT = own.kept
        engine.KEPT_FEATURES = engine.KEPT_PREFIXES = 16 << 20
    caches = weakref.WeakSet()
    begin = KVCache.__init__

    def counted(cache: KVCache, *given: Any, **named: Any) -> None:
        begin(cache, *given, **named)
        caches.add(cache)

    KVCache.__init__ = counted
    threading.Thread(target=tell, args=(caches,), daemon=True).start()
    sys.argv = ["app.py", *options]
    app.main()


def tell(caches: weakref.WeakSet) -> None:
    for _ in sys.stdin:
        print(f"{TOLD}{len(caches)}", flush=True)


if __name__ == "__main__":
    main()
