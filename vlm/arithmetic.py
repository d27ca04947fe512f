"""Which arithmetic a loaded model is to use on this machine: measured, then put in.

Flags of a processor say little about its kernels: a product in bfloat16 may be twice
as fast as one in float32 or hundreds of times slower. So the real ones are run, on
little matrices, for a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm import column_mlp, exact, int8_file, joined, packed, quantize
from vlm.paligemma import PaliGemma

QUANTIZE = ("auto", "none", "int8")
WIDE = 1 << 19  # weights in a matrix from which on it is packed as well
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def settle(
    model: PaliGemma,
    folder: Path,
    quantized: str = "auto",
    *,
    progress: Callable[[str], None] = lambda words: None,
) -> str:
    """Swap in what a model on a CPU computes with, and say in words what it is.

    Args:
        folder: the checkpoint's, beside which its int8 weights are kept.
        quantized: "int8"; or "none", the weights' own values. "auto" is the same as
            "none" until int8 has been shown to keep a checkpoint's answers.
    Raises:
        ValueError: int8 cannot be had here; the text says why.
    """
    check(quantized)
    like = model.decoder.norm.scale
    alone_on_cpu = like.device.type == "cpu" and not hasattr(model, "hf_device_map")
    if quantized == "int8":
        if not alone_on_cpu:
            raise ValueError(
                "int8 is computed on a CPU, and this model is on another device: "
                "load it with device='cpu', or leave quantize out"
            )
        if not quantize.is_exact():
            raise ValueError(
                "this processor's int8 products overflow (it lacks VNNI "
                "instructions): load with quantize='none'"
            )
        matrices = {k: part.weight for k, part in quantize.linears(model).items()}
        wide = _wide(matrices) if packed.works() else []
        quantize.swap(model, int8_file.quantized(folder, matrices, wide, progress))
        exact.swap(model)
        joined.swap(model)
        column_mlp.swap(model)
        return "int8"
    if alone_on_cpu and like.dtype in SHORT:
        if not half_pays(like.dtype):
            exact.swap(model)
            column_mlp.swap(model)
            return f"{SHORT[like.dtype]} weights, float32 arithmetic"
        exact.swap_rows(model)
    return str(like.dtype).removeprefix("torch.")


def check(quantized: str) -> None:
    """Raises ValueError for what `settle` does not know."""
    if quantized not in QUANTIZE:
        raise ValueError(f"quantize is one of {QUANTIZE}, not {quantized!r}")


def _wide(matrices: dict[str, Tensor]) -> list[str]:
    """Names of those that are worth packing. The head is not: it meets one row."""
    return [
        name
        for name, matrix in matrices.items()
        if matrix.numel() >= WIDE and name != "decoder.head"
    ]


@cache
def half_pays(dtype: torch.dtype) -> bool:
    """Whether products in half precision are much faster here than in float32.

    Where a processor has instructions for them, they take half the time or less; a
    smaller difference is not worth what they round.
    """
    x, weight = torch.ones(64, 1024), torch.ones(1024, 1024, dtype=dtype)
    narrow, room = x.to(dtype), exact.Room()
    half, wide = quickest(
        lambda: F.linear(narrow, weight), lambda: exact.product(x, weight, room)
    )
    return half * 1.5 < wide


@torch.no_grad()
def threads(model: PaliGemma) -> int:
    """How many threads write answers soonest: all, or one where they would only wait.

    Measured with what each token needs most, an MLP for a single row.
    """
    most = torch.get_num_threads()
    mlp, like = model.decoder.blocks[0].mlp, model.decoder.norm.scale
    if most == 1 or like.device.type != "cpu":
        return most
    row = torch.ones(1, 1, len(like), dtype=like.dtype)

    def act(count: int) -> Tensor:
        torch.set_num_threads(count)
        return mlp(row)

    alone, together = quickest(lambda: act(1), lambda: act(most))
    torch.set_num_threads(most)
    return 1 if alone < together else most


def quickest(*acts: Callable[[], object], budget: float = 0.2) -> list[float]:
    """Seconds that each of some acts takes at best, taking turns for `budget`.

    What else runs on the machine at times slows each of them alike; the first time
    does not count.
    """
    best = [float("inf")] * len(acts)
    for act in acts:
        act()
    end = time.perf_counter() + budget
    while best[-1] == float("inf") or time.perf_counter() < end:
        for i, act in enumerate(acts):
            start = time.perf_counter()
            act()
            best[i] = min(best[i], time.perf_counter() - start)
    return best
