"""Token Activation Map: where on the image the head would read a token, cleaned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.probes.asked import Asked
from vlm.probes.lens import read_vocabulary
from vlm.tap import Tap


def token_activation(asked: Asked, index: int) -> Tensor:
    """What the patches say of answer token `index` that earlier words do not explain.

    Li et al., arXiv:2506.23270. The activation of a token is its logit, where above
    zero, in the last states at the image positions. From it is taken the interference
    of the context: the mean of the activations of earlier tokens, each weighted by
    the explained token's logit at that token's row, times the factor that fits it
    best by least squares. A rank Gaussian filter of 3 x 3 patches ends it.

    Departures, with their reasons:
        - The paper's models are causal, so that an image state has read no word. Here
          the prefix sees itself whole: the image states have read the prompt, and a
          word of it may show everywhere. Answer tokens they have not read.
        - Earlier tokens are the prompt's between bos and newline, and the answer's.
          Each counts as itself; the authors' code takes, for the first of the prompt,
          what the model would have said there.
        - What is the same word is told by id, and the map stays in logits: it is not
          stretched to 0..1 together with the scores of the text.

    Returns:
        float32 [rows, columns], not below zero.
    Raises:
        ValueError: the answer has no such token.
    """
    token, where = asked.token(index), asked.layout(index)
    # A prompt token is read at its own row, an answer token at the row that led to it:
    # without the newline, the two are one run of rows.
    earlier = asked.engine.ids(asked.prompt)[1:-1] + list(asked.answer[:index])
    start = where.image + 1
    reader = _Activations(asked, [*earlier, token])
    asked.logits(index, tap=reader)
    patches = where.patches(asked.focus)
    own = reader.activations[patches, -1]
    others = [i for i, other in enumerate(earlier) if other != token]
    maps = reader.activations[patches, others]
    weights = reader.activations[start : start + len(earlier), -1][others]
    left = without_interference(own, maps, weights)
    return rank_gaussian(left.unflatten(0, (where.grid, where.grid)))


def without_interference(own: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
    """Estimated causal inference: `own` less what the weighted maps explain of it.

    Args:
        own: [P]; maps: [P, n]; weights: [n]; none of them below zero.
    Returns:
        [P], not below zero.
    """
    interference = maps @ weights  # the mean's own factor would cancel out below
    energy = interference @ interference
    if energy == 0:
        return own
    return (own - interference * (own @ interference) / energy).clamp(min=0)


def rank_gaussian(heat: Tensor) -> Tensor:
    """Each value becomes a mean of the 3 x 3 around it, weighted by rank.

    The weights are a Gaussian over the nine sorted values, centred on the median; its
    width, in ranks, is their standard deviation over their mean. Where neighbours
    agree it is a median filter. The border is mirrored.

    Args:
        heat: [rows, columns], at least 2 x 2, not below zero.
    """
    padded = F.pad(heat[None], (1, 1, 1, 1), mode="reflect")[0]
    ranked = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2).sort(-1).values
    mean = ranked.mean(-1, keepdim=True)
    width = ranked.std(-1, keepdim=True, unbiased=False) / mean
    # All alike: the median alone. All zero: 0 / 0, and the median is 0.
    width = width.nan_to_num(0).clamp(min=1e-6)
    ranks = torch.arange(-4, 5, device=heat.device)
    weights = torch.exp(-(ranks**2) / (2 * width**2))
    return (ranked * weights).sum(-1) / weights.sum(-1)


class _Activations(Tap):
    """Logits of some tokens in the last states of every row, where above zero."""

    def __init__(self, asked: Asked, tokens: list[int]) -> None:
        self.decoder = asked.engine.model.decoder
        self.tokens = tokens

    def residual(self, tower: str, layer: int, x: Tensor) -> None:
        if tower == "decoder" and layer == self.decoder.config.depth - 1:
            chunks = read_vocabulary(self.decoder, x[0], self.keep)
            self.activations = torch.cat(chunks)  # [S, tokens]

    def keep(self, logits: Tensor) -> Tensor:
        return logits[:, self.tokens].clamp(min=0).cpu()
