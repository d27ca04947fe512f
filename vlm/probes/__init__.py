"""Pure functions from a Trace to arrays. One file per family."""

from vlm.probes.attention import (
    attention_shares,
    image_attention,
    prompt_attention,
    prompt_shares,
)

__all__ = [
    "attention_shares",
    "image_attention",
    "prompt_attention",
    "prompt_shares",
]
