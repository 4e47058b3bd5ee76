"""The progressive curriculum as data: what each stage trains, on what mixture, at what rate.

Mixtures, learning-rate ratios, frozen parts, loss weights, EMA and dropouts are the paper's (Table 12
and A.1.1); step counts and learning rates of the `tiny` profile are chosen for two CPU cores.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Task = Literal["understanding", "generation", "interleaved", "text"]
Part = Literal["vit", "connector", "understanding", "generation", "embeddings"]
PARTS: tuple[Part, ...] = ("vit", "connector", "understanding", "generation", "embeddings")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BootstrapParams(_Section):
    """The stage before the first: a tokenizer and a VAE of our own, where none can be fetched."""

    vocab_size: int = Field(512, ge=260)
    vae_steps: int = Field(600, ge=1)
    vae_batch: int = Field(4, ge=1)
    vae_learning_rate: float = Field(3e-3, gt=0)
    kl_weight: float = Field(1e-5, ge=0)


class Dropout(_Section):
    """Probability that a condition is left out, so that guidance has something to guide away from."""

    text: float = Field(0.3, ge=0, lt=1)
    vit: float = Field(0.05, ge=0, lt=1)
    vae: float = Field(0.05, ge=0, lt=1)


class StageParams(_Section):
    """One curriculum stage."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    steps: int = Field(ge=1)
    mixture: dict[Task, float] = Field(description="sampling weight of each task; normalised to sum 1")
    learning_rate: float = Field(gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    warmup_steps: int = Field(20, ge=0)
    trainable: tuple[Part, ...] = PARTS
    ce_weight: float = Field(0.25, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    dropout: Dropout = Dropout()
    tokens_per_pack: int = Field(1024, ge=64)
    max_turns: int = Field(3, ge=1, description="question-answer turns drawn of one image")
    shift_pixels: int = Field(0, ge=0, description="most that a picture to be understood is moved either way: an eye trained from nothing needs it")

    @field_validator("mixture")
    @classmethod
    def _positive(cls, mixture: dict) -> dict:
        if any(weight < 0 for weight in mixture.values()) or not sum(mixture.values()) > 0:
            raise ValueError("weights must be >= 0 and not all zero")
        return mixture

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine from `learning_rate` to `min_learning_rate` at the last step."""
        from math import cos, pi

        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + cos(pi * progress)) / 2


class TrainingParams(_Section):
    """How stages run: shared by all of them."""

    workers: int = Field(2, ge=1)
    threads_per_worker: int = Field(1, ge=1)
    bootstrap_threads: int = Field(2, ge=1)
    streams: int = Field(2, ge=1, description="packs a step, whatever the number of workers; a multiple of it")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints")
    max_failures: int = Field(3, ge=0)
