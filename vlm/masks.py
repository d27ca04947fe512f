"""Masks as PaliGemma writes them: 16 of 128 codes are what a thing covers of its box.

    masks = Masks.load("assets/tiny/masks.safetensors")
    masks.encode(mask)  # a mask that is cropped to its box -> 16 codes
    masks.decode(codes)  # float32 [64, 64], stretched over the box

`<seg000>` .. `<seg127>` are the entries of a codebook. Token t stands for cell
(t // 4, t % 4) of a 4 x 4 grid over the box, each a vector to the decoder. The
autoencoder is a VQ-VAE (van den Oord et al., 2017, arXiv:1711.00937), structured and
named like the one that Google published for PaliGemma, `vae-oid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "masks.safetensors"  # its name in the folder of a checkpoint
PUBLISHED = "vae-oid.npz"  # the name of Google's
SIDE = 64  # pixels of a mask
GRID = 4  # cells of a mask, each way
CODES = GRID**2
BOOK = 128  # entries of the codebook
KEPT = 512  # decoded masks that are remembered, 16 KiB each


class Masks:
    """Masks to codes and back; one for all requests, as nothing in it depends on any.

    It computes in float32 on the CPU: a mask is less work than a token is.
    """

    def __init__(self, autoencoder: MaskAutoencoder) -> None:
        self.autoencoder = autoencoder.float().requires_grad_(False).eval()
        self._remembered = lru_cache(maxsize=KEPT)(self._decode)

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read a file of the published tensors' names; their shapes say the widths.

        It is a safetensors file, or an npz such as the published one.

        Raises:
            ValueError: the file is damaged, or is no such autoencoder.
        """
        try:
            return cls(MaskAutoencoder.restore(_tensors(Path(path))))
        except (SafetensorError, ValueError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path} holds no mask autoencoder: {error}") from error

    def save(self, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        state = self.autoencoder.state_dict()
        save_file({k: v.to(dtype).contiguous() for k, v in state.items()}, path)

    @property
    def entries(self) -> Tensor:
        """The codebook, [128, C]."""
        return self.autoencoder._vq_vae._embedding

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """float32 [64, 64] in 0 .. 1, the mask inside its box; not to be written to.

        Raises:
            ValueError: these are not 16 codes of 0 .. 127.
        """
        codes = tuple(int(code) for code in codes)
        if len(codes) != CODES:
            raise ValueError(f"a mask has {CODES} codes, not {len(codes)}")
        if wrong := [code for code in codes if not 0 <= code < BOOK]:
            raise ValueError(f"codes go from 0 to {BOOK - 1}; {wrong[0]} is none")
        return self._remembered(codes)

    __call__ = decode  # what `vlm.objects` wants

    def encode(self, mask: np.ndarray) -> tuple[int, ...]:
        """The 16 codes of a mask [H, W], bool or 0 .. 1, that is cropped to its box.

        Raises:
            ValueError: it is no such mask.
        """
        return tuple(self.encode_many(resize(mask)[None])[0].tolist())

    @torch.no_grad()
    def encode_many(self, masks: np.ndarray) -> np.ndarray:
        """int64 [N, 16], the codes of masks [N, 64, 64] of 0 .. 1.

        Raises:
            ValueError: the masks have another size.
        """
        if masks.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"masks are [N, {SIDE}, {SIDE}], not {list(masks.shape)}")
        x = torch.from_numpy(np.array(masks, np.float32))[:, None]
        return self.autoencoder.nearest(self.autoencoder.encode(x)).flatten(1).numpy()

    @torch.no_grad()
    def _decode(self, codes: tuple[int, ...]) -> np.ndarray:
        cells = torch.tensor(codes).view(1, GRID, GRID)
        x = self.autoencoder.decode(self.autoencoder.entries(cells))
        mask = (x[0, 0] * 0.5 + 0.5).clamp(0, 1).numpy()
        mask.flags.writeable = False  # others will be given the same one
        return mask


class MaskAutoencoder(nn.Module):
    """Encoder, codebook and decoder, the published ones unless widths say otherwise.

    Args:
        down: channels after each halving of the side, from 64 to 4 pixels.
        code: width of a codebook entry.
        up: channels at 4 pixels, and after each doubling of the side, back to 64.
        reach: side of the kernels with which the encoder's cells see their neighbours.
    """

    def __init__(
        self,
        *,
        down: tuple[int, ...] = (16, 32, 64, 128),
        code: int = 512,
        up: tuple[int, ...] = (128, 128, 64, 32, 16),
        reach: int = 3,
    ) -> None:
        super().__init__()
        halve: list[nn.Module] = []
        for i, o in zip((1, *down), down):
            halve += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(
            *halve,
            Residual(down[-1], reach),
            Residual(down[-1], reach),
            nn.Conv2d(down[-1], code, 1),
        )
        self._vq_vae = Codebook(code)
        double: list[nn.Module] = []
        for i, o in zip(up, up[1:]):
            double += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(
            nn.Conv2d(code, up[0], 1),
            nn.ReLU(),
            Residual(up[0]),
            Residual(up[0]),
            *double,
            nn.Conv2d(up[-1], 1, 1),
        )

    @classmethod
    def restore(cls, state: dict[str, Tensor]) -> MaskAutoencoder:
        """The autoencoder that these tensors belong to.

        Raises:
            ValueError: some are missing, or do not fit together.
        """

        def width(name: str, axis: int = 0) -> int:
            if name not in state:
                raise ValueError(f"{name} is missing")
            return state[name].shape[axis]

        autoencoder = cls(
            down=tuple(width(f"encoder.{n}.weight") for n in (0, 2, 4, 6)),
            code=width("_vq_vae._embedding", 1),
            # Transposed convolutions have their inputs first.
            up=(
                width("decoder.0.weight"),
                *(width(f"decoder.{n}.weight", 1) for n in (4, 6, 8, 10)),
            ),
            reach=width("encoder.8.net.0.weight", 3),
        )
        # Of the training of the codebook, Google's file holds two averages.
        kept = {name: t for name, t in state.items() if "._ema_" not in name}
        try:
            autoencoder.load_state_dict(kept)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return autoencoder

    def encode(self, masks: Tensor) -> Tensor:
        """Masks [B, 1, 64, 64] of 0 .. 1 to [B, code, 4, 4]."""
        return self.encoder(masks * 2 - 1)

    def nearest(self, x: Tensor) -> Tensor:
        """The entry nearest to each cell: [B, code, 4, 4] to int64 [B, 4, 4]."""
        book = self._vq_vae._embedding
        # |x - e|^2 less |x|^2, which is the same for all entries e.
        distance = book.square().sum(1) - 2 * (x.movedim(1, -1) @ book.T)
        return distance.argmin(-1)

    def entries(self, cells: Tensor) -> Tensor:
        """Codes [B, 4, 4] to their vectors [B, code, 4, 4]."""
        return self._vq_vae._embedding[cells].movedim(-1, 1)

    def decode(self, x: Tensor) -> Tensor:
        """[B, code, 4, 4] to [B, 1, 64, 64]: about -1 outside, 1 inside, unclipped."""
        return self.decoder(x)


class Codebook(nn.Module):
    """The entries; a module of its own because the published name says so."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self._embedding = nn.Parameter(torch.randn(BOOK, code))


class Residual(nn.Module):
    """Two convolutions and a mix of channels beside the identity."""

    def __init__(self, width: int, reach: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, reach, padding=reach // 2),
            nn.ReLU(),
            nn.Conv2d(width, width, reach, padding=reach // 2),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".npz":
        return load_file(path)
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def resize(
    mask: np.ndarray, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """A mask [H, W], bool or 0 .. 1, as the encoder wants it: float32 [64, 64].

    `box` is the part to take, x1, y1, x2, y2 in pixels, also between them; None: all.

    Raises:
        ValueError: it has no area, or values beyond 0 .. 1.
    """
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask is [H, W] and not empty, not {list(mask.shape)}")
    low, high = float(mask.min()), float(mask.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a mask goes from 0 to 1, not from {low:g} to {high:g}")
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))
