"""Engines over random checkpoints with a real vocabulary, and transformers beside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from oracle import random_model, read, write
from PIL import Image
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
)

import vlm
from vlm.tiny.vocabulary import train_vocabulary

PIECES = 2213


@dataclass(frozen=True)
class Pair:
    """One checkpoint, in our hands and in transformers'."""

    folder: Path
    engine: vlm.Engine
    oracle: PaliGemmaForConditionalGeneration

    def inputs(
        self, images: list[Image.Image], prompt: str, answer: str = ""
    ) -> dict[str, Tensor]:
        """What transformers is to be given; the ids are checked elsewhere."""
        config = self.engine.config
        size = config.vision.image_size
        look = SiglipImageProcessorPil(
            size={"height": size, "width": size},
            resample=3,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        asked, given = self.engine.ids(prompt), self.engine.ids(prompt, answer)
        places = [config.image_token] * config.vision.patches * len(images)
        ids = torch.tensor([places + given])
        types = torch.zeros_like(ids)
        types[:, len(places) + len(asked) :] = 1
        pixels = look([image.convert("RGB") for image in images], return_tensors="pt")
        return {
            "input_ids": ids,
            "pixel_values": pixels["pixel_values"],
            "token_type_ids": types,
            "attention_mask": torch.ones_like(ids),
        }


def pair(name: str, folder: Path) -> Pair:
    """A checkpoint of the oracle's cases, with the embedded model's vocabulary."""
    # Milder than the oracle's own: answers are long, and rounding grows with each.
    model = random_model(name, vocabulary=PIECES + 7, image=PIECES, strength=1.4)
    write(folder, model)
    train_vocabulary(folder / "tokenizer.model")
    return Pair(folder, vlm.load(folder, device="cpu"), read(folder))


def picture(seed: int = 0, size: tuple[int, int] = (50, 34)) -> Image.Image:
    """Noise at a few scales, so that every patch differs."""
    dice = np.random.default_rng(seed)
    noise = Image.fromarray(dice.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return noise.resize(size, Image.Resampling.BICUBIC)
