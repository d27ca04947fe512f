"""How fast a PaliGemma answers on this machine's CPU, beside `transformers`: a table.

    python tests/bench/speed.py                                  # small, a few minutes
    python tests/bench/speed.py --size 3b --folder /tmp/random   # 10.5 GiB of disk

Random weights of the real dimensions, batch 1. The configurations take turns, each
time in a process of its own that loads, answers once to get warm, and is measured;
figures are medians over the rounds. All are given the same ids, pixels and tokens. The
files have been read from the disk, as on a computer that was started since they were
written: mapped, they are then read faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import random_checkpoint  # noqa: E402
from contestants import CONTESTANTS, FIRST  # noqa: E402

from vlm import checkpoint, weights  # noqa: E402
from vlm.config import PaliGemmaConfig  # noqa: E402
from vlm.tokenizer import Tokenizer  # noqa: E402

REFERENCE = "fp32 transformers"
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=("small", "3b"), default="small")
    add("--px", type=int, choices=(224, 448), default=224)
    add("--folder", type=Path, help="for the checkpoint; a temporary one if left out")
    add("--rounds", type=int, default=3)
    add("--tokens", type=int, default=24, help="of each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = options.folder or Path(scratch)
        folder = home / f"random-{options.size}-{options.px}"
        say("Writing random weights")
        random_checkpoint.write(folder, options.size, options.px)
        say("Quantising, if that has not been done")
        made = run("int8", folder, 4, Path(scratch) / "first.npy")
        for path in weights.files(folder):
            leave_memory(path)
        rounds: list[dict[str, Figures]] = []
        for number in range(options.rounds):
            rounds.append({"limits": run("limits")})
            for name in CONTESTANTS:
                say(f"Round {number + 1} of {options.rounds}: {name}")
                logits = Path(scratch) / f"{name}.npy"
                rounds[-1][name] = run(name, folder, options.tokens, logits)
        config = checkpoint.read_config(folder)
        print(about(options, folder, config, rounds))
        print(f"int8, the first time: ready after {made['load']:.1f} s\n")
        length, files = positions(folder, config), sum(sizes(folder))
        print(table(config, length, files, median(rounds), Path(scratch)))


def leave_memory(path: Path) -> None:
    """Make the system read a file from the disk when it is asked for next."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(*arguments: object) -> Figures:
    command = [sys.executable, str(HERE / "contestants.py"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def median(rounds: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Of each figure, over the rounds; what is no number is the same in all."""
    found: dict[str, Figures] = {}
    for name, figures in rounds[0].items():
        found[name] = {
            key: value
            if isinstance(value, str)
            else statistics.median(each[name][key] for each in rounds)
            for key, value in figures.items()
        }
    return found


def table(
    config: PaliGemmaConfig,
    length: int,
    files: int,
    found: dict[str, Figures],
    logits: Path,
) -> str:
    limits = found.pop("limits")
    rates = (("products in fp32", "fp32", "GFLOP/s"), ("in int8", "int8", "GOP/s"))
    told = ", ".join(f"{k} {limits[v] / 1e9:.0f} {unit}" for k, v, unit in rates)
    told += f", reading {limits['reading'] / 1e9:.1f} GB/s"
    peers = [each for name, each in found.items() if "transformers" in name]
    soonest = min(each["first"] for each in peers)
    fastest = max(each["rate"] for each in peers)
    rows = {
        "load": [f"{each['load']:.1f} s" for each in found.values()],
        "vision": [f"{each['vision']:.2f} s" for each in found.values()],
        "time to first token": [f"{each['first']:.2f} s" for each in found.values()],
        "against the sooner transformers": [
            f"{soonest / each['first']:.2f} ×" for each in found.values()
        ],
        "of the limit of its products": [
            f"{operations(config, length) / limit(limits, name) / each['first']:.0%}"
            for name, each in found.items()
        ],
        "tokens/s": [f"{each['rate']:.2f}" for each in found.values()],
        "against the faster transformers": [
            f"{each['rate'] / fastest:.2f} ×" for each in found.values()
        ],
        "of the limit of reading": [
            f"{each['rate'] * read(config, name) / limits['reading']:.0%}"
            for name, each in found.items()
        ],
        "second prompt, same image": optional(found, "second", "{:.2f} s"),
        "regenerate": optional(found, "again", "{:.2f} s"),
        "a token with a trace, of one without": optional(found, "capture", "{:.2f}"),
        "resident, running": [f"{e['running'] / 1024:.2f} GiB" for e in found.values()],
        "of it anonymous": [f"{e['anonymous'] / 1024:.2f} GiB" for e in found.values()],
        "resident at the peak": [f"{e['peak'] / 1024:.2f} GiB" for e in found.values()],
        "the same, of the bytes of the checkpoint": [
            f"{each['peak'] * 2**20 / files:.2f}" for each in found.values()
        ],
        "logits, first token: relative error, cosine": [
            error(logits, name, slice(0, 1)) for name in found
        ],
        "the next tokens' logits": [
            error(logits, name, slice(1, None)) for name in found
        ],
    }
    heads = [name if "trans" in name else f"**{name}**" for name in found]
    lines = [f"Measured limits: {told}.\n", f"| | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(found))
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def optional(found: dict[str, Figures], key: str, form: str) -> list[str]:
    return [form.format(each[key]) if key in each else "–" for each in found.values()]


def error(folder: Path, name: str, rows: slice) -> str:
    ours, expected = (
        np.load(folder / f"{each}.npy")[rows].astype(np.float64)
        for each in (name, REFERENCE)
    )
    if name == REFERENCE:
        return "–"
    sizes = np.linalg.norm(ours, axis=1), np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(ours - expected, axis=1) / sizes[1]
    cosine = (ours * expected).sum(1) / sizes[0] / sizes[1]
    return f"{relative.max():.1e}, {cosine.min():.5f}"


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


def positions(folder: Path, config: PaliGemmaConfig) -> int:
    tokenizer = Tokenizer.load(folder, config.image_token)
    return len(tokenizer.prompt(FIRST, patches=config.vision.patches))


def operations(config: PaliGemmaConfig, length: int) -> int:
    """Of the products with weights that a first token needs."""
    vision, decoder = config.vision, config.decoder
    encoder = vision.encoder
    block = 4 * encoder.width**2 + 2 * encoder.width * encoder.mlp_width
    patch = 3 * vision.patch_size**2 * encoder.width + encoder.width * decoder.width
    seen = vision.patches * (encoder.depth * block + patch)
    head = decoder.vocabulary * decoder.width
    return 2 * (seen + length * blocks(config) + head)


def read(config: PaliGemmaConfig, name: str) -> int:
    """Bytes of weights that are read for each token."""
    numbers = blocks(config) + config.decoder.vocabulary * config.decoder.width
    return numbers * {"int8": 1, REFERENCE: 4}.get(name, 2)


def blocks(config: PaliGemmaConfig) -> int:
    """Weights of the decoder's layers."""
    decoder = config.decoder
    heads = 2 * (decoder.heads + decoder.kv_heads) * decoder.head_size
    return decoder.depth * decoder.width * (heads + 3 * decoder.mlp_width)


def limit(limits: Figures, name: str) -> float:
    return limits["int8" if name == "int8" else "fp32"]


def about(
    options: argparse.Namespace,
    folder: Path,
    config: PaliGemmaConfig,
    rounds: list[dict[str, Figures]],
) -> str:
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = re.search(r"model name\s*: (.*)", info.read_text())[1]
        cpu += " with VNNI" * ("avx512_vnni" in info.read_text())
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers")
    )
    exact = rounds[0]["exact"]["arithmetic"]
    return (
        f"{options.size}, {options.px} px, {positions(folder, config)} positions, "
        f"{options.tokens} tokens, medians of {options.rounds}. "
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load average {os.getloadavg()[0]:.1f}; {versions}. exact: {exact}."
    )


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
