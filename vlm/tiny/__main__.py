"""Make the embedded checkpoint: `python -m vlm.tiny --minutes 100 --out assets/tiny`.

First the vocabulary and the codebook of masks, which take minutes; then two stages,
each bounded by its share of the minutes and resumed where it was stopped: the towers
learn to look, patch by patch and caption by caption; then all of it learns to answer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

from vlm.masks import FILE as MASKS
from vlm.tiny.looking import LOSSES
from vlm.tiny.masking import train_masks
from vlm.tiny.train import train
from vlm.tiny.vocabulary import train_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm.tiny", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("assets/tiny"), help="the checkpoint's folder")
    add("--work", type=Path, default=Path("runs/tiny"), help="states to go on from")
    add("--minutes", type=float, default=100.0, help="of training, all stages together")
    add("--seed", type=int, default=0)
    add("--ranks", type=int, default=os.cpu_count(), help="one per core, without a GPU")
    add("--start", type=Path, help="a checkpoint to begin from, of the same shape")
    add("--loss", choices=LOSSES, default=LOSSES[0], help="that teaches the pair")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "tokenizer.model").exists():
        train_vocabulary(options.work / "tokenizer.model")
    if not (options.work / MASKS).exists():
        if options.start:  # its rows for codes mean the entries of its own codebook
            shutil.copy(options.start / MASKS, options.work / MASKS)
        else:
            train_masks(options.work)
    ranks = 1 if torch.cuda.is_available() else options.ranks
    if ranks == 1:
        train(0, 1, 0, options)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(train, (ranks, port, options), nprocs=ranks)


if __name__ == "__main__":
    main()
