"""The progressive curriculum as data: what each stage trains, on what mixture, at what rate, and where it starts.

Mixtures, learning-rate ratios, frozen parts, loss weights, EMA and dropouts are the paper's (Table 12
and A.1.1); step counts and learning rates of the `tiny` profile are chosen for two CPU cores.
"""

from collections.abc import Sequence
from math import cos, inf, pi
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["understanding", "generation", "interleaved", "text"]
Part = Literal["vit", "connector", "understanding", "generation", "embeddings"]
PARTS: tuple[Part, ...] = ("vit", "connector", "understanding", "generation", "embeddings")
# What only pictures that are looked at pass through.
EYE = frozenset({"vit", "connector"})
# More than any machine has cores.
MOST_THREADS = 4096
# Starting points that are no stage: the network that was there first, published or fresh, and the served model.
BOOTSTRAP, CHAMPION = "bootstrap", "champion"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BootstrapParams(_Section):
    """The stage before the first: a tokenizer and a VAE of our own, where none can be fetched."""

    vocab_size: int = Field(512, ge=260)
    vae_steps: int = Field(600, ge=1)
    vae_batch: int = Field(4, ge=1)
    vae_learning_rate: float = Field(3e-3, gt=0)
    kl_weight: float = Field(1e-5, ge=0)


class Dropout(_Section):
    """Probability that a condition is left out, so that guidance has something to guide away from."""

    text: float = Field(0.3, ge=0, lt=1, description="of a prompt to draw")
    vit: float = Field(0.05, ge=0, lt=1, description="of pictures to be understood")
    vae: float = Field(0.05, ge=0, lt=1, description="as published; does nothing: as in the released loaders no picture to be edited is left out, neither its VAE nor its ViT view")


class Resolution(_Section):
    """Shortest and longest side in pixels of pictures that enter, where a stage's differ from the network's own."""

    vit: tuple[int, int] | None = None
    vae: tuple[int, int] | None = None


class EarlyStop(_Section):
    """A stage ends when its validation loss has not fallen by `min_delta` for `patience` evaluations."""

    patience: int = Field(ge=1)
    min_delta: float = Field(0.0, ge=0)


class StageParams(_Section):
    """One curriculum stage."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64, description="the beginning of the names of its jobs, runs and files")
    start: str | None = Field(None, description=f"an earlier stage, {BOOTSTRAP!r} or {CHAMPION!r}; the stage listed before by default")
    steps: int = Field(ge=1)
    mixture: dict[Task, float] = Field(description="sampling weight of each task, as printed; they need not sum to 100")
    modalities: dict[Task, dict[str, float]] = Field({}, description="weights of modalities within a task; by what there is of each by default")
    replay: float | None = Field(None, ge=0, le=1, description="share of draws from what the start's release held already; the rest is new since")
    learning_rate: float = Field(gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    trainable: tuple[Part, ...] = Field(PARTS, min_length=1)
    ce_weight: float = Field(0.25, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    dropout: Dropout = Dropout()
    resolution: Resolution = Resolution()
    tokens_per_pack: int = Field(1024, ge=64, description="a pack holds at most so many")
    tokens_per_sample: int | None = Field(None, ge=16, description="longer samples are passed over and counted; a pack's by default")
    lookahead: int = Field(32, ge=0, description="samples that may wait until they fill a gap in a pack")
    max_turns: int = Field(3, ge=1, description="question-answer turns drawn of one image")
    shift_pixels: int = Field(0, ge=0, description="most that a picture to be understood is moved either way: an eye trained from nothing needs it")
    evaluate_every: int | None = Field(None, ge=1, description="steps between validations on the way, with sample drawings; none by default")
    early_stop: EarlyStop | None = None

    @field_validator("mixture")
    @classmethod
    def _mixture_weighs(cls, mixture: dict) -> dict:
        return _weights(mixture)

    @field_validator("modalities")
    @classmethod
    def _modalities_weigh(cls, modalities: dict) -> dict:
        return {task: _weights(weights) for task, weights in modalities.items()}

    @model_validator(mode="after")
    def _stops_on_what_it_sees(self):
        if self.early_stop and not self.evaluate_every:
            raise ValueError("early_stop needs evaluate_every: nothing else tells how the stage is doing")
        return self

    @model_validator(mode="after")
    def _learns(self):
        if not self.ce_weight and not self.mse_weight:
            raise ValueError("ce_weight and mse_weight are both 0: there is nothing to learn from")
        weights = {task: self.ce_weight if task in ("text", "understanding") else self.mse_weight for task, weight in self.mixture.items() if weight}
        if not any(weights.values()):
            name = "ce_weight" if not self.ce_weight else "mse_weight"
            raise ValueError(f"{name} is 0, and the mixture of {', '.join(weights)} has no other loss: there is nothing to learn from")
        if set(self.trainable) == {"generation"} and not weights.keys() & {"generation", "interleaved"}:
            raise ValueError(f"trainable=generation learns from drawing alone; the mixture has only {', '.join(weights)}")
        if EYE.issuperset(self.trainable) and not any(self.mixture.get(task) for task in ("understanding", "interleaved")):
            raise ValueError(f"trainable={', '.join(self.trainable)} learns from pictures that are looked at alone; the mixture has only {', '.join(self.mixture)}")
        if (self.tokens_per_sample or 0) > self.tokens_per_pack:
            raise ValueError(f"tokens_per_sample={self.tokens_per_sample} exceeds tokens_per_pack={self.tokens_per_pack}, into which a sample must fit")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate={self.min_learning_rate:g} exceeds learning_rate={self.learning_rate:g}, which falls to it")
        return self

    @model_validator(mode="after")
    def _modalities_are_of_the_mixture(self):
        others = sorted(set(self.modalities) - set(self.mixture))
        if others:
            raise ValueError(f"modalities of {', '.join(others)}, of which the mixture draws nothing; it names {', '.join(sorted(self.mixture))}")
        return self

    @property
    def shares(self) -> dict[Task, float]:
        """The mixture normalised: shares that sum to 1."""
        total = sum(self.mixture.values())
        return {task: weight / total for task, weight in self.mixture.items()}

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then from `learning_rate` as `schedule` says towards `min_learning_rate`, which one step after the last would have."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = {"cosine": (1 + cos(pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[self.schedule]
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * left


def _weights(weights: dict[str, float]) -> dict[str, float]:
    if any(weight < 0 for weight in weights.values()) or not 0 < sum(weights.values()) < inf:
        raise ValueError("weights must be >= 0, not all zero, and have a finite sum")
    return weights


def starts(stages: Sequence[StageParams], first: str) -> list[str]:
    """What each stage begins with: what it names, else the one listed before it, else `first`."""
    return [stage.start or before for stage, before in zip(stages, [first, *(stage.name for stage in stages)])]


def check_graph(stages: Sequence[StageParams], first: str) -> None:
    """Raises ValueError unless names differ, every stage starts from one listed before it, and what replays has the champion to go back to.

    Args:
        first: what a stage without a word begins with that has none before it.
    """
    origin = {BOOTSTRAP: BOOTSTRAP, CHAMPION: CHAMPION}
    for stage, start in zip(stages, starts(stages, first)):
        if stage.name in origin:
            raise ValueError(f"stage name {stage.name!r} is taken")
        if start not in origin:
            raise ValueError(f"stage {stage.name!r} starts from {start!r}, which is none of {sorted(origin)}")
        if stage.replay is not None and origin[start] != CHAMPION:
            raise ValueError(f"stage {stage.name!r}: replay={stage.replay:g}, but it goes back to {origin[start]!r}, which has learned from no release; leave it out, or start from {CHAMPION!r}")
        origin[stage.name] = origin[start]


class AnomalyParams(_Section):
    """When a step's loss or gradient is taken for an accident, and what is then done: skip, roll back, stop."""

    spike: float = Field(10.0, gt=1, description="times the median loss of the window")
    window: int = Field(50, ge=5, description="steps the median is taken over; until so many were seen only NaN and infinity count")
    max_skips: int = Field(3, ge=0, description="bad steps in a row that are skipped before the run goes back to its last checkpoint")
    max_rollbacks: int = Field(2, ge=0, description="times the run goes back before it stops with a report")


# Of `TrainingParams`, what says how a stage is run and not what comes of it: it may be changed under way, and the stage goes on.
RUNNING = (
    "workers", "min_workers", "threads_per_worker", "gpus_per_worker", "log_every",
    "checkpoint_every", "keep_checkpoints", "max_failures", "cache_gib", "outage_minutes",
)  # fmt: skip


class TrainingParams(_Section):
    """How stages run: shared by all of them."""

    workers: int = Field(2, ge=1, description="most workers")
    min_workers: int | None = Field(None, ge=1, description="fewest workers it goes on with; `workers` by default")
    threads_per_worker: int = Field(1, ge=1, le=MOST_THREADS)
    gpus_per_worker: int = Field(0, ge=0, le=1)
    bootstrap_threads: int = Field(2, ge=1, le=MOST_THREADS)
    streams: int = Field(2, ge=1, description="packs a step, whatever the number of workers")
    parallel: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    log_every: int = Field(20, ge=1, description="steps between two log lines")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that stay while a stage runs")
    max_failures: int = Field(3, ge=0)
    anomaly: AnomalyParams = AnomalyParams()
    cache_gib: float = Field(20.0, gt=0, description="most that shards may take on a machine's disk")
    outage_minutes: float = Field(5.0, gt=0, description="how long a silent object store is waited for")

    @model_validator(mode="after")
    def _workers_have_streams(self):
        if (self.min_workers or self.workers) > self.workers:
            raise ValueError(f"min_workers={self.min_workers} exceeds workers={self.workers}")
        if self.streams < self.workers:
            raise ValueError(f"streams={self.streams}: each of the {self.workers} workers needs at least one")
        if self.parallel == "fsdp" and any(self.streams % n for n in range(self.min_workers or self.workers, self.workers + 1)):
            raise ValueError(f"streams={self.streams} must be a multiple of every number of workers: sharded workers take as many packs each")
        return self
