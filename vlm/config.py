"""What a checkpoint is, as features: frozen dataclasses, read from a Hub config.json.

Version names ("gemma", "gemma2") end here. Below this file a model is described by
what it does: a soft-cap that is a number or None, a window for each layer, norms that
are there or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

POSITIONS = 8192  # of a Gemma, where its config does not say


@dataclass(frozen=True)
class PaliGemmaConfig:
    """A vision tower, a linear projector and a decoder, and the ids between them.

    A checkpoint may say what it is good for: the first words of the prompts that it
    was trained on, and a note for people. Published ones say nothing.
    """

    vision: VisionConfig
    decoder: GemmaConfig
    image_token: int
    bos: int
    eos: tuple[int, ...]
    pad: int
    tasks: tuple[str, ...] = ()
    note: str = ""

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> PaliGemmaConfig:
        """Read a `config.json`, published or written by any transformers since 4.41.

        Such files list only what differs from the defaults of their time, and the
        spelling changed (`rope_theta` became `rope_parameters`); both are read. The
        top-level `hidden_size` and `vocab_size` are decoys: only the nested text
        config counts.

        Raises:
            ValueError: it is no PaliGemma, or asks for something not built here.
        """
        if raw.get("model_type") != "paligemma":
            raise ValueError(
                f"config.json says model_type {raw.get('model_type')!r}; "
                "this loads 'paligemma' checkpoints (PaliGemma 1 and 2)"
            )
        vision, text = raw.get("vision_config"), raw.get("text_config")
        vision = PALIGEMMA_VISION if vision is None else vision
        text = PALIGEMMA_TEXT if text is None else text
        tied = raw.get("tie_word_embeddings", True)
        tied = tied and text.get("tie_word_embeddings", True)
        eos = text.get("eos_token_id", raw.get("eos_token_id", 1))
        return cls(
            vision=VisionConfig.from_hf(vision),
            decoder=GemmaConfig.from_hf(text, tied_head=tied),
            image_token=_first(
                raw, "image_token_index", "image_token_id", default=256000
            ),
            bos=_first(raw, "bos_token_id", default=text.get("bos_token_id", 2)),
            eos=tuple(eos) if isinstance(eos, (list, tuple)) else (eos,),
            pad=_first(raw, "pad_token_id", default=text.get("pad_token_id") or 0),
            tasks=tuple(raw.get("tasks") or ()),
            note=str(raw.get("note") or ""),
        )


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower: square images cut into square patches.

    Attributes:
        class_token: a learnt state goes ahead of the patches, to become the image's.
        patch_bias: the convolution that makes states of patches has a bias.
        front_norm: there is a norm before the first block.
    """

    image_size: int
    patch_size: int
    channels: int
    encoder: EncoderConfig
    class_token: bool = False
    patch_bias: bool = True
    front_norm: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side; a rest smaller than a patch is not looked at."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def positions(self) -> int:
        """States that the encoder has: of the patches, and of the class token."""
        return self.patches + int(self.class_token)

    @classmethod
    def from_hf(cls, raw: dict[str, Any], **features: bool) -> VisionConfig:
        """`features` are those that no config.json tells, only its model_type."""
        raw = {**SIGLIP_VISION, **raw}
        return cls(
            image_size=_square(raw.get("image_size", 224)),
            patch_size=_square(raw["patch_size"]),
            channels=raw.get("num_channels", 3),
            encoder=EncoderConfig.from_hf(raw),
            **features,
        )


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder under a vision or a text tower.

    `causal`: a position sees those before it and itself, not those behind.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    eps: float
    activation: str
    causal: bool = False

    @classmethod
    def from_hf(cls, raw: dict[str, Any], *, causal: bool = False) -> EncoderConfig:
        width, heads = raw["hidden_size"], raw["num_attention_heads"]
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        return cls(
            width=width,
            depth=raw["num_hidden_layers"],
            heads=heads,
            mlp_width=raw["intermediate_size"],
            eps=raw.get("layer_norm_eps", 1e-6),
            activation=raw.get("hidden_act", "gelu_pytorch_tanh"),
            causal=causal,
        )


@dataclass(frozen=True)
class GemmaConfig:
    """The decoder, both generations. `windows` has one entry per layer.

    `positions`: so long is the longest sequence that it was made for.
    """

    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    eps: float
    rope_base: float
    query_scale: float
    attention_softcap: float | None
    final_softcap: float | None
    post_norms: bool
    attention_bias: bool
    tied_head: bool
    windows: tuple[int | None, ...]
    positions: int = POSITIONS

    @property
    def depth(self) -> int:
        return len(self.windows)

    @classmethod
    def from_hf(cls, raw: dict[str, Any], *, tied_head: bool = True) -> GemmaConfig:
        kind = raw.get("model_type", "gemma")
        if kind not in ("gemma", "gemma2"):
            raise ValueError(f"the text model is {kind!r}; known are gemma and gemma2")
        second = kind == "gemma2"
        raw = {**(GEMMA2 if second else GEMMA), **raw}
        heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
        if heads % kv_heads:
            raise ValueError(f"{heads} heads cannot share {kv_heads} key-value heads")
        activation = raw.get("hidden_activation" if second else "hidden_act")
        # "gelu" is a legacy spelling: Gemma was always trained with the tanh form.
        if activation not in (None, "gelu", "gelu_pytorch_tanh"):
            raise ValueError(f"Gemma with activation {activation!r} is not supported")
        head_size = raw["head_dim"]
        scale = raw["query_pre_attn_scalar"] if second else head_size
        return cls(
            vocabulary=raw["vocab_size"],
            width=raw["hidden_size"],
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            mlp_width=raw["intermediate_size"],
            eps=raw.get("rms_norm_eps", 1e-6),
            rope_base=_rope_base(raw),
            query_scale=scale**-0.5,
            attention_softcap=raw["attn_logit_softcapping"] if second else None,
            final_softcap=raw["final_logit_softcapping"] if second else None,
            post_norms=second,
            attention_bias=raw.get("attention_bias", False),
            tied_head=tied_head,
            windows=_windows(raw) if second else (None,) * raw["num_hidden_layers"],
            positions=raw.get("max_position_embeddings", POSITIONS),
        )


# What a config means when it leaves something out (transformers' own defaults).
SIGLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
}
PALIGEMMA_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
}
PALIGEMMA_TEXT = {
    **GEMMA,
    "vocab_size": 257152,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
GEMMA2 = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def _windows(raw: dict[str, Any]) -> tuple[int | None, ...]:
    """Sliding on layers 0, 2, 4, ... unless `layer_types` says otherwise."""
    depth = raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or [
        "full_attention" if i % 2 else "sliding_attention" for i in range(depth)
    ]
    if len(kinds) != depth:
        raise ValueError(f"layer_types names {len(kinds)} layers of {depth}")
    return tuple(
        raw["sliding_window"] if kind == "sliding_attention" else None for kind in kinds
    )


def _rope_base(raw: dict[str, Any]) -> float:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary embeddings of type {kind!r} are not supported")
    return float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))


def _first(raw: dict[str, Any], *names: str, default: int) -> int:
    return next((raw[name] for name in names if raw.get(name) is not None), default)


def _square(size: int | list[int]) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"images and patches are square here, not {list(size)}")
    return size[0]
