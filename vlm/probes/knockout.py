"""Knock-out: cut what rows see of some patches, or silence a head, and ask again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vlm.edit import Edit
from vlm.probes.asked import Asked
from vlm.probes.lens import chosen_layers
from vlm.probes.positions import mask_of


def knockout(asked: Asked, index: int, **what: Any) -> float:
    """Change of log p of answer token `index` under a `Knockout`; below zero: it fell.

    `what` is patches, heads, layers and rows, as `Knockout` takes them.

    Raises:
        ValueError: see `Knockout`.
    """
    after = asked.log_probability(index, edit=Knockout(asked, index, **what))
    return float(after - asked.log_probability(index))


class Knockout(Edit):
    """Attention cut between some rows and some patches, and heads that give nothing.

    Geva et al., arXiv:2304.14767, cut what the last row sees of some positions in some
    layers. What a patch showed may come another way, which `rows` can cut as well:

        "answer"  the rows that led to answer tokens no longer see the patches; the
                  prompt may still have read them, and the answer reads the prompt
        "text"    nor do bos and the prompt; other patches may still have read them
        "all"     nobody does but the patches themselves: no way is left in the decoder
                  (in the vision tower, patches have seen each other before)

    Args:
        patches: bool [rows, columns], those that are not seen, of the image in focus.
        heads: (layer, head) of the decoder, each giving zero in every row.
        layers: in which the patches are not seen; None for all. Negative ones count
            from the end.
    Raises:
        ValueError: there is no such token, patch, head, layer or choice of rows.
    """

    def __init__(
        self,
        asked: Asked,
        index: int,
        *,
        patches: Tensor | None = None,
        heads: Collection[tuple[int, int]] = (),
        layers: Sequence[int] | None = None,
        rows: Literal["answer", "text", "all"] = "answer",
    ) -> None:
        where = asked.layout(index)
        starts = {"answer": where.prefix - 1, "text": where.image, "all": 0}
        if rows not in starts:
            raise ValueError(f"rows are {rows!r}; they may be {', '.join(starts)}")
        count = asked.engine.config.decoder.heads
        for layer, head in heads:
            if not (0 <= layer < where.layers and 0 <= head < count):
                known = f"{where.layers} layers of {count}"
                raise ValueError(f"there is no head {head} in layer {layer} of {known}")
        self.layers = chosen_layers(layers, where.layers) if patches is not None else ()
        self.silent = tuple(heads)
        if patches is not None:
            keys = mask_of(where, patches, asked.focus)
            self.hidden = torch.zeros(len(keys), len(keys), dtype=torch.bool)
            self.hidden[starts[rows] :] = keys
            self.hidden[keys] = False

    def mask(self, layer: int, mask: Tensor) -> Tensor:
        if layer not in self.layers:
            return mask
        return mask & ~self.hidden.to(mask.device)

    def heads(self, layer: int, out: Tensor) -> Tensor:
        silent = [head for at, head in self.silent if at == layer]
        if not silent:
            return out
        out = out.clone()
        out[:, silent] = 0
        return out
