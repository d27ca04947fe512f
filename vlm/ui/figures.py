"""The figures of the Inside tab: for each data-fact of inside.html the words there."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np

import vlm
from vlm.anatomy import Part, Token

Facts = dict[str, str]
UNITS = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12))
SUPERSCRIPT = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


def of_engine(about: dict[str, Any]) -> Facts:
    """What any engine tells of itself (`describe`)."""
    rows, columns = about["grid"]
    return {
        "model": about["name"],
        "size": count(about["image_size"]),
        "grid": count(rows),
        "patches": count(rows * columns),
    }


def of_model(engine: vlm.Engine, parts: Sequence[Part]) -> Facts:
    """The same for every question. What a model does not have is not among them."""
    vision, decoder = engine.config.vision, engine.config.decoder
    sizes = {part.name: part.parameters for part in parts}
    model = [part for part in parts if part.name != "mask autoencoder"]
    total = sum(part.parameters for part in model)
    slowest = 2 * pi * decoder.rope_base ** (1 - 2 / decoder.head_size)
    mlps = 3 * decoder.width * decoder.mlp_width * decoder.depth
    facts = {
        "patch": count(vision.patch_size),
        "patch_numbers": count(vision.patch_size**2 * vision.channels),
        "vision_width": count(vision.encoder.width),
        "vision_depth": count(vision.encoder.depth),
        "vision_heads": count(vision.encoder.heads),
        "vision_parameters": short(sizes["vision tower"]),
        "projector_parameters": count(sizes["projector"]),
        "vocabulary": count(decoder.vocabulary),
        "depth": count(decoder.depth),
        "width": count(decoder.width),
        "heads": count(decoder.heads),
        "kv_heads": count(decoder.kv_heads),
        "sharing": _sharing(decoder.heads, decoder.kv_heads),
        "head_size": count(decoder.head_size),
        "half_head": count(decoder.head_size // 2),
        "mlp_width": count(decoder.mlp_width),
        "mlp_share": share(mlps, sizes["decoder"]),
        "rope_base": count(round(decoder.rope_base)),
        "slowest": count(round(slowest)),
        "norms": count(decoder.depth * (4 if decoder.post_norms else 2) + 1),
        "eps": _power(decoder.eps),
        "query_scale": f"{decoder.query_scale:.4g}",
        "embedding_scale": f"{decoder.width**0.5:.4g}",
        "embedding_share": share(sizes["embedding"], total),
        "parameters": count(total),
        "bytes": size(sum(part.bytes for part in model)),
        "cache_row": size(engine.describe()["cache_bytes"]),
        "cache_sum": _cache_sum(engine),
    }
    optional = {
        "group": decoder.heads > decoder.kv_heads and decoder.heads // decoder.kv_heads,
        "attention_cap": decoder.attention_softcap,
        "logit_cap": decoder.final_softcap,
        "post_norms": decoder.post_norms,
        "untied": not decoder.tied_head,
        "masks": "mask autoencoder" in sizes,
    }
    return facts | {name: f"{it:g}" for name, it in optional.items() if it}


def of_picture(original: tuple[int, int], values: np.ndarray) -> Facts:
    """Of the picture of `original` size (W, H) as the values [R, R, C] that go in."""
    width, height = original
    pixel = values[0, 0]
    greys = np.rint((pixel + 1) * 127.5).astype(int)
    return {
        "picture": f"{count(width)} × {count(height)} pixels",
        "squeeze": _squeeze(width / height),
        "numbers": " × ".join(str(side) for side in np.roll(values.shape, 1)),
        "first_pixel": f"({', '.join(str(grey) for grey in greys)})",
        "first_values": f"({', '.join(_signed(value) for value in pixel)})",
    }


def of_sequence(
    engine: vlm.Engine, tokens: Sequence[Token], masks: dict[int | None, np.ndarray]
) -> Facts:
    """Of this question, and of what its sliding windows hide."""
    facts = {"tokens": count(len(tokens))}
    windows = [window for window in masks if window is not None]
    if not windows:
        return facts
    layers = [i for i, w in enumerate(engine.config.decoder.windows) if w is not None]
    hidden = sum(int((masks[None] & ~masks[window]).sum()) for window in windows)
    return facts | {
        "window": " or ".join(count(window) for window in windows),
        "window_layers": ", ".join(str(layer) for layer in layers),
        "window_cut": f"hides {count(hidden)} places" if hidden else "hides nothing",
    }


def count(number: float) -> str:
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in the unit that suits them; 1000 of one are 1 of the next."""
    if number < 10_000:
        return f"{count(number)} bytes"
    unit, one = next((u, o) for u, o in UNITS if number < 1000 * o)
    return f"{_three(number / one)} {unit}"


def short(number: float) -> str:
    """A number of parameters, to three digits."""
    if number < 10**6:
        return count(number)
    millions = number / 10**6
    return (
        f"{_three(millions)} M" if millions < 1000 else f"{_three(millions / 1000)} B"
    )


def share(some: float, total: float) -> str:
    percent = 100 * some / total
    return f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


def _squeeze(aspect: float) -> str:
    """What becomes of the proportions; `aspect` is width / height."""
    if 0.995 < aspect < 1.005:
        return "so its proportions stay as they are"
    times, how = (aspect, "narrower") if aspect > 1 else (1 / aspect, "flatter")
    return f"so things look {times:.2f} times {how} than they are"


def _cache_sum(engine: vlm.Engine) -> str:
    decoder = engine.config.decoder
    row = 2 * decoder.depth * decoder.kv_heads * decoder.head_size
    heads = "head" if decoder.kv_heads == 1 else "heads"
    return (
        f"2 × {decoder.depth} layers × {decoder.kv_heads} key-value {heads} × "
        f"{decoder.head_size} numbers × {engine.describe()['cache_bytes'] // row} bytes"
    )


def _sharing(heads: int, kv_heads: int) -> str:
    if heads == kv_heads:
        return "Each head has keys and values of its own"
    if kv_heads == 1:
        return f"All {heads} heads share one key-value head (multi-query)"
    return f"{heads // kv_heads} heads each share a key-value head (grouped-query)"


def _power(small: float) -> str:
    """1e-06 as 10⁻⁶, and what is no power of ten as it is."""
    mantissa, _, exponent = f"{small:g}".partition("e")
    if mantissa != "1" or not exponent:
        return f"{small:g}"
    return "10" + str(int(exponent)).translate(
        str.maketrans("-0123456789", SUPERSCRIPT)
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"
