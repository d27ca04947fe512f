"""What probes take at 896 pixels, beside one full attention matrix: a Markdown table.

    python tests/bench/memory.py

Random weights: three layers, with PaliGemma's heads and 4096 patches, narrow ones, so
that attention is what counts. Figures are the peak above what was there before, of the
whole process, on the CPU in float32. For each, the second column caps scores as Gemma 2
does, where weights have to be computed for the values.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import vlm  # noqa: E402
from vlm.config import PaliGemmaConfig  # noqa: E402
from vlm.paligemma import PaliGemma  # noqa: E402
from vlm.probes import Asked  # noqa: E402
from vlm.probes.methods import recorded  # noqa: E402
from vlm.tokenizer import Tokenizer  # noqa: E402

LAYERS, HEADS, VISION_HEADS = 3, 8, 16
PROMPT, ANSWER = "detect cat", (7, 8, 9)
MIB = 1 << 20


def main() -> None:
    patches = (896 // 14) ** 2
    full = HEADS * (patches + 8) ** 2 * 4 / MIB
    print(f"one layer's attention, {HEADS} heads, {patches} patches: {full:.0f} MiB")
    print(f"of the vision tower, {VISION_HEADS} heads: {2 * full:.0f} MiB\n")
    print("| MiB at the peak | no cap | soft-cap |")
    print("|---|---|---|")
    # Each in a process of its own: what another freed would not be asked for again.
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in ACTS:
            cells = (pool.apply(measured, (name, cap)) for cap in (None, 50.0))
            print(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")


def measured(name: str, cap: float | None) -> float:
    engine = random_engine(cap)
    noise = np.random.default_rng(0).integers(0, 256, (896, 896, 3), dtype=np.uint8)
    asked = Asked(engine, Image.fromarray(noise), PROMPT, ANSWER)
    engine.look(asked.image)
    return peak(lambda: ACTS[name](asked))


def answer(asked: Asked, trace: vlm.Trace | None = None) -> None:
    list(asked.engine.stream(asked.image, PROMPT, tap=trace, max_tokens=3, stop=()))


ACTS: dict[str, Callable[[Asked], object]] = {
    "an answer": answer,
    "an answer with a trace": lambda asked: answer(asked, vlm.Trace()),
    "one patch in the vision tower": lambda asked: vlm.probes.patch_attention(
        asked.engine, asked.image, 0
    ),
    "a trace, and its rollout": lambda asked: vlm.probes.rollout(recorded(asked), 2),
    "relevancy": lambda asked: vlm.probes.relevancy(asked, 2),
    "gradient_attention": lambda asked: vlm.probes.gradient_attention(asked, 2),
}


def peak(act: Callable[[], object]) -> float:
    """MiB that the process held at most, beyond what it held before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    act()
    return (resident("VmHWM") - before) / 1024


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def random_engine(cap: float | None) -> vlm.Engine:
    config = shaped(checkpoint_config(), cap)
    torch.manual_seed(0)
    model = PaliGemma(config).eval()
    folder = ROOT / "assets" / "tiny"
    size = config.decoder.vocabulary
    return vlm.Engine(model, Tokenizer.load(folder, config.image_token, size=size))


def checkpoint_config() -> PaliGemmaConfig:
    return vlm.load(ROOT / "assets" / "tiny", device="cpu").config


def shaped(config: PaliGemmaConfig, cap: float | None) -> PaliGemmaConfig:
    encoder = replace(config.vision.encoder, heads=VISION_HEADS, depth=2)
    vision = replace(config.vision, image_size=896, patch_size=14, encoder=encoder)
    windows = (None, 4096, None) if cap else (None,) * LAYERS
    decoder = replace(
        config.decoder, heads=HEADS, windows=windows, attention_softcap=cap
    )
    return replace(config, vision=vision, decoder=decoder)


if __name__ == "__main__":
    main()
