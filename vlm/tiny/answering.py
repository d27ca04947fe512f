"""Stage two: all of it learns to answer, with the loss on the answers alone.

The attention that leads to a word is asked to pass through the thing that the word is
about; without that, a model of this size finds its things by ways that no map shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.paligemma import PaliGemma
from vlm.tap import Tap, Weights

IGNORE = -100
OUTLINED = 0.6  # weight of a mask's code, as each mask brings sixteen of them
# Weight of an answer that ends before it begins. Plain greedy sets the end against the
# likeliest of many neighbouring places, which has but a part of what all have; at equal
# weights it says "nothing" wherever it is not very sure that there is something.
EMPTY = 0.3


def answer(
    model: PaliGemma, features: Tensor, text: Texts, codes: Codes
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and figures of answers to questions about image features [B, P, D]."""
    coach = Coach(text.targets, features.shape[1])
    states = model.decoder(
        model.embed(text.ids, features[text.picture]),
        positions=text.positions,
        masks={None: text.mask()},
        tap=coach,
    )
    answered = text.labels != IGNORE
    logits, labels = model.decoder.logits(states[answered]), text.labels[answered]
    coded = text.coded[answered]
    losses = torch.where(
        coded,
        codes.loss(logits, labels),
        F.cross_entropy(logits, labels, reduction="none"),
    )
    weights = torch.where(coded, OUTLINED, 1.0)
    weights[text.empty[answered]] = EMPTY
    language = (weights * losses).sum() / weights.sum()
    right = (logits.argmax(-1) == labels).float()
    figures = {
        "language": language,
        "tokens": right[~coded].mean(),
        "attention": coach.loss(),
    }
    if coded.any():
        figures["codes"] = right[coded].mean()
    first = text.first[answered]
    for task in first.unique().tolist():
        if task:
            figures[text.tasks[task - 1]] = right[first == task].mean()
    return language + 0.25 * coach.loss(), figures


class Codes(nn.Module):
    """What is asked of a mask's codes: this one, or one that means nearly the same.

    A mask that is moved a little has other codes in many of its cells, and is decoded
    to nearly the same. So the credit for a code is shared with those whose entries lie
    near its own; the next token is a code in any case, so that
    none of them need fear for its place as with locations, which compete with the end.

    Args:
        entries: [128, C], the codebook.
        first: the id of `<seg000>`.
    """

    NEAR = 32  # the distance to the entry of this rank sets the scale
    WIDTH = 0.1  # of it; a credit is shared by about seven

    def __init__(self, entries: Tensor, first: int) -> None:
        super().__init__()
        self.first = first
        apart = torch.cdist(entries, entries).square()
        scale = self.WIDTH * apart.sort(dim=1).values[:, self.NEAR].median()
        credit = torch.softmax(-apart / scale, dim=1)
        self.register_buffer("credit", credit, persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy [N] of logits [N, V] with the credits of codes.

        Rows whose label is no code have a value too, which means nothing.
        """
        count = len(self.credit)
        code = (labels - self.first).clamp(0, count - 1)
        chances = logits.log_softmax(-1)[:, self.first : self.first + count]
        return -(self.credit[code] * chances).sum(-1)


class Coach(Tap):
    """Asks heads 0 and 1 of two layers to look at what the coming word is about.

    Args:
        targets: bool [B, T, P], the patches that row's attention should be on; a
            row without any is left alone.
    """

    LAYERS = (1, 2)
    HEADS = slice(0, 2)

    def __init__(self, targets: Tensor, patches: int) -> None:
        self.targets = targets
        self.patches = patches
        self.losses: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        if tower == "decoder" and layer in self.LAYERS:
            seen = weights(slice(self.patches, None))[:, self.HEADS, :, : self.patches]
            asked = self.targets.any(-1)  # [B, T]
            on = (seen * self.targets[:, None]).sum(-1)  # [B, heads, T]
            on = on.transpose(1, 2)[asked]
            self.losses.append(-(on + 1e-4).log().mean() if len(on) else on.sum())

    def loss(self) -> Tensor:
        return torch.stack(self.losses).mean()


@dataclass
class Texts:
    """Questions and answers behind their image tokens.

    ids, labels, positions: [Q, T]; labels stand where they are predicted.
    prefix, valid: bool [Q, T].
    segments: [Q, T]; 0 is seen by all, another number by its like.
    picture: [Q], which picture each row is about.
    targets: bool [Q, T - P, P], see `Coach`.
    coded, empty: bool [Q, T], where a label is the code of a mask, and where it is
        the end of an answer that has not begun.
    first: [Q, T], 1 + number of the task where an answer's first token is predicted.
    """

    ids: Tensor
    labels: Tensor
    prefix: Tensor
    segments: Tensor
    valid: Tensor
    positions: Tensor
    picture: Tensor
    targets: Tensor
    first: Tensor
    coded: Tensor
    empty: Tensor
    tasks: tuple[str, ...]

    def mask(self) -> Tensor:
        """Who may look at whom, bool [Q, 1, T, T]: `prefix_mask` in each segment.

        Image i and two questions, p their prompts and a their answers:

                 i p a p a              one segment: i p a
            i    1 . . . .                      i    1 1 .
            p    1 1 . . .                      p    1 1 .
            a    1 1 1 . .                      a    1 1 1
            p    1 . . 1 .
            a    1 . . 1 1
        """
        order = torch.arange(self.ids.shape[1], device=self.ids.device)
        behind = order <= order[:, None]
        together = self.prefix[:, :, None] & self.prefix[:, None]
        like = self.segments[:, :, None] == self.segments[:, None]
        shared = (self.segments == 0) & self.prefix
        allowed = shared[:, None] | (like & (behind | together))
        itself = order == order[:, None]
        return ((allowed & self.valid[:, None]) | itself)[:, None]

    def to(self, device: torch.device) -> Texts:
        parts = [part for name, part in vars(self).items() if name != "tasks"]
        return Texts(*(part.to(device) for part in parts), self.tasks)
