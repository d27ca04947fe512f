"""How soon `python app.py` serves its page, and answers: a row of a Markdown table.

    python tests/bench/start.py

The best of three, each in a process of its own; the disk's cache is warm at the second.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gradio_client import Client, handle_file

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "assets" / "examples" / "penguins.webp"
TIMES = 3


def main() -> None:
    served, answered = (min(times) for times in zip(*(once() for _ in range(TIMES))))
    print("| | page served | first answer |\n|---|---:|---:|")
    print(f"| `python app.py`, best of {TIMES} | {served:.1f} s | {answered:.1f} s |")


def once() -> tuple[float, float]:
    """Seconds from the start to the page, and to the end of a first short answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    start = time.perf_counter()
    app = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        while not is_served(url):
            time.sleep(0.02)
        served = time.perf_counter() - start
        client = Client(url, verbose=False)
        client.predict(handle_file(PICTURE), "caption en", api_name="/probe")
        return served, time.perf_counter() - start
    finally:
        app.terminate()
        app.wait()


def is_served(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        with urllib.request.urlopen(url, timeout=60) as page:
            return page.status == 200
    return False


if __name__ == "__main__":
    main()
