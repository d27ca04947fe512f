"""What a checkpoint takes of the memory while it answers on a CPU: a Markdown table.

    python tests/bench/resident.py FOLDER
    python tests/bench/resident.py --size 3b --folder /tmp/random   # 5.5 GiB of disk

It is loaded as `python app.py --device cpu` loads it, and answers one question, with
all that the page is told of each token. The figures are of the whole
process, Python and torch included, and as Linux has them: resident is what lies in the
memory, mapped what of that are pages of files, which are the weights and libraries, and
the peak is the most that ever was resident (VmHWM). Beside them is the size of the
checkpoint's weights, which nothing of what is mapped needs more than once.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import random_checkpoint  # noqa: E402

import vlm  # noqa: E402

PROMPT = "describe what you see in this picture"
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="a folder; random weights if left out")
    add("--size", choices=("small", "3b"), default="small", help="of the random one")
    add("--px", type=int, choices=(224, 448), default=224)
    add("--folder", type=Path, help="for the random one; temporary if left out")
    add("--tokens", type=int, default=24, help="of the answer")
    add("--dtype", default="auto", help="a small model is float32 if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint
        if folder is None:
            home = options.folder or Path(scratch)
            folder = home / f"random-{options.size}-{options.px}"
            # In another process: what writes them must not count.
            with get_context("spawn").Pool(1) as pool:
                pool.apply(random_checkpoint.write, (folder, options.size, options.px))
        print(table(folder, options.tokens, options.dtype))


def table(folder: Path, tokens: int, dtype: str) -> str:
    rows = {"imported": now()}
    engine = vlm.load(folder, device="cpu", dtype=dtype)
    engine.settle_threads()
    rows["loaded"] = now()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    steps = engine.stream(
        Image.fromarray(noise), PROMPT, tap=vlm.Trace(), max_tokens=tokens, stop=()
    )
    said = sum(1 for _ in steps)
    rows["answered"] = now()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    peak = 1024 * number("/proc/self/status", "VmHWM")
    lines = [
        f"{folder.name}: {size / GIB:.2f} GiB of weights, {engine.arithmetic}, "
        f"{said} tokens\n",
        "| GiB | resident | proportional | anonymous | mapped |",
        "|---|---|---|---|---|",
        *(row(name, figures) for name, figures in rows.items()),
        f"\nAt the peak {peak / GIB:.2f} GiB were resident, {peak / size:.3f} × the "
        f"weights; {(peak - rows['imported']['Rss']) / size:.3f} × without what Python "
        "and torch took before.",
    ]
    return "\n".join(lines)


def row(name: str, figures: dict[str, int]) -> str:
    told = (*figures.values(), figures["Rss"] - figures["Anonymous"])
    return f"| {name} | {' | '.join(f'{bytes / GIB:.2f}' for bytes in told)} |"


def now() -> dict[str, int]:
    """Bytes of this process."""
    names = ("Rss", "Pss", "Anonymous")
    return {name: 1024 * number("/proc/self/smaps_rollup", name) for name in names}


def number(file: str, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+)", Path(file).read_text(), re.M)[1])


if __name__ == "__main__":
    main()
