"""What a pair of an image tower and a text tower is, as features: see vlm.config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm.config import EncoderConfig, VisionConfig


@dataclass(frozen=True)
class PairConfig:
    """Two towers that meet in vectors as wide as `text.projection`.

    `biased`: the pair was trained with a sigmoid, for which logits have a bias.
    """

    vision: VisionConfig
    text: TextConfig
    biased: bool = True

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> PairConfig:
        """Read the `config.json` of a SiglipModel or a CLIPModel.

        Raises:
            ValueError: it is neither, or its towers do not meet.
        """
        kind = raw.get("model_type")
        if kind == "clip":
            return cls._clip(raw)
        if kind != "siglip":
            raise ValueError(
                f"config.json says model_type {kind!r}; "
                "this loads 'siglip' and 'clip' pairs of an image and a text tower"
            )
        vision = VisionConfig.from_hf(raw.get("vision_config") or {})
        text = TextConfig.from_hf(raw.get("text_config") or {})
        if text.projection != vision.encoder.width:
            raise ValueError(
                f"texts become vectors of {text.projection}, images of "
                f"{vision.encoder.width}; they cannot be compared"
            )
        return cls(vision=vision, text=text)

    @classmethod
    def _clip(cls, raw: dict[str, Any]) -> PairConfig:
        # Old files say some of it twice, and the second time counts.
        vision, text = (
            raw.get(f"{tower}_config_dict") or raw.get(f"{tower}_config") or {}
            for tower in ("vision", "text")
        )
        vision = VisionConfig.from_hf(
            {**CLIP_VISION, **vision},
            class_token=True,
            patch_bias=False,
            front_norm=True,
        )
        if vision.channels != 3:
            raise ValueError(f"CLIP's images have 3 channels, not {vision.channels}")
        text = {**CLIP_TEXT, **text}
        # The towers' own `projection_dim` are decoys: only the top level's counts.
        text["projection_size"] = raw.get("projection_dim", 512)
        end = text["eos_token_id"]
        if not isinstance(end, int):
            raise ValueError(f"eos_token_id is one id here, not {end!r}")
        # OpenAI's files say 2, which is wrong, and were trained to look for the
        # largest id; transformers (pull request 24773) decides the same way.
        return cls(
            vision=vision,
            text=TextConfig.from_hf(
                text, causal=True, head_bias=False, end=None if end == 2 else end
            ),
            biased=False,
        )


@dataclass(frozen=True)
class TextConfig:
    """A text tower: up to `length` ids, to a vector of `projection`.

    The vector is made of one position's state: the last one's, of texts that are
    always `length` ids, or, where the encoder is causal, that of the text's end.

    Attributes:
        head_bias: what makes the vector has a bias.
        end: the id that ends a text, at its first place; None: the largest id does.
            Of causal encoders only.
    """

    vocabulary: int
    length: int
    projection: int
    encoder: EncoderConfig
    head_bias: bool = True
    end: int | None = None

    @classmethod
    def from_hf(
        cls,
        raw: dict[str, Any],
        *,
        causal: bool = False,
        head_bias: bool = True,
        end: int | None = None,
    ) -> TextConfig:
        raw = {**SIGLIP_TEXT, **raw}
        return cls(
            vocabulary=raw["vocab_size"],
            length=raw["max_position_embeddings"],
            projection=raw.get("projection_size") or raw["hidden_size"],
            encoder=EncoderConfig.from_hf(raw, causal=causal),
            head_bias=head_bias,
            end=end,
        )


# What a config means when it leaves something out (transformers' own defaults).
SIGLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
}
CLIP = {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
CLIP_VISION = {**CLIP, "patch_size": 32}
CLIP_TEXT = {
    **CLIP,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
