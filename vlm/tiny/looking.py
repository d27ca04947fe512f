"""Stage one: the towers learn to see, patch by patch and caption by caption.

Training needs more signal than answers give. Each patch is asked which thing it shows,
where that thing's box lies and which part of the patch it fills; the first two are read
with the decoder's own word rows, so that a patch of a cat and the words "cat", "cats"
and "Katze" meet in one space before the first question is put. The heads for this are
thrown away when training ends; the pair of towers is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.contrastive import clip_loss, siglip_loss
from vlm.siglip import PairModel

LEVELS = 64  # places along a side that answers are rounded to: loc 8, 24, 40 ...
DETAIL = 4  # a patch is cut into so many cells along a side, for a thing's shape
LOSSES = ("sigmoid", "softmax")


class PatchReader(nn.Module):
    """Throw-away heads on the image features.

    Args:
        forms: [kinds, F], the ids of each kind's words; repeated where there are fewer.
        loc: the id of `<loc0000>`.
    """

    def __init__(self, width: int, forms: Tensor, loc: int) -> None:
        super().__init__()
        self.background = nn.Parameter(torch.randn(width) * 0.5 / width**0.5)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.edges = nn.Linear(width, 4 * width)
        self.shape = nn.Linear(width, DETAIL**2)
        levels = torch.arange(LEVELS) * (1024 // LEVELS) + 512 // LEVELS
        self.register_buffer("forms", forms, persistent=False)
        self.register_buffer("levels", loc + levels, persistent=False)

    def forward(
        self, features: Tensor, rows: Tensor, picture: Pictures
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of features [B, P, D], read with word rows [V, D]."""
        form = self.forms[:, torch.randint(self.forms.shape[1], ())]
        words = torch.cat((rows[form], self.background[None]))
        scores = self.sharpness * features @ words.T  # [B, P, kinds + 1]
        kind = F.cross_entropy(scores.flatten(0, 1), picture.kinds.flatten())
        shown = picture.kinds < len(form)
        seen = features[shown]
        asked = self.edges(seen).unflatten(-1, (4, -1))
        edge = self.sharpness * asked @ rows[self.levels].T  # [patches, 4, LEVELS]
        truth = picture.edges[shown]
        place = F.cross_entropy(edge.flatten(0, 1), truth.flatten())
        filled = picture.shapes[shown].float()
        shape = F.binary_cross_entropy_with_logits(self.shape(seen), filled)
        figures = {
            "kind": kind,
            "patches": (scores.argmax(-1) == picture.kinds)[shown].float().mean(),
            "place": place,
            "off": (edge.argmax(-1) - truth).abs().float().mean() / LEVELS,
            "shape": shape,
        }
        return kind + 0.5 * place + 0.5 * shape, figures


def match(
    pair: PairModel, states: Tensor, captions: Tensor, *, loss: str = "sigmoid"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The contrastive loss between pictures and their captions, and its figures.

    Both losses stand among the figures, whichever of them teaches.

    Args:
        states: [B, P, D] of the vision tower.
        captions: ids [B, length]; row i belongs to picture i.
        loss: one of LOSSES.
    """
    images = F.normalize(pair.pool(states), dim=-1)
    texts = pair.texts(captions)
    scale = pair.logit_scale.exp()
    losses = {
        "sigmoid": siglip_loss(images, texts, scale=scale, bias=pair.logit_bias),
        "softmax": clip_loss(images, texts, scale=scale),
    }
    own = torch.arange(len(images), device=images.device)
    matched = ((images @ texts.T).argmax(1) == own).float().mean()
    return losses[loss], losses | {"matched": matched}


@dataclass
class Pictures:
    """pixels [B, C, R, R]; each patch's kind, edges and shape; a caption.

    kinds [B, P], with the number of kinds for background; edges [B, P, 4], levels of
    y1, x1, y2, x2; shapes bool [B, P, DETAIL^2], the cells of a patch that its thing
    fills, row by row; captions [B, length], ids as the text tower takes them.
    """

    pixels: Tensor
    kinds: Tensor
    edges: Tensor
    shapes: Tensor
    captions: Tensor

    def to(self, device: torch.device) -> Pictures:
        return Pictures(*(part.to(device) for part in vars(self).values()))
