"""Beginning from what was learnt before, with other words and kinds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vlm import checkpoint, pair_checkpoint
from vlm.paligemma import PaliGemma
from vlm.siglip import PairModel
from vlm.tokenizer import Tokenizer

# One row for each piece of the vocabulary: the decoder's two, and the text tower's.
ROWS = ("decoder.embedding.weight", "decoder.head.weight", "text.embedding.weight")


def carry_over(
    model: PaliGemma, pair: PairModel, tokenizer: Tokenizer, folder: Path
) -> int:
    """Take over a checkpoint of the same shape, the rows of its words by their pieces.

    So it is with the pair beside it, if there is one. Rows of pieces that it lacks
    stay as they are. Returns how many of the model's were taken.

    Raises:
        ValueError: the checkpoint has another shape.
    """
    config = checkpoint.read_config(folder)
    size = config.decoder.vocabulary
    names = Tokenizer.load(folder, image_token=config.image_token, size=size)
    row = {names.piece(token): token for token in range(size)}
    known = [t for t in range(tokenizer.size) if tokenizer.piece(t) in row]
    rows = known, [row[tokenizer.piece(token)] for token in known]
    if (beside := folder.with_name(f"{folder.name}-pair")).is_dir():
        shape = pair_checkpoint.read_config(beside)
        how = {"device": "cpu", "dtype": "float32"}
        _take(pair, pair_checkpoint.load_model(beside, shape, **how), rows, beside)
    # The model comes last: what the pair's files hold of its image tower is no newer.
    earlier = checkpoint.load_model(folder, config, device="cpu", dtype="float32")
    _take(model, earlier, rows, folder)
    return len(known)


@torch.no_grad()
def _take(
    model: nn.Module,
    earlier: nn.Module,
    rows: tuple[list[int], list[int]],
    folder: Path,
) -> None:
    mine, theirs = rows
    state = model.state_dict()
    for name, tensor in earlier.state_dict().items():
        if name in ROWS:
            state[name][mine] = tensor[theirs]
        elif state[name].shape != tensor.shape:
            raise ValueError(
                f"{folder} cannot be a start: {name} is {list(tensor.shape)} there "
                f"and {list(state[name].shape)} here"
            )
        else:
            state[name].copy_(tensor)
