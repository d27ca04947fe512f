"""`python zero_space.py --port 7860`: app.py as on a ZeroGPU Space, without its GPU.

The `spaces` package is the real one, and so are its stand-ins for CUDA tensors, the
file that it packs them into, its forks and its queues. What it asks the Space's host is
answered here, and each question is told in a line on stdout. Where it would copy the
weights to the GPU, they stay on the CPU.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

APP = Path(__file__).parents[1] / "app.py"
GIVEN = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "none", "allowToken": "token"}


class Host(BaseHTTPRequestHandler):
    """Has a GPU for whoever asks."""

    def do_POST(self) -> None:
        print("HOST", self.path, flush=True)
        body = json.dumps(GIVEN).encode() if self.path.startswith("/schedule") else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    host = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    os.environ |= {
        "SPACE_ID": "someone/paliscope",
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{host.server_port}",
        "ZEROGPU_OFFLOAD_DIR": tempfile.mkdtemp(),
    }
    if torch.version.cuda is None:  # `spaces` wants a build of torch with CUDA
        torch.version.cuda = "12.8"
        torch._C._cuda_init = lambda: None
        torch.cuda._is_in_bad_fork = bool
    import spaces.zero.torch as patched

    patched.init = lambda uuid: None
    patched.move = stay
    sys.path.insert(0, str(APP.parent))
    sys.argv[0] = str(APP)
    runpy.run_path(str(APP), run_name="__main__")


def stay(callback: object = None) -> None:
    """As `spaces.zero.torch.packing.pack_to_cuda`, and not to CUDA."""
    from spaces.zero.torch.patching import tensor_packs

    for pack in tensor_packs:
        data, at = Path(pack.path()).read_bytes(), 0
        for like, size, room in [*sum(pack.batches, []), *pack.big_tensors]:
            raw = torch.frombuffer(bytearray(data[at : at + size]), dtype=torch.uint8)
            tensor = raw.view(like.dtype).as_strided(like.shape, like.stride())
            for fake in pack.fakes[like]:
                fake.data = tensor
            at += room


if __name__ == "__main__":
    main()
