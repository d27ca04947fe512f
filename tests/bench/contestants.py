"""One configuration in a process of its own: loads, answers, prints figures as JSON.

`speed.py` starts it: NAME FOLDER TOKENS LOGITS, with LOGITS a file to write.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

FIRST = "describe what you see in this picture"
SECOND = "where is the animal that looks this way"
KEPT = 4  # tokens whose logits are compared


class Ours:
    """The engine as the page uses it: `stream`, with all that it tells of a step."""

    def __init__(self, folder: Path, **how: Any) -> None:
        import vlm

        self.engine = vlm.load(folder, device="cpu", **how)
        self.arithmetic = self.engine.describe()["arithmetic"]
        self.new_trace = vlm.Trace

    def look(self, image: Image.Image) -> None:
        self.engine.look(image)

    def answer(
        self,
        image: Image.Image,
        prompt: str,
        tokens: Sequence[int],
        told: Callable[[], None],
        *,
        traced: bool = False,
    ) -> Tensor:
        given = Given(tuple(tokens))
        tap = self.new_trace() if traced else None
        how = {"sampler": given, "tap": tap, "stop": (), "max_tokens": len(tokens)}
        for _ in self.engine.stream(image, prompt, **how):
            told()
        return torch.stack(given.seen)


class Theirs:
    """`transformers`, `generate` with the same ids, pixels and tokens."""

    arithmetic = ""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        load = transformers.PaliGemmaForConditionalGeneration.from_pretrained
        self.model = load(folder, dtype=dtype, attn_implementation="sdpa").eval()
        self.folder, self.dtype = folder, dtype
        self.base = transformers.generation.BaseStreamer

    @torch.no_grad()
    def look(self, image: Image.Image) -> None:
        self.model.get_image_features(self._pixels(image))

    @torch.no_grad()
    def answer(
        self,
        image: Image.Image,
        prompt: str,
        tokens: Sequence[int],
        told: Callable[[], None],
    ) -> Tensor:
        from vlm.tokenizer import Tokenizer

        class Told(self.base):
            def put(self, value: Tensor) -> None:
                if value.numel() == 1:  # the first are the prompt's
                    told()

            def end(self) -> None:
                pass

        config = self.model.config
        tokenizer = Tokenizer.load(self.folder, config.image_token_id)
        grid = config.vision_config.image_size // config.vision_config.patch_size
        ids = torch.tensor([tokenizer.prompt(prompt, patches=grid**2)])

        def forced(seen: Tensor, scores: Tensor) -> Tensor:
            only = torch.full_like(scores, -torch.inf)
            only[:, tokens[seen.shape[1] - ids.shape[1]]] = 0
            return only

        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
            pixel_values=self._pixels(image),
            max_new_tokens=len(tokens),
            do_sample=False,
            eos_token_id=None,
            logits_processor=[forced],
            streamer=Told(),
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.cat(out.logits).float()

    def _pixels(self, image: Image.Image) -> Tensor:
        from vlm.image import pixels

        size = self.model.config.vision_config.image_size
        return pixels(image, size).to(self.dtype)


CONTESTANTS = {
    "int8": partial(Ours, quantize="int8"),
    "exact": partial(Ours, quantize="none", dtype="bfloat16"),
    "fp32 transformers": partial(Theirs, dtype=torch.float32),
    "bf16 transformers": partial(Theirs, dtype=torch.bfloat16),
}


@dataclass
class Given:
    """A sampler that says what it was told to say, and keeps the first logits."""

    tokens: tuple[int, ...]
    seen: list[Tensor] = field(default_factory=list)

    def start(self) -> Callable[[Tensor], int]:
        rest = iter(self.tokens)

        def pick(logits: Tensor) -> int:
            if len(self.seen) < KEPT:
                self.seen.append(logits)
            return next(rest)

        return pick


def measure(name: str, folder: Path, count: int, logits: Path) -> dict[str, Any]:
    """Seconds, tokens per second and MiB."""
    start = time.perf_counter()
    one = CONTESTANTS[name](folder)
    figures: dict[str, Any] = {"load": time.perf_counter() - start}
    figures["arithmetic"] = one.arithmetic
    dice = np.random.default_rng(0)
    images = [Image.fromarray(noise(dice)) for _ in range(3)]
    tokens = [int(token) for token in dice.integers(10, 2000, count)]
    one.answer(images[0], FIRST, tokens[:2], lambda: None)  # the first is never typical

    def timed(image: Image.Image, prompt: str, **how: Any) -> tuple[float, float]:
        begin, times = time.perf_counter(), []
        told = lambda: times.append(time.perf_counter())  # noqa: E731
        timed.logits = one.answer(image, prompt, tokens, told, **how)
        # The median step, as a computer that is shared has some slow ones.
        return times[0] - begin, 1 / statistics.median(np.diff(times))

    figures["first"], figures["rate"] = timed(images[1], FIRST)
    np.save(logits, timed.logits[:KEPT].numpy())
    figures |= {"running": resident("VmRSS"), "anonymous": resident("RssAnon")}
    start = time.perf_counter()
    one.look(images[2])
    figures["vision"] = time.perf_counter() - start
    if isinstance(one, Ours):
        figures["second"], _ = timed(images[1], SECOND)
        figures["again"], plain = timed(images[1], SECOND)
        figures["capture"] = plain / timed(images[1], SECOND, traced=True)[1]
    figures["peak"] = resident("VmHWM")
    return figures


def limits() -> dict[str, float]:
    """What this machine can do: products in operations, reading in bytes, a second."""
    from vlm.arithmetic import quickest
    from vlm.quantize import quantize_rows

    x, weight = torch.randn(267, 2048), torch.randn(16384, 2048)
    small, small_weight = quantize_rows(x)[0], quantize_rows(weight)[0]
    operations = 2 * x.shape[0] * weight.numel()
    long = torch.randn(1 << 15, 2048)
    wide, narrow, reading = quickest(
        lambda: x @ weight.T,
        lambda: torch._int_mm(small, small_weight.T),
        lambda: torch.mv(long, x[0]),
        budget=3,
    )
    return {
        "fp32": operations / wide,
        "int8": operations / narrow,
        "reading": long.nbytes / reading,
    }


def noise(dice: np.random.Generator) -> np.ndarray:
    return dice.integers(0, 256, (300, 400, 3), dtype=np.uint8)


def resident(name: str) -> float:
    """MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
    if sys.argv[1] == "limits":
        print(json.dumps(limits()))
    else:
        name, folder, count, logits = sys.argv[1:]
        found = measure(name, Path(folder), int(count), Path(logits))
        print(json.dumps(found))
