"""The embedded model's shape, and how its training is spent."""

from __future__ import annotations

from vlm.config import (
    EncoderConfig,
    GemmaConfig,
    PaliGemmaConfig,
    VisionConfig,
)
from vlm.pair_config import PairConfig, TextConfig
from vlm.tiny.questions import KINDS

LOOKING = 0.35  # share of the time for the towers alone
IMAGES = 16  # in a batch, on each rank
QUESTIONS = 4  # about each of them
# Chances of each task: at first, and from WIDEN of the answering stage on. Finding and
# refusing come first; what rests on them follows.
FIRST = {"detect": 0.42, "exists": 0.4, "caption": 0.1, "segment": 0.08}
LATER = {
    "detect": 0.2,
    "caption": 0.26,
    "exists": 0.09,
    "segment": 0.08,
    "count": 0.09,
    "color": 0.12,
    "where": 0.05,
    "beside": 0.02,
    "larger": 0.02,
    "region": 0.03,
    "describe": 0.03,
    "question": 0.01,
}
WIDEN = 0.25
FOREIGN = 0.3  # chance that the language is drawn: half of these are not in English
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
        tasks=("caption", "describe", "answer", "question", "detect", "segment"),
        note=(
            f"A small model for drawn scenes. It knows {len(KINDS)} kinds of things: "
            f"{', '.join(KINDS)}. Photographs are beyond it: for those, start with "
            "--model google/paligemma2-3b-mix-224."
        ),
    )


def pair_configuration(config: PaliGemmaConfig) -> PairConfig:
    """A text tower of 0.8 M parameters beside the same image tower."""
    return PairConfig(
        vision=config.vision,
        text=TextConfig(
            vocabulary=config.decoder.vocabulary,
            length=32,
            projection=config.vision.encoder.width,
            encoder=EncoderConfig(
                width=128,
                depth=3,
                heads=4,
                mlp_width=384,
                eps=1e-6,
                activation="gelu_pytorch_tanh",
            ),
        ),
    )
