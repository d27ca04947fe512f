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
from vlm.tokenizer import Tokenizer  # noqa: E402

LAYERS, HEADS, VISION_HEADS = 3, 8, 16
PROMPT, ANSWER = "detect cat", (7, 8, 9)
MIB = 1 << 20


def main() -> None:
    patches = (896 // 14) ** 2
    full = HEADS * (patches + 8) ** 2 * 4 / MIB
    print(f"one layer's attention, {HEADS} heads, {patches} patches: {full:.0f} MiB")
    print(f"of the vision tower, {VISION_HEADS} heads: {2 * full:.0f} MiB\n")
    columns = {"no cap": measured(None), "soft-cap": measured(50.0)}
    print(f"| MiB at the peak | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for name in columns["no cap"]:
        cells = (f"{column[name]:.0f}" for column in columns.values())
        print(f"| {name} | {' | '.join(cells)} |")


def measured(cap: float | None) -> dict[str, float]:
    engine = random_engine(cap)
    noise = np.random.default_rng(0).integers(0, 256, (896, 896, 3), dtype=np.uint8)
    asked = Asked(engine, Image.fromarray(noise), PROMPT, ANSWER)
    engine.look(asked.image)
    trace = vlm.Trace()

    def traced() -> None:
        steps = engine.stream(asked.image, PROMPT, tap=trace, max_tokens=3, stop=())
        list(steps)

    def sought() -> None:
        seen = vlm.Trace(layers=[], towers=("vision",))
        list(engine.stream(asked.image, PROMPT, tap=seen, max_tokens=1, stop=()))

    return {
        "an answer": peak(lambda: asked.logits(3)),
        "an answer with a trace": peak(traced),
        "an answer with a trace of the vision tower": peak(sought),
        "rollout": peak(lambda: vlm.probes.rollout(trace, 2)),
        "relevancy": peak(lambda: vlm.probes.relevancy(asked, 2)),
        "gradient_attention": peak(lambda: vlm.probes.gradient_attention(asked, 2)),
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
