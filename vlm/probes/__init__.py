"""Pure functions from a Trace, or from a question asked again, to arrays.

One file per family.
"""

from vlm.probes.asked import Asked
from vlm.probes.attention import (
    attention_shares,
    head_of_largest_variance,
    image_attention,
    prompt_attention,
    prompt_shares,
    region_balance,
    relative_attention,
    via_bos,
)
from vlm.probes.faithfulness import (
    Curve,
    deleting,
    deletion,
    inserting,
    insertion,
    random_order,
)
from vlm.probes.knockout import Knockout, knockout
from vlm.probes.lens import Lens, logit_lens, patch_lens
from vlm.probes.methods import METHODS, Method
from vlm.probes.news import News
from vlm.probes.occlusion import covered, occluding, occlusion
from vlm.probes.patching import Noise, activation_patching
from vlm.probes.positions import on_image
from vlm.probes.relevancy import gradient_attention, relevancy
from vlm.probes.rollout import rollout
from vlm.probes.sanity import rank_correlation, shuffled
from vlm.probes.scores import (
    best_head,
    lift_in_box,
    mass_in_box,
    patches_in,
    pointing,
)
from vlm.probes.sinks import position_sinks, static_sinks, without_sinks
from vlm.probes.tam import token_activation
from vlm.probes.trials import TRIALS, Trial
from vlm.probes.vision import looked_at, patch_attention, vision_attention

__all__ = [
    "activation_patching",
    "Asked",
    "attention_shares",
    "best_head",
    "covered",
    "Curve",
    "deleting",
    "deletion",
    "gradient_attention",
    "head_of_largest_variance",
    "image_attention",
    "inserting",
    "insertion",
    "knockout",
    "Knockout",
    "Lens",
    "lift_in_box",
    "logit_lens",
    "looked_at",
    "mass_in_box",
    "Method",
    "METHODS",
    "News",
    "Noise",
    "occluding",
    "occlusion",
    "on_image",
    "patch_attention",
    "patch_lens",
    "patches_in",
    "pointing",
    "position_sinks",
    "prompt_attention",
    "prompt_shares",
    "random_order",
    "rank_correlation",
    "region_balance",
    "relative_attention",
    "relevancy",
    "rollout",
    "shuffled",
    "static_sinks",
    "token_activation",
    "Trial",
    "TRIALS",
    "via_bos",
    "vision_attention",
    "without_sinks",
]
