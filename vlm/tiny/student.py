"""The model while it learns: PaliGemma, the pair that shares its eye, and the heads
that are thrown away when training ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm.pair_config import PairConfig
from vlm.paligemma import PaliGemma
from vlm.siglip import PairModel
from vlm.tiny.answering import Codes, Texts, answer
from vlm.tiny.looking import PatchReader, Pictures, match


class Student(nn.Module):
    """A PaliGemma and a SigLIP of one vision tower.

    Args:
        forms: [kinds, F], the ids of each kind's words.
        entries: [128, C], the codebook of masks.
        loc, seg: the ids of `<loc0000>` and `<seg000>`.
        loss: which of the contrastive losses teaches the pair.
    """

    def __init__(
        self,
        model: PaliGemma,
        pair: PairConfig,
        *,
        forms: Tensor,
        entries: Tensor,
        loc: int,
        seg: int,
        loss: str = "sigmoid",
    ) -> None:
        super().__init__()
        self.model = model
        self.pair = PairModel(pair)
        self.pair.vision = model.vision
        self.reader = PatchReader(model.config.decoder.width, forms, loc)
        self.codes = Codes(entries, seg)
        self.loss = loss
        initialise(self, loc)

    def looking(self, picture: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of the towers alone."""
        _, read, matched, figures = self._look(picture)
        return read + 0.3 * matched, figures

    def answering(
        self, picture: Pictures, text: Texts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of answers; the towers go on with what they learnt."""
        features, read, matched, figures = self._look(picture)
        answered, more = answer(self.model, features, text, self.codes)
        return answered + 0.3 * read + 0.1 * matched, figures | more

    def _look(
        self, picture: Pictures
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        states = self.model.vision(picture.pixels)
        features = self.model.projector(states)
        rows = self.model.decoder.embedding.weight
        read, figures = self.reader(features, rows, picture)
        matched, more = match(self.pair, states, picture.captions, loss=self.loss)
        return features, read, matched, figures | more


@torch.no_grad()
def initialise(student: Student, loc: int) -> None:
    """Small rows for words, neighbouring rows for neighbouring places.

    With a tied head and inputs scaled by sqrt(D), rows of a norm near one would make
    an untrained model predict its own input.
    """
    model = student.model
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
