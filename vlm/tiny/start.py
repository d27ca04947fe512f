"""Beginning from what was learnt before, with other words and kinds."""

from __future__ import annotations

from pathlib import Path

import torch

from vlm import checkpoint
from vlm.paligemma import PaliGemma
from vlm.tokenizer import Tokenizer


@torch.no_grad()
def carry_over(model: PaliGemma, tokenizer: Tokenizer, folder: Path) -> int:
    """Take over a checkpoint of the same shape, the rows of its words by their pieces.

    Rows of pieces that it lacks stay as they are. Returns how many were taken.

    Raises:
        ValueError: the checkpoint has another shape.
    """
    config = checkpoint.read_config(folder)
    earlier = checkpoint.load_model(folder, config, device="cpu", dtype="float32")
    size = config.decoder.vocabulary
    names = Tokenizer.load(folder, image_token=config.image_token, size=size)
    row = {names.piece(token): token for token in range(size)}
    known = [t for t in range(tokenizer.size) if tokenizer.piece(t) in row]
    theirs = [row[tokenizer.piece(token)] for token in known]
    state = model.state_dict()
    for name, tensor in earlier.state_dict().items():
        if name.endswith(("embedding.weight", "head.weight")):
            state[name][known] = tensor[theirs]
        elif state[name].shape != tensor.shape:
            raise ValueError(
                f"{folder} cannot be a start: {name} is {list(tensor.shape)} there "
                f"and {list(state[name].shape)} here"
            )
        else:
            state[name].copy_(tensor)
    return len(known)
