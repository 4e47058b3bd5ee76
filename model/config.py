"""Sizes of every part of UniMedVL, as the published checkpoint folder records them.

`llm_config.json` and `vit_config.json` are the published files (SPEC of BAGEL/UniMedVL: Qwen2 and
SigLIP configurations). What that folder leaves to code, `unimedvl_config.json` carries here.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

EXTRA_FILE = "unimedvl_config.json"
# The same, as fixtures made with the reference code name it.
REFERENCE_FILE = "tiny_extra_config.json"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _PublishedPart(_Part):
    """A file of the published folder: keys that change nothing here are kept and written back."""

    model_config = ConfigDict(extra="allow", frozen=True)


class LLMConfig(_PublishedPart):
    """The Qwen2 decoder whose every layer carries two experts."""

    vocab_size: PositiveInt = 512
    hidden_size: PositiveInt = 192
    intermediate_size: PositiveInt = 512
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 6
    num_key_value_heads: PositiveInt = 2
    rope_theta: Positive = 1e6
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: PositiveInt = 4096
    initializer_range: Positive = 0.02
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: Literal[False] = False
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    model_type: Literal["qwen2"] = "qwen2"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _divisible(self):
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError("hidden_size must be an even multiple of num_attention_heads")
        if self.hidden_size % 4:
            raise ValueError("hidden_size must be a multiple of 4, since the position tables have four parts")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


class ViTConfig(_PublishedPart):
    """SigLIP NaViT. `num_hidden_layers` is the published count; the network uses one layer fewer."""

    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 384
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 4
    patch_size: PositiveInt = 14
    image_size: PositiveInt = 112
    num_channels: PositiveInt = 3
    layer_norm_eps: Positive = 1e-6
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    model_type: Literal["siglip_vision_model"] = "siglip_vision_model"

    @property
    def layers_used(self) -> int:
        return self.num_hidden_layers - 1

    @property
    def positions(self) -> int:
        """How many places of patches have learned embeddings."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _divisible(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        return self


class VAEConfig(_Part):
    """The FLUX autoencoder. Latents are `scale_factor * (z - shift_factor)`."""

    ch: PositiveInt = 8
    ch_mult: tuple[PositiveInt, ...] = Field((1, 2, 4, 8), min_length=1)
    num_res_blocks: PositiveInt = 1
    z_channels: PositiveInt = 4
    norm_groups: PositiveInt = 4
    in_channels: PositiveInt = 3
    out_ch: PositiveInt = 3
    scale_factor: Positive = 1.0
    shift_factor: FiniteFloat = 0.0

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


class ResizeRule(_Part):
    """Longest and shortest side in pixels, the stride both are rounded to, and the pixel budget."""

    max_size: PositiveInt
    min_size: PositiveInt
    stride: PositiveInt
    max_pixels: PositiveInt = 14 * 14 * 9 * 1024

    @property
    def longest(self) -> int:
        """The longest side in pixels that a picture can get: the largest size, rounded to the stride."""
        return max(1, round(self.max_size / self.stride)) * self.stride


class ImageConfig(_Part):
    """How pictures enter (ViT, VAE) and leave (`draw_size` px) the network."""

    vit: ResizeRule = ResizeRule(max_size=70, min_size=70, stride=14)
    vae: ResizeRule = ResizeRule(max_size=64, min_size=64, stride=16)
    draw_size: PositiveInt = 64


class SamplingConfig(_Part):
    """Defaults of image sampling. `tiny` is guided less than published, in fewer steps.

    `draw_image_guidance` guides away from the text once more: without an image, the branch without image is the whole one.
    """

    steps: int = Field(25, ge=2)
    timestep_shift: Positive = 3.0
    text_guidance: FiniteFloat = 4.0
    draw_image_guidance: FiniteFloat = 1.0
    edit_text_guidance: FiniteFloat = 1.5
    edit_image_guidance: FiniteFloat = 1.0
    draw_interval: tuple[float, float] = (0.4, 1.0)


class SpecialTokens(_Part):
    """Ids of the four tokens that frame texts and images."""

    bos_token_id: NonNegativeInt = 0
    eos_token_id: NonNegativeInt = 1
    start_of_image: NonNegativeInt = 2
    end_of_image: NonNegativeInt = 3


class ModelConfig(BaseModel):
    """Everything that fixes the shapes of a UniMedVL. The defaults are the `tiny` profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "tiny"
    llm: LLMConfig = LLMConfig()
    vit: ViTConfig = ViTConfig()
    vae: VAEConfig = VAEConfig()
    image: ImageConfig = ImageConfig()
    sampling: SamplingConfig = SamplingConfig()
    special_tokens: SpecialTokens = SpecialTokens()
    latent_patch_size: PositiveInt = 2
    max_latent_size: PositiveInt = 8
    vit_max_num_patch_per_side: PositiveInt = 8
    timestep_shift: Positive = 2.0

    @property
    def latent_stride(self) -> int:
        """Image pixels a latent token covers along one side."""
        return self.vae.downsample * self.latent_patch_size

    @property
    def latent_dim(self) -> int:
        return self.vae.z_channels * self.latent_patch_size**2

    @model_validator(mode="after")
    def _tables_cover_images(self):
        image, patch, stride = self.image, self.vit.patch_size, self.latent_stride
        for key, side, patch_side in (("image.vit.stride", image.vit.stride, patch), ("image.vae.stride", image.vae.stride, stride)):
            if side % patch_side:
                raise ValueError(f"{key}={side} must be a multiple of {patch_side}")
        if image.draw_size < stride:
            raise ValueError(f"image.draw_size={image.draw_size} must be at least {stride}")
        checks = (
            ("image.vit.max_size", image.vit.longest, patch, self.vit_max_num_patch_per_side),
            ("image.vae.max_size", image.vae.longest, stride, self.max_latent_size),
            ("image.draw_size", image.draw_size, stride, self.max_latent_size),
        )
        for key, side, patch_side, table in checks:
            if side // patch_side > table:
                raise ValueError(f"{key}: a picture of {side} px needs {side // patch_side} positions a side; its table has {table}")
        last = (image.vit.longest // patch - 1) * (self.vit_max_num_patch_per_side + 1)
        if last >= self.vit.positions:
            raise ValueError(f"vit.image_size={self.vit.image_size} has {self.vit.positions} positions, but a picture of {image.vit.longest} px a side reaches number {last}")
        return self

    def save(self, folder: Path) -> None:
        """Write the three JSON files of the checkpoint folder."""
        _write(Path(folder) / "llm_config.json", self.llm.model_dump(mode="json"))
        _write(Path(folder) / "vit_config.json", self.vit.model_dump(mode="json"))
        self.save_extras(folder)

    def save_extras(self, folder: Path) -> None:
        """Write the one of them that the published folder lacks."""
        _write(Path(folder) / EXTRA_FILE, self._extras())

    def _extras(self) -> dict:
        return self.model_dump(mode="json", exclude={"llm", "vit"})

    @classmethod
    def load(cls, folder: Path, otherwise: "ModelConfig | None" = None) -> "ModelConfig":
        """Read a checkpoint folder's configuration; absent extras are those of `otherwise`, or the published 14B values."""
        folder = Path(folder)
        parts = {"llm": QWEN2 | _with_rope(_read(folder / "llm_config.json")), "vit": SIGLIP | _read(folder / "vit_config.json")}
        parts["llm"]["tie_word_embeddings"] = False  # the published code sets it, whatever the file says
        if (folder / EXTRA_FILE).exists():
            return cls(**parts, **_read(folder / EXTRA_FILE))
        if (folder / REFERENCE_FILE).exists():
            return cls(**parts, **_reference_extras(_read(folder / REFERENCE_FILE), ViTConfig(**parts["vit"])))
        return cls(**parts, **(PUBLISHED_EXTRAS if otherwise is None else otherwise._extras()))


# What a file of the published folder means where it is silent: its writer leaves out what the class has as default.
QWEN2 = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
}
SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16, "image_size": 224}
PUBLISHED_SAMPLING = {"steps": 50, "draw_image_guidance": 1.5, "edit_text_guidance": 4.0, "edit_image_guidance": 2.0}
# What BAGEL's and UniMedVL's own code sets after reading the published JSON files.
PUBLISHED_EXTRAS = {
    "name": "unimedvl-14b",
    "vae": {"ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "z_channels": 16, "norm_groups": 32, "scale_factor": 0.3611, "shift_factor": 0.1159},
    "image": {
        "vit": {"max_size": 980, "min_size": 378, "stride": 14, "max_pixels": 2_007_040},
        "vae": {"max_size": 1024, "min_size": 512, "stride": 16},
        "draw_size": 1024,
    },
    "sampling": PUBLISHED_SAMPLING,
    "special_tokens": {"bos_token_id": 151644, "eos_token_id": 151645, "start_of_image": 151652, "end_of_image": 151653},
    "max_latent_size": 64,
    "timestep_shift": 1.0,
    "vit_max_num_patch_per_side": 70,
}


# What the published networks are built with, and the only thing this one can be.
_FIXED = {"connector_act": "gelu_pytorch_tanh", "interpolate_pos": False, "vit_select_layer": -2, "vit_rope": False, "qk_norm": True, "layer_module": "Qwen2MoTDecoderLayer"}


def _with_rope(llm: dict) -> dict:
    """`rope_theta` beside the other keys, where the published files have it; transformers 5 writes it in `rope_parameters`."""
    told = llm.get("rope_parameters") or {}
    if told.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters: rope_type {told['rope_type']!r}, but this network has only 'default'")
    return {key: told[key] for key in ("rope_theta",) if key in told} | llm


def _reference_extras(written: dict, vit: ViTConfig) -> dict:
    """Extras from the reference's own words (`bagel`, `ae`, `special_tokens`), with the largest pictures its tables hold."""
    bagel, ae = written["bagel"], written["ae"]
    for key, value in _FIXED.items():
        if bagel.get(key, value) != value:
            raise ValueError(f"{REFERENCE_FILE}: {key}={bagel[key]!r}, but this network has {value!r} built in")
    table = bagel["vit_max_num_patch_per_side"]
    # A patch at (n, n) has number n * (table + 1), for which there is to be a learned embedding too.
    vit_side = min(table, (vit.positions - 1) // (table + 1) + 1) * vit.patch_size
    stride = 2 ** (len(ae["ch_mult"]) - 1) * bagel["latent_patch_size"]
    vae_side = bagel["max_latent_size"] * stride
    return {
        "name": "reference",
        "vae": {key: ae[key] for key in VAEConfig.model_fields if key != "norm_groups"} | {"norm_groups": 32},
        "image": {
            "vit": {"max_size": vit_side, "min_size": min(378, vit_side // 2), "stride": vit.patch_size},
            "vae": {"max_size": vae_side, "min_size": min(512, vae_side // 2), "stride": stride},
            "draw_size": vae_side,
        },
        "sampling": PUBLISHED_SAMPLING,
        "special_tokens": {name: written["special_tokens"][name] for name in SpecialTokens.model_fields},
        **{key: bagel[key] for key in ("latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side", "timestep_shift")},
    }


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content
