"""SigLIP (Zhai et al., arXiv:2303.15343): one encoder, two towers; and CLIP's.

The vision tower is the Encoder with patches in front, the text tower the Encoder with
words in front. PaliGemma takes every patch's last state. Where an image is to be one
vector, beside a text's, SigLIP's attention pool makes it of the patches; CLIP (Radford
et al., arXiv:2103.00020) projects the state of a class token that goes with them.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.config import EncoderConfig, VisionConfig
from vlm.layers import MLP, attention, attention_weights
from vlm.pair_config import PairConfig, TextConfig
from vlm.tap import LOOK_AWAY, Tap, Weights


class PairModel(nn.Module):
    """Both towers, whose vectors are compared by the angle between them."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        width, projection = config.vision.encoder.width, config.text.projection
        self.pool = (
            ClassProjection(width, projection)
            if config.vision.class_token
            else AttentionPool(config.vision.encoder)
        )
        self.text = TextTower(config.text)
        # Where the papers start them; with a bias, most cells of a batch are no pairs.
        if config.biased:
            self.logit_scale = nn.Parameter(torch.full((1,), math.log(10)))
            self.logit_bias = nn.Parameter(torch.full((1,), -10.0))
        else:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            self.logit_bias = None

    def images(self, pixels: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        """Pixels [I, C, R, R] to float32 [I, D] of length one."""
        x = self.pool(self.vision(pixels, tap), tap)
        return F.normalize(x.float(), dim=-1)

    def texts(self, ids: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        """Ids [T, length] to float32 [T, D] of length one."""
        return F.normalize(self.text(ids, tap).float(), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """float32 [I, T] of what `images` and `texts` gave: scale cos + bias.

        A pair that is not biased has none.
        """
        logits = images @ texts.T * self.logit_scale.float().exp()
        return logits if self.logit_bias is None else logits + self.logit_bias.float()


class VisionTower(nn.Module):
    """Pixels [B, C, R, R] to one state per patch, row by row [B, P, D].

    With a class token its state comes first, [B, 1 + P, D].
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, size = config.encoder.width, config.patch_size
        self.patches = nn.Conv2d(
            config.channels, width, size, stride=size, bias=config.patch_bias
        )
        self.class_token = None
        if config.class_token:
            self.class_token = drawn(width)
        self.positions = nn.Embedding(config.positions, width)
        self.front_norm = nn.Identity()
        if config.front_norm:
            self.front_norm = nn.LayerNorm(width, eps=config.encoder.eps)
        self.encoder = Encoder(config.encoder, "vision")

    def forward(self, pixels: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # [B, P, D]
        x = x.contiguous()  # or all states to come would lie in memory as x does
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)
        order = torch.arange(x.shape[1], device=x.device)
        return self.encoder(self.front_norm(x + self.positions(order)), tap)


class AttentionPool(nn.Module):
    """States of the patches [B, P, D] to one vector for the image [B, D].

    A learnt probe asks, the patches answer (Zhai et al., arXiv:2106.04560, MAP).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.probe = drawn(1, 1, width)
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


class ClassProjection(nn.Module):
    """States [B, 1 + P, W] to one vector for the image [B, D]: the class token's."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, projection, bias=False)

    def forward(self, x: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        return self.out(x[:, 0])


class TextTower(nn.Module):
    """Token ids [B, T] to one vector for each text [B, D of the images].

    SigLIP's texts are padded to `config.length`, as in training: padding is seen like
    any word, and the last position, mostly padding itself, becomes the text's vector.
    Where the encoder is causal, what stands behind the end is not seen by it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.length, width)
        self.encoder = Encoder(config.encoder, "text")
        self.head = nn.Linear(width, config.projection, bias=config.head_bias)
        self.end = config.end

    def forward(self, ids: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        order = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding(ids) + self.positions(order)
        x = self.encoder(x, tap)
        if not self.encoder.causal:
            return self.head(x[:, -1])
        # The first of the largest, so that texts may be padded with the end.
        ends = (ids if self.end is None else (ids == self.end).int()).argmax(dim=-1)
        return self.head(x[torch.arange(len(x), device=x.device), ends])


class Encoder(nn.Module):
    """Pre-norm transformer; unless it is causal, each position sees every other."""

    def __init__(self, config: EncoderConfig, tower: str) -> None:
        super().__init__()
        self.tower = tower
        self.causal = config.causal
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        mask = None
        if self.causal:
            square = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask = square.tril().to(x.device)[None, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(tap.attention, self.tower, layer), mask)
            tap.residual(self.tower, layer, x)
        return self.norm(x)


class EncoderBlock(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = EncoderAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, show, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), show, mask)
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

    def forward(self, x: Tensor, show, mask: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, N, P, H]
            for part in self.project(x)
        )
        rule = {"mask": mask, "scale": self.scale}
        show(Weights(partial(attention_weights, **rule), q, k))
        return self.out(attention(q, k, v, **rule).transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def drawn(*shape: int) -> nn.Parameter:
    """A first value whose length is about one."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=shape[-1] ** -0.5))
