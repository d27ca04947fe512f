"""Learning masks: the embedded model's `<seg>` codebook, encoder and decoder.

    python -m vlm.tiny.masking FOLDER

writes FOLDER/masks.safetensors in about three minutes on one core and says how well
masks come back; the same seed and steps write the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.masks import BOOK, FILE, MaskAutoencoder, Masks, resize
from vlm.tiny.scenes import Stock, compose
from vlm.tiny.sprites import ASSETS, load_sprites

STEPS = 1000
BATCH = 64
PEAK = 3e-3  # learning rate
DRAWN = 12_000  # masks to learn from, each flipped at random
FREE = 0.1  # share of the steps before there is a codebook
SHARPNESS = 3.0  # a decoded 1 is this logit, so that clipping to -1 .. 1 is about right
DECAY = 0.98  # of the codebook's running means
COMMITMENT = 0.25
RARE = 0.2  # cells of a batch; an entry that has fewer starts again
LOG_EVERY = 100
HELD_OUT = 1000
SHAPE = {"down": (12, 24, 48, 64), "code": 32, "up": (56, 56, 32, 16, 8), "reach": 1}


def train_masks(folder: Path, *, steps: int = STEPS, seed: int = 0) -> Masks:
    """Learn from the masks of composed scenes; write `folder`/masks.safetensors."""
    stock = Stock(load_sprites(), backgrounds=8)  # which no mask shows
    dice = np.random.default_rng(seed)
    masks = torch.from_numpy(draw_masks(dice, stock, DRAWN))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the weights
        # In this memory format convolutions on a CPU take a fifth less time.
        blank = MaskAutoencoder(**SHAPE).to(memory_format=torch.channels_last)
        lesson = Lesson(blank, steps, seed)
    start = time.monotonic()
    for step in range(steps):
        picked = masks[torch.from_numpy(dice.integers(len(masks), size=BATCH))]
        if dice.random() < 0.5:
            picked = picked.flip(-1)
        figures = lesson.step(step, picked.float() / 255)
        if (step + 1) % LOG_EVERY == 0:
            _log(folder, step + 1, steps, time.monotonic() - start, figures)
    trained = Masks(lesson.autoencoder)
    part = folder / f"{FILE}.part"
    trained.save(part)
    os.replace(part, folder / FILE)
    return Masks.load(folder / FILE)


class Lesson:
    """An autoencoder, and what learning keeps from step to step.

    Entries of the codebook are running means of the cells that chose them (van den
    Oord et al., 2017, appendix A.1); one that hardly any cell chooses starts again as
    a cell of the batch. Before the codebook, encoder and decoder have a time without.
    """

    def __init__(self, autoencoder: MaskAutoencoder, steps: int, seed: int) -> None:
        self.autoencoder = autoencoder
        self.steps = steps
        self.dice = torch.Generator().manual_seed(seed)
        self.book = autoencoder._vq_vae._embedding.requires_grad_(False)
        learnt = [p for p in autoencoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, betas=(0.9, 0.98), weight_decay=0.0)
        self.counts = torch.zeros(BOOK)
        self.sums = self.book.clone()

    def step(self, number: int, masks: Tensor) -> dict[str, float]:
        """Learn from masks [B, 64, 64]; tell the loss, the IoU and the codes in use."""
        progress = number / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * schedule(progress, number)
        masks = masks[:, None]
        cells = self.autoencoder.encode(masks)
        commitment = cells.new_zeros(())
        if progress >= FREE:
            entries = self._quantize(cells.detach())
            commitment = F.mse_loss(cells, entries)
            cells = cells + (entries - cells).detach()  # gradients pass straight on
        logits = SHARPNESS * self.autoencoder.decode(cells)
        loss = F.binary_cross_entropy_with_logits(logits, masks) + 0.5 * dice_loss(
            logits.sigmoid(), masks
        )
        self.optimizer.zero_grad(set_to_none=True)
        (loss + COMMITMENT * commitment).backward()
        self.optimizer.step()
        return {
            "loss": float(loss.detach()),
            "iou": float(overlaps(logits.detach() > 0, masks > 0.5).mean()),
            "codes": int((self.counts > RARE).sum()),
        }

    @torch.no_grad()
    def _quantize(self, cells: Tensor) -> Tensor:
        """The entries of cells [B, code, 4, 4], which move towards them."""
        chosen = self.autoencoder.nearest(cells)
        flat = cells.movedim(1, -1).flatten(0, 2)
        hot = F.one_hot(chosen.flatten(), BOOK).to(flat.dtype)
        self.counts.lerp_(hot.sum(0), 1 - DECAY)
        self.sums.lerp_(hot.T @ flat, 1 - DECAY)
        dead = self.counts < RARE
        order = torch.randperm(len(flat), generator=self.dice)
        fresh = flat[order[: int(dead.sum())]]
        self.counts[dead], self.sums[dead] = 1.0, fresh
        self.book.copy_(self.sums / self.counts[:, None])
        return self.autoencoder.entries(chosen)


def draw_masks(dice: np.random.Generator, stock: Stock, count: int) -> np.ndarray:
    """uint8 [count, 64, 64]: what is seen of things in scenes, cropped to its box."""
    masks: list[np.ndarray] = []
    while len(masks) < count:
        for thing in compose(dice, stock, masks=True).things:
            x1, y1, x2, y2 = map(int, thing.box)
            masks.append((255 * resize(thing.mask[y1:y2, x1:x2])).astype(np.uint8))
    return np.stack(masks[:count])


def evaluate(masks: Masks, truth: np.ndarray) -> dict[str, float]:
    """How well masks [N, 64, 64] of 0 .. 255 come back from their codes."""
    truth = truth.astype(np.float32) / 255
    codes = masks.encode_many(truth)
    back = np.stack([masks.decode(row) for row in codes])
    ious = overlaps(torch.from_numpy(back) > 0.5, torch.from_numpy(truth) > 0.5)
    return {
        "iou": float(ious.mean()),
        "iou_of_the_worst_tenth": float(ious.quantile(0.1)),
        "codes": len(np.unique(codes)),
    }


def dice_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """One minus the soft Dice overlap of [B, 1, H, W], mean over the batch."""
    both, all = (guess * truth).sum((1, 2, 3)), (guess + truth).sum((1, 2, 3))
    return (1 - 2 * both / all).mean()


def overlaps(guess: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of bool masks [B, ..., H, W], one for each."""
    both, either = (guess & truth).flatten(1).sum(1), (guess | truth).flatten(1).sum(1)
    return both / either


def schedule(progress: float, number: int) -> float:
    """Warm up for 50 steps, hold, and fall to zero over the second half."""
    return min(1.0, (number + 1) / 50, 2 * (1 - progress))


def _log(
    folder: Path, number: int, steps: int, seconds: float, figures: dict[str, float]
) -> None:
    rate = number * BATCH / seconds
    left = seconds / number * (steps - number) / 60
    line = {"stage": "masks", "step": number, "minute": seconds / 60}
    line |= {"pictures_per_second": rate} | figures
    line = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")
    shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(
        f"masks {number / steps:4.0%}  {rate:.0f} pictures/s  "
        f"{left:.1f} min left  {shown}",
        flush=True,
    )


def main() -> None:
    """Learn masks, or evaluate on another style what was learnt."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sprites", default=ASSETS, help="drawings to evaluate on")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in training, so that the file is the same
    options.folder.mkdir(parents=True, exist_ok=True)
    if (options.folder / FILE).exists():
        masks = Masks.load(options.folder / FILE)
    else:
        masks = train_masks(options.folder, steps=options.steps, seed=options.seed)
    stock = Stock(load_sprites(options.sprites), backgrounds=8)
    truth = draw_masks(np.random.default_rng(HELD_OUT), stock, HELD_OUT)
    print(evaluate(masks, truth))


if __name__ == "__main__":
    main()
