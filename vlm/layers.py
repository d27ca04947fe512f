"""The parts that both towers and the decoder are made of, and their arithmetic.

Axes, here and in the whole package:

    B batch      T query positions    N heads      G heads per kv head    D width
    P patches    S key positions      K kv heads   H head size            V vocabulary
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 << 20  # of attention weights that are computed at a time
LITTLE = 1 << 15  # numbers that are not worth several calls


class MLP(nn.Module):
    """down(activation(up(x))), with biases: SigLIP's."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = activation_named(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)): GeGLU (Shazeer, arXiv:2002.05202), Gemma's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.read(x)
        return self.down(gelu(gate) * up)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x), self.up(x)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + scale), in float32 (Zhang and Sennrich, arXiv:1910.07467).

    Gemma stores the scale as its distance from one.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return torch.addcmul(wide, wide, self.scale.float()).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(q k^T * scale) + mask) v.

    Args:
        q: [B, N, T, H].
        k, v: [B, K, S, H]; N / K neighbouring heads share one of them.
        mask: bool, broadcast to [B, 1, T, S]; True where a query may look.
    Returns:
        [B, N, T, H].
    """
    if softcap is None:
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=shared
        )
    # The fused kernels know no soft-cap: here it is some rows at a time.
    seen = partial(_capped, q, k, v, mask=mask, scale=scale, softcap=softcap)
    if torch.is_grad_enabled():
        # Weights are computed again for the gradient, and not kept for it.
        seen = partial(checkpoint, seen, use_reentrant=False)
    count = max(1, CHUNK_BYTES // (4 * q.shape[0] * q.shape[1] * k.shape[2]))
    starts = range(0, q.shape[2], count)
    return torch.cat([seen(slice(start, start + count)) for start in starts], dim=2)


def _capped(q: Tensor, k: Tensor, v: Tensor, rows: slice, **rule: Any) -> Tensor:
    return weighted(attention_weights(q, k, rows, **rule), v)


def attention_weights(
    q: Tensor,
    k: Tensor,
    rows: slice = slice(None),
    *,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """The probabilities that `attention` multiplies with the values.

    Returns:
        float32 [B, N, rows, S].
    """
    q = q[:, :, rows]
    # Heads that share keys are further rows of one product, so no key is copied.
    asked, keys = _by_kv_head(q, k).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
    nothing = asked.new_empty(1, 1, 1)  # to be added to the product, 0 times
    scores = torch.baddbmm(nothing, asked, keys, beta=0, alpha=scale)
    scores = scores.view(*q.shape[:3], -1)
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    scores = scores.float()
    if mask is not None:
        mask = mask[:, :, rows].to(scores.device)
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    """What heads read: weights [B, N, T, S] times values [B, K, S, H], [B, N, T, H]."""
    seen = _by_kv_head(weights.to(v.dtype), v) @ v
    return seen.view(*weights.shape[:3], -1)


def _by_kv_head(x: Tensor, kv: Tensor) -> Tensor:
    """[B, N, T, ...] as [B, K, G * T, ...], for products with keys or values."""
    return x.unflatten(1, (kv.shape[1], -1)).flatten(2, 3)


def gelu(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3) (arXiv:1606.08415).

    That is x sigmoid(2u), for which a CPU is quicker where x lies in its cache, unless
    x is so little that the number of calls counts.
    """
    fused = x.requires_grad or x.dtype != torch.float32 or x.device.type != "cpu"
    if fused or x.numel() <= LITTLE:
        return F.gelu(x, approximate="tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    twice = torch.addcmul(x.new_tensor(slope), x, x, value=0.044715 * slope)
    return twice.mul_(x).sigmoid_().mul_(x)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): close to x near zero, never past the cap (Gemma 2)."""
    return cap * torch.tanh(x / cap)


def rope(positions: Tensor, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings (Su et al., arXiv:2104.09864).

    Args:
        positions: [B, T].
    Returns:
        two float32 [B, 1, T, H], sines of the first half with the other sign: what
        `rotate` multiplies with.
    """
    steps = torch.arange(0, size, 2, device=positions.device).float() / size
    angles = positions[..., None].float() * base**-steps  # [B, T, H/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [B, N, T, H] by position. Dimension i is paired with i + H/2."""
    cos, sin = (part.to(x.dtype) for part in turn)
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def activation_named(name: str) -> nn.Module:
    """SigLIP uses the tanh form; the others appear in fine-tuned relatives.

    Raises:
        ValueError: an unknown name.
    """
    known = {
        "gelu_pytorch_tanh": TanhGELU(),
        "gelu": nn.GELU(),
        "quick_gelu": QuickGELU(),
    }
    if name not in known:
        raise ValueError(f"activation {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


class TanhGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): OpenAI CLIP's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
