"""The training loop of a stage, as each Ray Train worker runs it."""

import tempfile
import time
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.curriculum import StageParams, TrainingParams
from model.losses import TokenCounts, count, step_loss
from model.optimisation import EMA, make_optimiser, set_trainable
from model.packing import PackedSequence
from model.unimedvl import UniMedVL
from ray_jobs.loader import Stream
from ray_jobs.training_state import TrainingState

LOG_EVERY = 20


def run_stage(model: UniMedVL, streams: list[Stream], stage: StageParams, training: TrainingParams, seed: int) -> None:
    """Train to the stage's last step, reporting a checkpoint to Ray Train every so often and at the end."""
    parameters = set_trainable(model.train(), stage.trainable)
    state = TrainingState(parameters, EMA(parameters, stage.ema_decay), make_optimiser(parameters, stage))
    _resume(state, streams)
    meter = _Meter(stage, state.step)
    while state.step < stage.steps:
        packs = {stream.name: stream.next_pack() for stream in streams}
        meter.loaded()
        losses = _step(model, state, packs, stage, seed)
        state.step += 1
        meter.stepped(losses, sum(pack.length for pack in packs.values()))
        if state.step % LOG_EVERY == 0 or state.step == stage.steps:
            state.history.append(meter.flush(state.step))
        if state.step % training.checkpoint_every == 0 or state.step == stage.steps:
            _report(state, streams)
            meter.saved()


def _step(model: UniMedVL, state: TrainingState, packs: dict[str, PackedSequence], stage: StageParams, seed: int) -> tuple[float, float, float]:
    """One optimiser step over all packs of all workers; returns global mean losses and the gradient norm."""
    totals = _global_counts(sum((count(pack) for pack in packs.values()), TokenCounts()))
    for group in state.optimiser.param_groups:
        group["lr"] = stage.learning_rate_at(state.step)
    state.optimiser.zero_grad(set_to_none=False)
    ce = mse = 0.0
    for name, pack in packs.items():
        noise = _noise(pack, f"{seed}/{stage.name}/{name}/{state.step}")
        loss, pack_ce, pack_mse = step_loss(model(pack, noise), totals, stage.ce_weight, stage.mse_weight)
        loss.backward()
        ce, mse = ce + pack_ce, mse + pack_mse
    _sum_gradients(state.parameters)
    norm = nn.utils.clip_grad_norm_(state.parameters.values(), stage.max_grad_norm)
    state.optimiser.step()
    state.ema.update(state.step)
    ce, mse = _sum_over_workers(torch.tensor([ce, mse])).tolist()
    return ce, mse, norm.item()


def _noise(pack: PackedSequence, key: str) -> Tensor:
    """Noise that depends on the place in the run alone, so no generator state needs saving."""
    import hashlib

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.randn(pack.latents.shape, generator=torch.Generator().manual_seed(seed))


def _global_counts(counts: TokenCounts) -> TokenCounts:
    return TokenCounts(*_sum_over_workers(torch.tensor([counts.ce, counts.mse])).tolist())


def _sum_gradients(parameters: dict[str, nn.Parameter]) -> None:
    """Losses are shares of global means, so gradients add up; one collective carries all of them."""
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if dist.is_initialized() and dist.get_world_size() > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters.values()])
        dist.all_reduce(flat)
        for parameter, grad in zip(parameters.values(), flat.split([p.numel() for p in parameters.values()])):
            parameter.grad.copy_(grad.view_as(parameter))


def _sum_over_workers(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _resume(state: TrainingState, streams: list[Stream]) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder), streams)
        print(f"resumed at step {state.step}", flush=True)


def _report(state: TrainingState, streams: list[Stream]) -> None:
    """Rank 0 writes for all; Ray Train makes the checkpoint visible once it is whole on S3."""
    positions = {stream.name: stream.state_dict() for stream in streams}
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers > 1:
        gathered: list = [None] * workers
        dist.all_gather_object(gathered, positions)
        positions = {name: value for part in gathered for name, value in part.items()}
    metrics = {"step": state.step, **(state.history[-1] if state.history else {})}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), positions)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _Meter:
    """Means since the last log line, and the line itself."""

    def __init__(self, stage: StageParams, step: int):
        self.stage, self.begun, self.first = stage, time.perf_counter(), step
        self._restart()

    def loaded(self) -> None:
        self.waited += time.perf_counter() - self.mark

    def stepped(self, losses: tuple[float, float, float], tokens: int) -> None:
        self.sums = [a + b for a, b in zip(self.sums, losses)]
        self.steps, self.tokens, self.mark = self.steps + 1, self.tokens + tokens, time.perf_counter()

    def saved(self) -> None:
        """A save is no wait for data."""
        self.mark = time.perf_counter()

    def flush(self, step: int) -> dict:
        """Print the log line and return its deterministic part for the history."""
        seconds = time.perf_counter() - self.since
        ce, mse, norm = (total / self.steps for total in self.sums)
        rate = (step - self.first) / (time.perf_counter() - self.begun)
        lr = self.stage.learning_rate_at(step - 1)
        workers, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        line = (
            f"{self.stage.name} step {step}/{self.stage.steps} ce {ce:.3f} mse {mse:.3f} lr {lr:.2e} norm {norm:.2f} "
            f"{self.tokens * workers / seconds:,.0f} tokens/s wait {self.waited / seconds:.1%} eta {(self.stage.steps - step) / rate:.0f} s"
        )
        if rank == 0:
            print(line, flush=True)
        self._restart()
        return {"step": step, "ce": ce, "mse": mse, "lr": lr, "grad_norm": norm}

    def _restart(self) -> None:
        self.sums, self.steps, self.tokens, self.waited = [0.0, 0.0, 0.0], 0, 0, 0.0
        self.since = self.mark = time.perf_counter()
