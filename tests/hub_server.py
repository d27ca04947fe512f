"""A stand-in for the Hub that huggingface_hub talks to over HTTP.

It serves folders as repositories: their listing, their files with what the Hub tells of
them, large ones from another host as the Hub's LFS storage does. Xet it announces for
none: its chunks and tokens are beyond a stand-in. A test sets what goes wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".model", ".bin", ".npz", ".gguf")  # what lies in LFS
PIECE = 4096  # bytes that are sent at once


@dataclass(frozen=True)
class Answer:
    """What is said instead of what was asked for."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "{}"


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    host: str
    path: str
    token: str | None
    start: int  # first byte


def stand_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub with nothing in it that the library asks, with a cache in `home`."""
    server = HubServer()
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


class HubServer:
    """Repositories are `name` to `revision` to a folder."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.asked: list[Asked] = []
        # What goes wrong:
        self.refuse: Callable[[Asked], Answer | None] = lambda asked: None
        self.cuts = 0  # connections that are still to be cut
        self.cut_where = "/"  # how the paths begin whose connections are
        self.only_resets = False  # or half of them are closed in good order
        self.cut_after = 1 << 40  # at most so many bytes of a file
        self.pause = 0.0  # seconds after each piece
        self.damage: Callable[[bytes], bytes] = lambda content: content
        self.silent = False  # takes connections and says nothing
        self.dice = random.Random(7)
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._conversation())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that went away
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files_asked(self) -> list[str]:
        """Names of the files that were asked for, each time at the Hub's own address
        before the bytes."""
        pattern = r"/[^/]+/[^/]+/resolve/[^/]+/(.+)"
        heads = [asked.path for asked in self.asked if asked.method == "HEAD"]
        return [found[1] for path in heads if (found := re.fullmatch(pattern, path))]

    def times_sent(self, path: Path) -> int:
        """How often the bytes of a large file were asked for from their start."""
        where = f"/storage/{sha256(path)}"
        return [a.start for a in self.asked if a.path == where].count(0)

    def answer(self, asked: Asked) -> Answer | tuple[dict[str, str], bytes]:
        """A refusal, or headers and content."""
        if refused := self.refuse(asked):
            return refused
        if found := re.fullmatch(r"/storage/(\w+)", asked.path):
            for revisions in self.repositories.values():
                for folder in revisions.values():
                    for path in files(folder):
                        if sha256(path) == found[1]:
                            return {}, path.read_bytes()
        api = r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+))?"
        resolve = r"(?:/spaces)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)"
        found = re.fullmatch(api, asked.path) or re.fullmatch(resolve, asked.path)
        if not found or found[1] not in self.repositories:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        revisions = self.repositories[found[1]]
        named = {**revisions, **{commit(each): each for each in revisions.values()}}
        folder = named.get(unquote(found[2] or "main"))
        if folder is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        if asked.path.startswith("/api/"):
            about = (
                tree(folder) if "/tree/" in asked.path else listing(found[1], folder)
            )
            return {"Content-Type": "application/json"}, json.dumps(about).encode()
        path = folder / found[3]
        told = {"X-Repo-Commit": commit(folder)}
        if not path.is_file():
            return Answer(404, {**told, "X-Error-Code": "EntryNotFound"})
        if path.suffix not in LARGE:
            return {**told, "ETag": f'"{git_sha1(path)}"'}, path.read_bytes()
        told["X-Linked-Size"] = str(path.stat().st_size)
        told["X-Linked-ETag"] = f'"{sha256(path)}"'
        told["Location"] = f"http://localhost:{self.port}/storage/{sha256(path)}"
        return Answer(302, told, "")

    def _conversation(hub) -> type[BaseHTTPRequestHandler]:
        class Conversation(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                if hub.silent:
                    time.sleep(5)
                given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                asked = Asked(
                    self.command,
                    self.headers["Host"].split(":")[0],
                    urlsplit(self.path).path,
                    self.headers.get("Authorization"),
                    int(given[1]) if given else 0,
                )
                if asked.path == "/api/agent-harnesses":  # the library's own affair
                    self.say(404, {}, b"")
                    return
                hub.asked.append(asked)
                answer = hub.answer(asked)
                if isinstance(answer, Answer):
                    self.say(answer.status, answer.headers, answer.body.encode())
                    return
                headers, content = answer
                is_file = "/api/" not in asked.path
                if is_file:
                    content = hub.damage(content)
                    headers["Accept-Ranges"] = "bytes"
                if asked.start:
                    end = f"{len(content) - 1}/{len(content)}"
                    headers["Content-Range"] = f"bytes {asked.start}-{end}"
                status = 206 if asked.start else 200
                self.say(status, headers, content[asked.start :], is_file=is_file)

            def say(
                self,
                status: int,
                headers: dict[str, str],
                content: bytes,
                *,
                is_file: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                last = len(content)
                with hub.lock:
                    cut = is_file and hub.cuts > 0 and last > 1
                    cut &= self.path.startswith(hub.cut_where)
                    if cut:
                        hub.cuts -= 1
                        last = hub.dice.randrange(1, min(last, hub.cut_after))
                for at in range(0, last, PIECE):
                    self.wfile.write(content[at : min(at + PIECE, last)])
                    time.sleep(hub.pause)
                if cut:
                    self.cut(reset=hub.only_resets or hub.cuts % 2 == 0)

            def cut(self, *, reset: bool) -> None:
                """End the connection, in one of the two ways that TCP has."""
                time.sleep(0.02)  # what was sent arrives
                self.close_connection = True
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                    self.wfile.flush()
                    os.close(self.connection.detach())
                else:
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_) -> None:
                pass

        return Conversation


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def listing(name: str, folder: Path) -> dict:
    """What the Hub says of a model at a revision, sizes and hashes too."""
    siblings = []
    for path in files(folder):
        about = {"rfilename": str(path.relative_to(folder))}
        about |= {"size": path.stat().st_size, "blobId": git_sha1(path)}
        if path.suffix in LARGE:
            large = {"size": path.stat().st_size, "pointerSize": 130}
            about["lfs"] = {**large, "sha256": sha256(path)}
        siblings.append(about)
    return {"id": name, "sha": commit(folder), "siblings": siblings}


def tree(folder: Path) -> list[dict]:
    """The same as the Hub's listing of a folder."""
    entries = []
    for path in files(folder):
        about = {"type": "file", "path": str(path.relative_to(folder))}
        about |= {"size": path.stat().st_size, "oid": git_sha1(path)}
        if path.suffix in LARGE:
            large = {"size": path.stat().st_size, "pointerSize": 130}
            about["lfs"] = {**large, "oid": sha256(path)}
        entries.append(about)
    return entries


def commit(folder: Path) -> str:
    names = [str(path.relative_to(folder)) + sha256(path) for path in files(folder)]
    return hashlib.sha1("\n".join(names).encode()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
