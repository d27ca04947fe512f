"""Pure functions from a Trace, or from a question asked again, to arrays.

One file per family.
"""

from vlm.probes.asked import Asked
from vlm.probes.attention import (
    attention_shares,
    image_attention,
    prompt_attention,
    prompt_shares,
)
from vlm.probes.relevancy import gradient_attention, on_image, relevancy

__all__ = [
    "Asked",
    "attention_shares",
    "gradient_attention",
    "image_attention",
    "on_image",
    "prompt_attention",
    "prompt_shares",
    "relevancy",
]
