"""SigLIP (Zhai et al., arXiv:2303.15343): one encoder, two towers.

The vision tower is the Encoder with patches in front, the text tower the Encoder with
words in front. PaliGemma takes every patch's last state; where an image is to be one
vector, beside a text's, the attention pool makes it.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.config import EncoderConfig, PairConfig, TextConfig, VisionConfig
from vlm.layers import MLP, attention, attention_weights
from vlm.tap import LOOK_AWAY, Tap, Weights


class PairModel(nn.Module):
    """Both towers, whose vectors are compared by the angle between them."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.pool = AttentionPool(config.vision.encoder)
        self.text = TextTower(config.text)
        # Where the paper starts them: most cells of a batch are no pairs.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(10)))
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0))

    def images(self, pixels: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        """Pixels [I, C, R, R] in [-1, 1] to float32 [I, D] of length one."""
        x = self.pool(self.vision(pixels, tap), tap)
        return F.normalize(x.float(), dim=-1)

    def texts(self, ids: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        """Ids [T, length] to float32 [T, D] of length one."""
        return F.normalize(self.text(ids, tap).float(), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """float32 [I, T] of what `images` and `texts` gave: scale cos + bias."""
        scale, bias = self.logit_scale.float().exp(), self.logit_bias.float()
        return images @ texts.T * scale + bias


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


class AttentionPool(nn.Module):
    """States of the patches [B, P, D] to one vector for the image [B, D].

    A learnt probe asks, the patches answer (Zhai et al., arXiv:2106.04560, MAP).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.qkv = nn.Linear(width, 3 * width)  # in one, as the files hold it
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.mlp = MLP(width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        asked = self.probe.expand(len(x), -1, -1)
        parts = zip((asked, x, x), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        q, k, v = (
            F.linear(states, *part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states, *part in parts
        )
        rule = {"mask": None, "scale": self.scale}
        tap.attention("pool", 0, Weights(partial(attention_weights, **rule), q, k))
        x = self.out(attention(q, k, v, **rule).transpose(1, 2).flatten(1))
        return x + self.mlp(self.norm(x))


class TextTower(nn.Module):
    """Token ids [B, T] to one vector for each text [B, D of the images].

    Texts are padded to `config.length`, as in training: padding is seen like any word,
    and the last position, mostly padding itself, becomes the text's vector.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.length, width)
        self.encoder = Encoder(config.encoder, "text")
        self.head = nn.Linear(width, config.projection)

    def forward(self, ids: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        order = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding(ids) + self.positions(order)
        return self.head(self.encoder(x, tap)[:, -1])


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
        show(Weights(partial(attention_weights, **rule), q, k))
        return self.out(attention(q, k, v, **rule).transpose(1, 2).flatten(2))
