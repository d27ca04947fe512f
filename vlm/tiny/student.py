"""The model while it learns: what it is asked for, patch by patch and word by word.

Training needs more signal than the answers give. Each patch is asked which thing it
shows and where that thing's box lies, both read with the decoder's own word rows, so
that a patch of a cat and the word "cat" meet in one space before the first question is
put. And the attention that leads to a word is asked to pass through the thing that the
word is about. The heads for this are thrown away with this class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.paligemma import PaliGemma
from vlm.tap import Tap, Weights

LEVELS = 64  # places along a side that answers are rounded to: loc 8, 24, 40 ...
IGNORE = -100


class Student(nn.Module):
    """A PaliGemma with throw-away heads on its image features.

    Args:
        kinds: the id of each kind's word.
        loc: the id of `<loc0000>`.
    """

    def __init__(self, model: PaliGemma, kinds: list[int], loc: int) -> None:
        super().__init__()
        width = model.config.decoder.width
        self.model = model
        self.background = nn.Parameter(torch.randn(width) * 0.5 / width**0.5)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.edges = nn.Linear(width, 4 * width)
        levels = torch.arange(LEVELS) * (1024 // LEVELS) + 512 // LEVELS
        self.register_buffer("kinds", torch.tensor(kinds), persistent=False)
        self.register_buffer("levels", loc + levels, persistent=False)
        initialise(model, loc)

    def looking(self, picture: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of the image features alone."""
        return self._read_patches(self.model.look(picture.pixels), picture)

    def answering(
        self, picture: Pictures, text: Texts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of questions about pictures, patches' loss included."""
        features = self.model.look(picture.pixels)
        dense, figures = self._read_patches(features, picture)
        coach = Coach(text.targets, features.shape[1])
        states = self.model.decoder(
            self.model.embed(text.ids, features[text.picture]),
            positions=text.positions,
            masks={None: text.mask()},
            tap=coach,
        )
        answered = text.labels != IGNORE
        logits, labels = (
            self.model.decoder.logits(states[answered]),
            text.labels[answered],
        )
        language = F.cross_entropy(logits, labels)
        right = logits.argmax(-1) == labels
        figures |= {"language": language, "tokens": right.float().mean()}
        figures |= {"attention": coach.loss()}
        first = text.first[answered]
        for task in first.unique().tolist():
            if task:
                figures[text.tasks[task - 1]] = right[first == task].float().mean()
        return language + 0.3 * dense + 0.25 * coach.loss(), figures

    def _read_patches(
        self, features: Tensor, picture: Pictures
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.model.decoder.embedding.weight
        words = torch.cat((rows[self.kinds], self.background[None]))
        scores = self.sharpness * features @ words.T  # [B, P, kinds + 1]
        kind = F.cross_entropy(scores.flatten(0, 1), picture.kinds.flatten())
        shown = picture.kinds < len(self.kinds)
        asked = self.edges(features[shown]).unflatten(-1, (4, -1))
        edge = self.sharpness * asked @ rows[self.levels].T  # [patches, 4, LEVELS]
        truth = picture.edges[shown]
        place = F.cross_entropy(edge.flatten(0, 1), truth.flatten())
        figures = {
            "kind": kind,
            "patches": (scores.argmax(-1) == picture.kinds)[shown].float().mean(),
            "place": place,
            "off": (edge.argmax(-1) - truth).abs().float().mean() / LEVELS,
        }
        return kind + 0.5 * place, figures


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
class Pictures:
    """pixels [B, C, R, R]; for each patch its kind [B, P] and edges [B, P, 4]."""

    pixels: Tensor
    kinds: Tensor
    edges: Tensor

    def to(self, device: torch.device) -> Pictures:
        return Pictures(*(part.to(device) for part in vars(self).values()))


@dataclass
class Texts:
    """Questions and answers behind their image tokens.

    ids, labels, positions: [Q, T]; labels stand where they are predicted.
    prefix, valid: bool [Q, T].
    segments: [Q, T]; 0 is seen by all, another number by its like.
    picture: [Q], which picture each row is about.
    targets: bool [Q, T - P, P], see `Coach`.
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


@torch.no_grad()
def initialise(model: PaliGemma, loc: int) -> None:
    """Small rows for words, neighbouring rows for neighbouring places.

    With a tied head and inputs scaled by sqrt(D), rows of a norm near one would make
    an untrained model predict its own input.
    """
    embedding = model.decoder.embedding.weight
    width = embedding.shape[1]
    nn.init.normal_(embedding, std=0.5 / width**0.5)
    place = torch.arange(1024)[:, None] / 1024
    waves = torch.arange(1, 25) * torch.pi
    code = torch.cat(((place * waves).cos(), (place * waves).sin()), dim=1)
    code = code * torch.cat((1 / waves, 1 / waves)).sqrt()
    code = code / code.norm(dim=1, keepdim=True)
    basis = torch.linalg.qr(torch.randn(width, code.shape[1]))[0]
    embedding[loc : loc + 1024] = 0.5 * code @ basis.T
    for name, p in model.named_parameters():
        if p.ndim == 2 and "embedding" not in name and "positions" not in name:
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
            if name.endswith(("out.weight", "down.weight")):
                p.mul_(0.3)
    nn.init.normal_(model.vision.positions.weight, std=0.3)
