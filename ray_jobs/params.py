"""params.yaml as one typed value: each room's section, checked before anything starts."""

import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from corpus.params import CorpusParams
from model.config import ModelConfig
from model.curriculum import BOOTSTRAP, CHAMPION, BootstrapParams, StageParams, TrainingParams, check_graph
from monitoring.params import DriftParams
from ray_jobs.evaluate_params import EvaluationParams
from ray_jobs.gate import GatePolicy
from ray_jobs.serve.params import ServingParams


class ParamsError(ValueError):
    """The parameter file is not valid; the message names key, value and what is allowed."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once, and what cannot be made of a value is told with its line."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):
            # A tag, written or guessed, that does not fit: a thirteenth month, an `!!int` that is none.
            raise ConstructorError(None, None, f"{node.value!r:.60} is no {node.tag.rpartition(':')[2]}", node.start_mark) from None


class StartParams(BootstrapParams):
    """The stage before the first: published weights, or a tokenizer and a VAE of our own where there are none."""

    checkpoint: str | None = Field(None, description="where published weights lie: an absolute path, or s3://bucket/prefix; nothing is trained then")

    @field_validator("checkpoint")
    @classmethod
    def _is_an_address(cls, checkpoint: str | None) -> str | None:
        if checkpoint is not None and not re.match(r"/|s3://[^/]+/.", checkpoint):
            raise ValueError("must be an absolute path or s3://bucket/prefix")
        return checkpoint

    @model_validator(mode="after")
    def _trains_or_takes(self):
        idle = [name for name, field in type(self).model_fields.items() if name != "checkpoint" and getattr(self, name) != field.default]
        if self.checkpoint and idle:
            raise ValueError(f"checkpoint is given, so nothing is trained: leave out {', '.join(idle)}")
        return self


class Params(BaseModel):
    """A profile. The curriculum must be given; the other sections default to `tiny`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str = "tiny"
    seed: int = 7
    corpus: CorpusParams = CorpusParams()
    model: ModelConfig = ModelConfig()
    bootstrap: StartParams = StartParams()
    curriculum: tuple[StageParams, ...] = Field(min_length=1)
    refresh: tuple[StageParams, ...] = Field((), description="the shorter curriculum of a drift-started retraining; it goes on from the champion")
    training: TrainingParams = TrainingParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GatePolicy = GatePolicy()
    serving: ServingParams = ServingParams()
    drift: DriftParams = DriftParams()

    @field_validator("curriculum", "refresh")
    @classmethod
    def _stages_form_a_graph(cls, stages: tuple[StageParams, ...], field: ValidationInfo) -> tuple[StageParams, ...]:
        check_graph(stages, first=CHAMPION if field.field_name == "refresh" else BOOTSTRAP)
        return stages

    @model_validator(mode="after")
    def _tables_cover_pictures(self):
        model = self.model
        tables = {"vit": (model.vit.patch_size, model.vit_max_num_patch_per_side), "vae": (model.latent_stride, model.max_latent_size)}
        for stage in (*self.curriculum, *self.refresh):
            for name, (patch, most) in tables.items():
                sides = getattr(stage.resolution, name)
                if sides and not patch <= sides[0] <= sides[1] <= patch * most:
                    raise ValueError(f"stage {stage.name!r}: resolution.{name}={list(sides)} must be a shorter and a longer side from {patch} px, the side of a patch, to {patch * most} px, which the model's position table covers")
        return self

    @model_validator(mode="after")
    def _warm_ups_end(self):
        # Where it is written, that is: the default may be longer than a stage of a few steps.
        for stage in (*self.curriculum, *self.refresh):
            if "warmup_steps" in stage.model_fields_set and stage.warmup_steps > stage.steps:
                raise ValueError(f"stage {stage.name!r}: warmup_steps={stage.warmup_steps} exceeds steps={stage.steps}, so its learning rate is never reached")
        return self

    @property
    def refresh_curriculum(self) -> tuple[StageParams, ...]:
        """What a drift-started retraining runs from the champion: `refresh`, or the last stage where a profile names none."""
        return self.refresh or (self.curriculum[-1].model_copy(update={"start": None}),)

    def begins_with(self, start: str) -> str:
        """What a stage's starting point is, in words."""
        if start != BOOTSTRAP:
            return start
        return self.bootstrap.checkpoint or "a tokenizer and a VAE trained first, and a fresh network"

    def shortened(self, share: float) -> "Params":
        """The same with a share of every stage's steps, for a quick look. The bootstrap stays: nothing can be drawn without a VAE.

        Raises:
            ValueError: share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"a share of the steps is above 0 and at most 1, not {share}")
        def cut(stages: tuple[StageParams, ...]) -> tuple[StageParams, ...]:
            steps = [max(1, round(stage.steps * share)) for stage in stages]
            # No longer than the stage: its learning rate would never be reached.
            return tuple(stage.model_copy(update={"steps": n, "warmup_steps": min(stage.warmup_steps, n)}) for stage, n in zip(stages, steps))

        return self.model_copy(update={"curriculum": cut(self.curriculum), "refresh": cut(self.refresh)})


def find_profile(name: str) -> Path:
    """The file of a profile: `infra/profiles/<name>.yaml`, the root's params.yaml for `tiny`, or a path.

    Raises:
        ParamsError: there is none of that name.
    """
    root = Path(__file__).resolve().parent.parent
    known = {"tiny": root / "params.yaml"} | {path.stem: path for path in sorted((root / "infra" / "profiles").glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ParamsError(f"no profile {name!r}; there are {', '.join(sorted(known))}, or name a file")
    return path


def load_params(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: it is missing, cannot be read, is no YAML, or has an unknown or invalid key.
    """
    try:
        return Params.model_validate(_read(Path(path)) or {})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()[:5])
        raise ParamsError(f"{path}: {told}") from None


def _read(path: Path) -> object:
    try:
        # Bytes: YAML finds out their encoding, and tells where they are none of it.
        return yaml.load(path.read_bytes(), _Loader)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; UNIMED_PARAMS_FILE names the profile to use") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read ({error.strerror}); UNIMED_PARAMS_FILE names the profile to use") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise ParamsError(f"{path} is nested too deeply to be read") from None
