"""Short stages on made-up packs, run by one worker without Ray."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from infra.store import ObjectStore, model_store
from model.curriculum import StageParams, TrainingParams
from model.packing import PackedSequence, TextItem, VAEItem, ViTItem, pack
from ray_jobs.loader import Batch, Drawn
from ray_jobs.place import Place, alone
from ray_jobs.stage_checkpoints import StageCheckpoints
from ray_jobs.stage_loop import StageRun
from ray_jobs.train import starting_network

STAGE = StageParams(name="short", steps=12, mixture={"understanding": 1}, learning_rate=1e-3, warmup_steps=2)
TRAINING = TrainingParams(workers=1, streams=2, checkpoint_every=4, log_every=2, outage_minutes=0.3)
BAD = float("nan")


class MadePacks:
    """A loader whose packs depend on stream and position alone; at the positions `spoilt` they hold what is no number. Each batch has `skipped` these.

    A worker without stream 0 has packs that are half full, and takes `pause_s` for them.
    """

    absent, pause_s = "", 0.0

    def __init__(self, config, numbers=(0, 1), spoilt: frozenset[int] = frozenset(), skipped: tuple[dict, ...] = ()):
        self.config, self.spoilt, self.skipped = config, spoilt, skipped
        self.positions = {str(number): 0 for number in numbers}

    def __next__(self) -> Batch:
        packs = {name: self._pack(name, position) for name, position in self.positions.items()}
        drawn = [Drawn(name, position, f"made/{name}-{position}") for name, position in self.positions.items()]
        self.positions = {name: position + 1 for name, position in self.positions.items()}
        tokens = sum(made.length for made in packs.values())
        if "0" in packs:
            return Batch(packs, drawn, self.state_dict(), list(self.skipped), tokens, tokens)
        time.sleep(self.pause_s)
        return Batch(packs, drawn, self.state_dict(), list(self.skipped), tokens, 2 * tokens)

    def _pack(self, name: str, position: int) -> PackedSequence:
        rng = torch.Generator().manual_seed(1000 * int(name) + position)
        ids = torch.randint(10, 200, (12,), generator=rng).tolist()
        latent = torch.randn(self.config.vae.z_channels, 8, 8, generator=rng)
        if position in self.spoilt:
            latent[0, 0, 0] = BAD
        seen = [ViTItem(torch.randn(3, 70, 70, generator=rng)), TextItem(ids), TextItem(ids[:4], loss=True)]
        return pack([seen, [TextItem(ids), VAEItem(latent, draw=0.3)]], self.config)

    def state_dict(self) -> dict[str, dict]:
        return {name: {"position": position} for name, position in self.positions.items()}

    def load_state_dict(self, states: dict[str, dict]) -> None:
        self.positions = {name: states[name]["position"] for name in self.positions}

    def close(self) -> None:
        pass


class UnlikePacks(MadePacks):
    """Stream 0 has words alone, the others pictures to be drawn alone: no target of the other kind."""

    def _pack(self, name: str, position: int) -> PackedSequence:
        rng = torch.Generator().manual_seed(1000 * int(name) + position)
        ids = torch.randint(10, 200, (12,), generator=rng).tolist()
        latent = torch.randn(self.config.vae.z_channels, 8, 8, generator=rng)
        return pack([[TextItem(ids), TextItem(ids[:4], loss=True) if name == "0" else VAEItem(latent, draw=0.3)]], self.config)


@dataclass
class Told:
    """What a run tells of itself, kept in memory; and the notice, given at a step."""

    events: list[tuple[int, str, str]] = field(default_factory=list)
    seen: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    def metrics(self, row: dict) -> None:
        self.rows.append(row)

    def samples(self, rank: int, rows: list[dict]) -> None:
        self.seen += rows

    def event(self, step: int, kind: str, detail: str) -> None:
        self.events.append((step, kind, detail))

    def scores(self, step: int, scores: dict) -> None:
        self.events.append((step, "scores", str(scores)))

    def picture(self, step: int, name: str, png: bytes) -> None:
        self.events.append((step, "picture", name))

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.events]


class NoticeAt:
    """Notice that is given from a number of steps on."""

    def __init__(self, steps: float = float("inf")):
        self.left = steps

    def given(self) -> bool:
        self.left -= 1
        return self.left <= 0


def start(folder: Path, name: str, scratch: Path, spoilt=frozenset(), notice=None, stage=STAGE, training=TRAINING, place: Place | None = None, store: ObjectStore | None = None) -> tuple[StageRun, Told]:
    """A run of `stage` from the checkpoint folder, resuming whatever `name` left in the store."""
    place, told = place or alone(), Told()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = starting_network(folder, training, place)
    loader = MadePacks(model.config, range(place.rank, training.streams, place.workers), spoilt)
    checkpoints = StageCheckpoints(name, store or model_store(), place, scratch, training.keep_checkpoints, training.outage_minutes, told.event)
    return StageRun(model, loader, stage, training, 5, place, checkpoints, told, notice or NoticeAt(), lambda: starting_network(folder, training, place), under_ray=False), told


def learned(run: StageRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.state.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
