"""The trainer on one GPU: as many layers of the 14B's shape as the card holds, with the profile's first stage on real pictures.

Everything of a step is there: loader, VAE, forward and backward of the profile's packs under FSDP2, clipping, AdamW, running
average. Nothing is saved. Weights are random and the vocabulary small, which changes no layer's time.
"""

import gc
import os
import socket
import statistics
import sys
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.layer_slice import SLICE, flops
from bench.rows import Row
from model.config import ModelConfig
from model.curriculum import StageParams, TrainingParams
from model.parallelize import checkpoint_activations, shard
from model.plan import Hardware, plan
from model.tokenizer import TextTokenizer
from model.unimedvl import UniMedVL
from ray_jobs.loader import Loader
from ray_jobs.meter import gpu_peak
from ray_jobs.params import Params, find_profile, load_params
from ray_jobs.place import Place
from ray_jobs.plans import Planner
from ray_jobs.releases import open_release
from ray_jobs.stage_loop import StageRun
from ray_jobs.train import GPU_ENVIRONMENT, prepare_process

PROFILE = "unimedvl-14b"
GOAL = 0.40  # of the card's peak
USEFUL = 0.75  # of what the card computes where the forward pass runs twice: MFU counts it once
SKIPPED = 0.5  # of the log lines: compilation, and pictures that are met for the first time


def measure(release: str, steps: int) -> list[Row]:
    """Rows of the trainer on the GPU at hand, fed with a release: activations kept, and computed again as in the profile."""
    os.environ |= GPU_ENVIRONMENT
    params = load_params(find_profile(PROFILE))
    stage = params.curriculum[0].model_copy(update={"steps": steps, "evaluate_every": None})
    rows = []
    for again in (False, True):
        training = params.training.model_copy(update={"workers": 1, "min_workers": 1, "log_every": 1, "activation_checkpointing": again})
        rows += _rows(params, release, stage, training)
    return rows


def _rows(params: Params, release: str, stage: StageParams, training: TrainingParams) -> list[Row]:
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    config, told = _trained(largest(params.model, stage, training, memory), release, stage, training, params.seed)
    lines = told.lines[int(len(told.lines) * SKIPPED) :]
    rate, mfu, wait = (statistics.median(line[name] for line in lines) for name in ("tokens_per_s", "mfu", "wait"))
    strict = rate * told.flops / told.tokens / gpu_peak(torch.cuda.get_device_name())
    again = training.activation_checkpointing
    what, goal = f"{config.llm.num_hidden_layers} layers, activations {'computed again' if again else 'kept'}", round(GOAL * (USEFUL if again else 1), 2)
    print(f"{what}: {torch.cuda.max_memory_allocated() / 1e9:.1f} of {memory:.1f} GB at most; MFU as the log counts it {mfu:.1%}", file=sys.stderr, flush=True)
    return [
        Row(f"the trainer's MFU, {what}", 100 * strict, "%", "the card's peak", 100.0, goal=goal),
        Row(f"the trainer, {what}", rate, "tokens/s", f"{goal:.0%} of the card's peak", goal * rate / strict, goal=1.0),
        Row(f"share of its step not waiting for data, {what}", 1 - wait, "of 1", "a step that never waits", 1.0, goal=0.99),
    ]


def largest(published: ModelConfig, stage: StageParams, training: TrainingParams, memory_gb: float) -> ModelConfig:
    """The slice of most layers whose plan fits the card. Pictures are prepared as for the published network."""

    def of(layers: int) -> ModelConfig:
        return SLICE.model_copy(update={"llm": SLICE.llm.model_copy(update={"num_hidden_layers": layers}), "image": published.image, "vae": published.vae})

    fitting = (layers for layers in range(published.llm.num_hidden_layers, 0, -1) if plan(of(layers), stage, training, Hardware(1, memory_gb)).fits)
    return of(next(fitting))


def _trained(config: ModelConfig, release: str, stage: StageParams, training: TrainingParams, seed: int) -> tuple[ModelConfig, "_Told"]:
    """The slice that ran: a layer less than planned where the card's memory did not do after all."""
    try:
        return config, train(config, release, stage, training, seed)
    except torch.OutOfMemoryError as error:
        print(f"{config.llm.num_hidden_layers} layers were planned to fit: {error}", file=sys.stderr, flush=True)
    config = config.model_copy(update={"llm": config.llm.model_copy(update={"num_hidden_layers": config.llm.num_hidden_layers - 1})})
    return config, train(config, release, stage, training, seed)


@dataclass
class _Told:
    """What a run tells its log, kept here; and what its packs took."""

    lines: list[dict] = field(default_factory=list)
    flops: float = 0.0
    tokens: int = 0

    def metrics(self, row: dict) -> None:
        self.lines.append(row)

    def samples(self, rank: int, seen: list[dict]) -> None:
        pass

    def event(self, *told) -> None:
        print(*told, file=sys.stderr, flush=True)


class _NoCheckpoints:
    """Saves nothing: a slice's state is tens of gigabytes, and checkpoints have rows of their own."""

    def load(self, tensors: dict, before: int | None = None, interim: bool = True) -> None:
        return None

    def save(self, *state) -> None:
        pass

    def give_up_after(self, step: int) -> None:
        pass

    def wait(self) -> bool:
        return True


class _NoNotice:
    def given(self) -> bool:
        return False


class _Counted(Loader):
    """A loader that counts what the network must compute for its packs."""

    told: _Told
    network: ModelConfig

    def __next__(self):
        batch = super().__next__()
        for pack in batch.packs.values():
            self.told.flops += flops(self.network, pack)
            self.told.tokens += pack.length
        return batch


def train(config: ModelConfig, release: str, stage: StageParams, training: TrainingParams, seed: int) -> _Told:
    """The stage from random weights, on one GPU."""
    place, told = Place(0, 0, 1, torch.device("cuda")), _Told()
    prepare_process(training)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl")
    try:
        model = network(config, training)
        loader = _Counted(open_release(release), Planner(model, stage, half=True), stage, seed, range(training.streams), training.streams)
        loader.told, loader.network = told, config
        StageRun(model, loader, stage, training, seed, place, _NoCheckpoints(), told, _NoNotice(), lambda: model, under_ray=False).run()
    finally:
        dist.destroy_process_group()
    return told


def network(config: ModelConfig, training: TrainingParams) -> UniMedVL:
    """Random float32 masters, sharded over this one GPU as a stage's start is."""
    with torch.device("meta"):
        model = UniMedVL(config)
    shard(model.float(), init_device_mesh("cuda", (1,)), torch.bfloat16)
    model.to_empty(device="cuda")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    checkpoint_activations(model, training.activation_checkpointing)
    model.tokenizer = TextTokenizer.train(["CT image of the abdomen."], 300)
    return model
