"""Gemma, both generations, by configuration (arXiv:2403.08295, arXiv:2408.00118).

The second generation adds to the first: norms behind attention and MLP, soft-caps on
scores and logits, and a window on every other layer. Each is a feature of its own here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vlm.cache import KVCache
from vlm.config import GemmaConfig
from vlm.edit import LEAVE, Edit
from vlm.layers import (
    GatedMLP,
    RMSNorm,
    attention,
    attention_weights,
    rope,
    rotate,
    soft_cap,
    weighted,
)
from vlm.tap import LOOK_AWAY, Tap, Weights


class Gemma(nn.Module):
    """The decoder: embeddings in, states out; `logits` reads the vocabulary."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, window) for window in config.windows)
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head read with the embedding's own rows, where it does."""
        if self.config.tied_head:
            self.head.weight = self.embedding.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the embedding times sqrt(D), [B, T, D].

        The factor is rounded to the weights' dtype first, as it was in training.
        """
        x = self.embedding(ids)
        return x * torch.tensor(self.config.width**0.5, dtype=x.dtype)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        masks: dict[int | None, Tensor],
        cache: KVCache | None = None,
        tap: Tap = LOOK_AWAY,
        edit: Edit = LEAVE,
        last: int = 0,
    ) -> Tensor:
        """States after the last norm, [B, T, D].

        Args:
            x: [B, T, D], already scaled.
            positions: [B, T].
            masks: for each window that a layer has, bool [B, 1, T, S].
            cache: appended to; None computes over x alone.
            last: so many last positions come out, and the others are left behind the
                last layer's attention, where nobody reads them any more; 0 for all.
        """
        count = x.shape[1]
        turn = rope(positions, self.config.head_size, self.config.rope_base)
        x = edit.residual(-1, x)
        for layer, block in enumerate(self.blocks):
            keep = partial(cache.extend, layer) if cache is not None else _keep_nothing
            mask = edit.mask(layer, masks[block.window])
            show = partial(tap.attention, "decoder", layer)
            pass_on = partial(_heads, layer, tap, edit)
            rows = last if layer == len(self.blocks) - 1 else 0
            x = block(x, turn, mask, keep, show, pass_on, rows)
            x = edit.residual(layer, x)
            tap.residual("decoder", layer, x)
        if cache is not None:
            cache.advance(count)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """float32 [B, T, V] from states."""
        scores = self.head(x).float()
        cap = self.config.final_softcap
        return scores if cap is None else soft_cap(scores, cap)


class Block(nn.Module):
    def __init__(self, config: GemmaConfig, window: int | None) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.width, config.eps)

        self.window = window
        self.attention_norm = norm()
        self.attention = Attention(config)
        self.attention_post_norm = norm() if config.post_norms else nn.Identity()
        self.mlp_norm = norm()
        self.mlp = GatedMLP(config.width, config.mlp_width)
        self.mlp_post_norm = norm() if config.post_norms else nn.Identity()

    def forward(
        self, x: Tensor, turn, mask: Tensor, keep, show, pass_on, last: int
    ) -> Tensor:
        seen = self.attention(self.attention_norm(x), turn, mask, keep, show, pass_on)
        x = (x + self.attention_post_norm(seen))[:, -last:]
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245); K = 1 is multi-query."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        size, bias = config.head_size, config.attention_bias
        self.head_size = size
        self.scale = config.query_scale
        self.softcap = config.attention_softcap
        self.q = nn.Linear(config.width, config.heads * size, bias=bias)
        self.k = nn.Linear(config.width, config.kv_heads * size, bias=bias)
        self.v = nn.Linear(config.width, config.kv_heads * size, bias=bias)
        self.out = nn.Linear(config.heads * size, config.width, bias=bias)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor,
        keep: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        show: Callable[[Weights], None],
        pass_on: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        q, k, v = self.read(x, turn)
        k, v = keep(k, v)  # [B, K, S, H]
        rule = {"mask": mask, "scale": self.scale, "softcap": self.softcap}
        weights = Weights(partial(attention_weights, **rule), q, k)
        if q.shape[2] == 1:
            # A generated token: what the taps are shown is what is multiplied.
            weights = weights.computed()
            seen = weighted(weights(slice(None)), v)
        else:
            seen = attention(q, k, v, **rule)
        show(weights)
        heads = pass_on(v, seen)
        return self.out(heads.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries [B, N, T, H], keys and values [B, K, T, H], the first two turned."""
        q, k, v = (
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in self.project(x)
        )
        return rotate(q, turn), rotate(k, turn), v

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def _heads(layer: int, tap: Tap, edit: Edit, values: Tensor, out: Tensor) -> Tensor:
    out = edit.heads(layer, out)
    tap.heads("decoder", layer, values, out)
    return out


def _keep_nothing(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v
