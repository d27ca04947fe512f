"""How fast a PaliGemma answers on a GPU, beside `transformers`: a Markdown table.

    python tests/bench/gpu.py --size 3b --folder /tmp/random   # 5.5 GiB of disk

Random weights of the real dimensions in bfloat16, batch 1, greedy, one process. The
contestants take turns; figures are medians over the rounds. Compiling and capturing are
done before, and not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import random_checkpoint  # noqa: E402
from contestants import FIRST, noise  # noqa: E402
from speed import positions, read, say  # noqa: E402

import vlm  # noqa: E402
from vlm import checkpoint  # noqa: E402
from vlm.image import pixels  # noqa: E402
from vlm.tokenizer import Tokenizer  # noqa: E402

Answer = Callable[[Image.Image, int], list[float]]  # when each token was there


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=("small", "3b"), default="3b")
    add("--px", type=int, choices=(224, 448), default=224)
    add("--folder", type=Path, help="for the checkpoint; a temporary one if left out")
    add("--rounds", type=int, default=5)
    add("--tokens", type=int, default=128, help="of each answer")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here, which is what this measures.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder = folder / f"random-{options.size}-{options.px}"
        say("Writing random weights")
        random_checkpoint.write(folder, options.size, options.px)
        compare(folder, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    contestants = {**ours(folder), **theirs(folder)}
    dice = np.random.default_rng(0)
    images = iter([Image.fromarray(noise(dice)) for _ in range(options.rounds + 2)])
    for image in (next(images), next(images)):
        for name, answer in contestants.items():
            say(f"Getting warm: {name}")
            answer(image, options.tokens)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number, image in enumerate(images):
        say(f"Round {number + 1} of {options.rounds}")
        for name, answer in contestants.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            times = answer(image, options.tokens)
            rate = (len(times) - 1) / (times[-1] - times[0])
            found[name].append((times[0] - start, rate))
    config, speed = checkpoint.read_config(folder), bandwidth()
    print(
        f"{options.size}, {options.px} px, {positions(folder, config)} positions, "
        f"{options.tokens} tokens, bfloat16, medians of {options.rounds}. "
        f"{torch.cuda.get_device_name()}, copying {speed / 1e9:.0f} GB/s; "
        f"torch {version('torch')}, transformers {version('transformers')}.\n"
    )
    print("| | time to first token | tokens/s | of the limit of reading |")
    print("|---|---|---|---|")
    for name, rounds in found.items():
        first, rate = (statistics.median(column) for column in zip(*rounds))
        part = rate * read(config, "bf16") / speed
        print(f"| {name} | {first * 1e3:.1f} ms | {rate:.1f} | {part:.0%} |")


def ours(folder: Path) -> dict[str, Answer]:
    """`Engine.stream` with all that it tells of a step; replayed, and as it is."""
    engine = vlm.load(folder, device="cuda", dtype="bfloat16")
    plain = vlm.Engine(engine.model, engine.tokenizer)
    plain.graphs.limit = 0

    def answer(engine: vlm.Engine, traced: bool, image: Image.Image, count: int):
        tap = vlm.Trace() if traced else None
        how = {"max_tokens": count, "stop": (), "tap": tap}
        times = [time.perf_counter() for _ in engine.stream(image, FIRST, **how)]
        # The next is to find nothing that was kept.
        engine.features.kept.clear()
        engine.prefixes.kept.clear()
        if engine is not plain and not engine.graphs.idle:
            sys.exit(
                "The step could not be captured here: there is nothing to compare."
            )
        return times

    return {
        "**ours, replayed**": lambda *how: answer(engine, False, *how),
        "ours, replayed, with a trace": lambda *how: answer(engine, True, *how),
        "ours, eager": lambda *how: answer(plain, False, *how),
    }


def theirs(folder: Path) -> dict[str, Answer]:
    """`generate`, as it is and with its static cache, which it compiles for."""
    import transformers

    load = transformers.PaliGemmaForConditionalGeneration.from_pretrained
    model = load(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = model.eval().to("cuda")
    config = checkpoint.read_config(folder)
    tokenizer = Tokenizer.load(folder, config.image_token)
    ids = tokenizer.prompt(FIRST, patches=config.vision.patches)
    ids = torch.tensor([ids], device="cuda")

    class Told(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            if value.numel() == 1:  # the first are the prompt's
                self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    @torch.no_grad()
    def answer(how: dict[str, Any], image: Image.Image, count: int) -> list[float]:
        told = Told()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
            pixel_values=pixels(image, config.vision.image_size).to(
                model.device, model.dtype
            ),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            streamer=told,
            **how,
        )
        return told.times

    static = {"cache_implementation": "static"}
    return {
        "transformers, eager": lambda *how: answer({}, *how),
        "transformers, static cache and compile": lambda *how: answer(static, *how),
    }


def bandwidth() -> float:
    """Bytes a second that are read or written, in copying 2 GiB."""
    source = torch.zeros(1 << 30, dtype=torch.bfloat16, device="cuda")
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


if __name__ == "__main__":
    main()
