"""Contrast: which text belongs to which image, by SigLIP or CLIP; what teaches it.

    pair = load_pair("assets/tiny-pair")
    pair.scores([image], ["a red cat", "two dogs"])

The two losses are SigLIP's, in which each cell of images x texts stands for itself, and
CLIP's, in which the texts of an image compete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm import checkpoint, pair_checkpoint
from vlm.bpe import BytePairs
from vlm.caption import Captions
from vlm.framing import Framing
from vlm.hub import Progress
from vlm.image import pixels
from vlm.siglip import PairModel
from vlm.tap import LOOK_AWAY, Tap

AT_ONCE = 32  # images or texts in one pass


def load_pair(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Pair:
    """Load a SigLIP or CLIP in Hugging Face layout; arguments as those of `vlm.load`.

    A SigLIP's image tower and its vocabulary may lie in the folder of a PaliGemma that
    config.json names as "image_tower".

    Raises:
        ValueError: what is wrong with the checkpoint or the arguments, and what to do.
    """
    folder = checkpoint.find(
        source,
        revision=revision,
        token=token,
        progress=progress,
        check=pair_checkpoint.read_config,
    )
    config = pair_checkpoint.read_config(folder)
    framing = None
    if config.text.encoder.causal:
        captions = BytePairs.load(folder, config.text)
        framing = Framing.read(folder, config.vision.image_size)
    else:
        shared = pair_checkpoint.tower_folder(folder)
        captions = Captions.load([folder, *([shared] if shared else [])], config.text)
    model = pair_checkpoint.load_model(folder, config, device=device, dtype=dtype)
    return Pair(model, captions, framing)


class Pair:
    """An image tower and a text tower that were taught to agree.

    Args:
        framing: which part of an image is seen; None: all of it, squeezed to a square.
    """

    def __init__(
        self,
        model: PairModel,
        captions: Captions | BytePairs,
        framing: Framing | None = None,
    ) -> None:
        self.model = model
        self.captions = captions
        self.framing = framing
        self.config = model.config

    def scores(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        *,
        loss: str | None = None,
    ) -> Tensor:
        """How well each text fits each image, float32 [I, T], in 0..1.

        Args:
            loss: "sigmoid" gives the probability of each cell, whatever the others
                are; none of the texts may fit, or several. "softmax" lets the texts of
                an image compete: each row sums to 1. None: the one that the pair was
                trained with. A CLIP knows only the softmax: no bias was trained, and
                the sigmoid of its logits is the probability of nothing.
        Raises:
            ValueError: another loss, nothing to compare, or an unreadable image.
        """
        loss = loss or ("sigmoid" if self.config.biased else "softmax")
        if loss not in ("sigmoid", "softmax"):
            raise ValueError(f"loss {loss!r} is unknown; known: sigmoid, softmax")
        logits = self.model.logits(self.images(images), self.texts(texts)).cpu()
        return logits.sigmoid() if loss == "sigmoid" else logits.softmax(dim=-1)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image], *, tap: Tap = LOOK_AWAY) -> Tensor:
        """float32 [I, D], of length one.

        Args:
            tap: is shown each pass; one pass takes up to 32 images.
        Raises:
            ValueError: no images, or one that cannot be read.
        """
        like = self.model.text.head.weight
        vectors = []
        for part in _parts(images, "images"):
            x = torch.cat([self._pixels(image) for image in part])
            vectors.append(self.model.images(x.to(like), tap))
        return torch.cat(vectors)

    def _pixels(self, image: Image.Image) -> Tensor:
        if self.framing is not None:
            return self.framing.pixels(image)
        vision = self.config.vision
        return pixels(image, vision.image_size, channels=vision.channels)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [T, D], of length one.

        Raises:
            ValueError: no texts.
        """
        device = self.model.text.head.weight.device
        ids = [self.captions.ids(part) for part in _parts(texts, "texts")]
        return torch.cat([self.model.texts(part.to(device)) for part in ids])


def siglip_loss(
    images: Tensor, texts: Tensor, *, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Every cell of images x texts is a yes-no question of its own.

    -log sigmoid(z (scale cos + bias)) with z = 1 on the diagonal and -1 elsewhere,
    summed over the texts, averaged over the images (Zhai et al., arXiv:2303.15343,
    algorithm 1). The cells do not know of each other, so a row may be summed in parts.

    Args:
        images, texts: [N, D] of length one; row i of both belongs together.
        scale: the factor itself, that is the exponential of a model's logit_scale.
    Raises:
        ValueError: not as many images as texts.
    """
    logits = cosines(images, texts) * scale + bias  # [I, T]
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum(-1).mean()


def clip_loss(images: Tensor, texts: Tensor, *, scale: Tensor | float) -> Tensor:
    """Which text belongs to this image, which image to this text: cross-entropy.

    The mean of the softmax over each image's texts and over each text's images
    (Radford et al., arXiv:2103.00020, figure 3).

    Args:
        images, texts: [N, D] of length one; row i of both belongs together.
        scale: the factor itself, that is the exponential of a model's logit_scale.
    Raises:
        ValueError: not as many images as texts.
    """
    logits = cosines(images, texts) * scale  # [I, T]
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """float32 [N, N]."""
    if images.shape != texts.shape:
        raise ValueError(
            f"images {list(images.shape)} and texts {list(texts.shape)} are no pairs"
        )
    return images.float() @ texts.float().T


def _parts(items: Sequence, what: str) -> Iterator[Sequence]:
    if isinstance(items, str) or not isinstance(items, Sequence) or not items:
        raise ValueError(f"expected a list of {what}, got {items!r}")
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
