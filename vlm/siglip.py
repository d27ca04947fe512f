"""SigLIP (Zhai et al., arXiv:2303.15343): the encoder, and the tower that looks.

The vision tower is the Encoder with patches in front. PaliGemma takes every patch's
last state, so there is no pooling.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vlm.config import EncoderConfig, VisionConfig
from vlm.layers import MLP, attention, attention_weights
from vlm.tap import LOOK_AWAY, Tap


class VisionTower(nn.Module):
    """Pixels [B, C, R, R] in [-1, 1] to one state per patch, row by row [B, P, D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, size = config.encoder.width, config.patch_size
        self.patches = nn.Conv2d(config.channels, width, size, stride=size)
        self.positions = nn.Embedding(config.patches, width)
        self.encoder = Encoder(config.encoder, "vision")

    def forward(self, pixels: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # [B, P, D]
        order = torch.arange(x.shape[1], device=x.device)
        return self.encoder(x + self.positions(order), tap)


class Encoder(nn.Module):
    """Pre-norm transformer in which every position sees every other."""

    def __init__(self, config: EncoderConfig, tower: str) -> None:
        super().__init__()
        self.tower = tower
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(tap.attention, self.tower, layer))
            tap.residual(self.tower, layer, x)
        return self.norm(x)


class EncoderBlock(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = EncoderAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, show) -> Tensor:
        x = x + self.attention(self.attention_norm(x), show)
        return x + self.mlp(self.mlp_norm(x))


class EncoderAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, show) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, N, P, H]
            for part in (self.q, self.k, self.v)
        )
        rule = {"mask": None, "scale": self.scale}
        show(partial(attention_weights, q, k, **rule))
        return self.out(attention(q, k, v, **rule).transpose(1, 2).flatten(2))
