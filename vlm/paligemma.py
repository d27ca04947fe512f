"""PaliGemma: look at the image, put what was seen before the words, go on writing.

Beyer et al., arXiv:2407.07726 (PaliGemma), and Steiner et al., arXiv:2412.03555 (2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm.cache import KVCache
from vlm.config import PaliGemmaConfig
from vlm.edit import LEAVE, Edit
from vlm.gemma import Gemma
from vlm.siglip import VisionTower
from vlm.tap import LOOK_AWAY, Tap


class PaliGemma(nn.Module):
    """A vision tower, a linear projector and a decoder."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = nn.Linear(config.vision.encoder.width, config.decoder.width)
        self.decoder = Gemma(config.decoder)

    def look(self, pixels: Tensor, tap: Tap = LOOK_AWAY) -> Tensor:
        """Pixels [B, C, R, R] in [-1, 1] to image features [B, P, D]."""
        return self.projector(self.vision(pixels, tap))

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """[B, T, D] from ids [B, T], with features [B, images * P, D] put in.

        Text is scaled by sqrt(D) and image features are not. The features take, in
        order, the places of the `<image>` tokens among the ids. Leave features out
        and such a token is a word like any other: a model may well generate one.

        Raises:
            ValueError: the ids do not have one place for each feature.
        """
        x = self.decoder.embed(ids)
        if features is None:
            return x
        places = ids == self.config.image_token
        expected = features.shape[0] * features.shape[1]
        if int(places.sum()) != expected:
            raise ValueError(
                f"{int(places.sum())} image tokens for {expected} image features"
            )
        return x.masked_scatter(places[..., None].to(x.device), features.to(x))

    def forward(self, ids: Tensor, features: Tensor | None = None, **how) -> Tensor:
        """float32 logits [B, T, V] over ids [B, T]; arguments as those of `states`."""
        return self.decoder.logits(self.states(ids, features, **how))

    def states(
        self,
        ids: Tensor,
        features: Tensor | None = None,
        *,
        prefix: Tensor | None = None,
        valid: Tensor | None = None,
        cache: KVCache | None = None,
        tap: Tap = LOOK_AWAY,
        edit: Edit = LEAVE,
        last: int = 0,
    ) -> Tensor:
        """Last states [B, T, D] over ids [B, T] that follow what the cache holds.

        Args:
            features: from `look`, for the `<image>` tokens among the ids.
            prefix: bool [B, T], True for image and prompt; None: all is answer.
            valid: bool [B, T], False for padding; None: there is none.
            last: so many last positions only; 0 for all. A tap and an edit are then
                shown no others of the last layer's residual stream.
        """
        prefix = torch.zeros_like(ids, dtype=torch.bool) if prefix is None else prefix
        valid = torch.ones_like(prefix) if valid is None else valid
        if cache is None:
            rows = torch.arange(ids.shape[1], device=ids.device)
        else:
            prefix, valid, rows = cache.note(prefix, valid)  # [B, S], [B, S], [T]
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)[:, rows]
        masks = {
            window: prefix_mask(prefix, valid, rows, window)
            for window in set(self.config.decoder.windows)
        }
        x = self.embed(ids, features)
        how = {"cache": cache, "tap": tap, "edit": edit, "last": last}
        return self.decoder(x, positions=positions, masks=masks, **how)


def prefix_mask(
    prefix: Tensor, valid: Tensor, rows: Tensor, window: int | None = None
) -> Tensor:
    """Who may look at whom, bool [B, 1, T, S].

    Args:
        prefix, valid: bool [B, S].
        rows: long [T], which of those positions look.
        window: an answer token looks at most this far back, itself included.

    Image (i) and prompt (p) see each other whole; an answer token (a) sees what came
    before it. With a window of 3 the answer's view is cut, the prefix's is not:

              i i p p a a         window 3   i i p p a a
          i   1 1 1 1 . .                i   1 1 1 1 . .
          i   1 1 1 1 . .                i   1 1 1 1 . .
          p   1 1 1 1 . .                p   1 1 1 1 . .
          p   1 1 1 1 . .                p   1 1 1 1 . .
          a   1 1 1 1 1 .                a   . . 1 1 1 .
          a   1 1 1 1 1 1                a   . . . 1 1 1

    A published window (4096) is reached at 896 pixels only. The prefix is left whole
    there, as in the reference implementation, which trained without a window.
    """
    keys = torch.arange(prefix.shape[1], device=prefix.device)
    behind = keys <= rows[:, None]  # [T, S]
    if window is not None:
        behind = behind & (rows[:, None] - keys < window)
    together = prefix[:, rows, None] & prefix[:, None]  # [B, T, S]
    # Padding sees itself, so that no row of the softmax is empty.
    allowed = ((behind | together) & valid[:, None]) | (rows[:, None] == keys)
    return allowed[:, None]
