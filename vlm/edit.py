"""Edit: what a forward pass is to do otherwise, for whoever intervenes.

The counterpart of a tap: a tap is shown what happens, an edit changes it. It belongs to
one request and is passed down; the base class leaves everything as it is.
"""

from __future__ import annotations

from torch import Tensor


class Edit:
    """Leaves everything as it is. Subclass it and override what you want to change.

    What it is given must not be written to: the model may use it elsewhere.
    """

    def mask(self, layer: int, mask: Tensor) -> Tensor:
        """Who may look at whom in a layer of the decoder, bool [B, 1, T, S].

        May come back as [B, N, T, S], with a mask for each head. A row that may look
        at nothing looks everywhere alike: leave it itself.
        """
        return mask

    def heads(self, layer: int, out: Tensor) -> Tensor:
        """What the heads of a layer give, [B, N, T, H], before they are mixed."""
        return out

    def residual(self, layer: int, x: Tensor) -> Tensor:
        """The residual stream [B, T, D] after `layer`; -1 is the embedding."""
        return x


LEAVE = Edit()
