"""The embedded model's shape, and how its training is spent."""

from __future__ import annotations

from vlm.config import EncoderConfig, GemmaConfig, PaliGemmaConfig, VisionConfig
from vlm.tiny.questions import KINDS

LOOKING = 0.255  # share of the time for the vision tower alone
IMAGES = 16  # in a batch, on each rank
QUESTIONS = 4  # about each of them
# Chances of each task: at first, and from WIDEN of the answering stage on. Finding and
# refusing come first; what rests on them follows.
FIRST = {"detect": 0.45, "exists": 0.45, "caption": 0.1}
LATER = {
    "detect": 0.36,
    "exists": 0.16,
    "caption": 0.16,
    "count": 0.1,
    "color": 0.08,
    "where": 0.08,
    "describe": 0.06,
}
WIDEN = 0.3
PACKED = 0.6  # share of the answering stage with several questions in a row


def configuration(pieces: int) -> PaliGemmaConfig:
    """A PaliGemma of 4.0 M parameters over a vocabulary of `pieces` and `<image>`."""
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size=128,
            patch_size=16,
            channels=3,
            encoder=EncoderConfig(
                width=192,
                depth=5,
                heads=4,
                mlp_width=576,
                eps=1e-6,
                activation="gelu_pytorch_tanh",
            ),
        ),
        decoder=GemmaConfig(
            vocabulary=pieces + 1,
            width=192,
            heads=4,
            kv_heads=1,
            head_size=48,
            mlp_width=512,
            eps=1e-6,
            rope_base=10000.0,
            query_scale=48**-0.5,
            attention_softcap=None,
            final_softcap=None,
            post_norms=False,
            attention_bias=False,
            tied_head=True,
            windows=(None,) * 4,
        ),
        image_token=pieces,
        bos=2,
        eos=(1,),
        pad=0,
        tasks=("caption", "describe", "answer", "detect"),
        note=(
            f"This small model knows {len(KINDS)} kinds of drawn things: "
            f"{', '.join(KINDS)}. Photographs are beyond it."
        ),
    )
