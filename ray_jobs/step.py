"""One optimiser step over all packs of all workers."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.curriculum import StageParams, TrainingParams
from model.losses import TokenCounts, count, step_loss
from model.packing import PackedSequence
from model.unimedvl import UniMedVL
from ray_jobs.flat_gradients import FlatGradients
from ray_jobs.place import Place
from ray_jobs.training_state import TrainingState


@dataclass(frozen=True)
class Outcome:
    """Means over all workers' tokens (None where no token was a target of that kind), the gradient's norm, whether the weights changed, and whether somebody was told to stop.

    `tokens` and `skipped` samples are those of all workers.
    """

    ce: float | None
    mse: float | None
    norm: float
    good: bool
    stop: bool
    tokens: int
    skipped: int


class Stepper:
    """Steps of one stage on one worker.

    Losses are shares of means over the tokens of all packs of all workers, so gradients simply add up; a worker
    without tokens of one kind adds zero. Unsharded gradients go through one flat all-reduce, whose order of
    summation is the same at every step and after every restart; sharded ones through FSDP's reduce-scatter.
    """

    def __init__(self, model: UniMedVL, state: TrainingState, stage: StageParams, training: TrainingParams, seed: int, place: Place):
        self.model, self.state, self.stage, self.training, self.seed, self.place = model, state, stage, training, seed, place
        self.sharded = training.parallel == "fsdp"
        self.gradients = None if self.sharded else FlatGradients(list(state.parameters.values()), beside=2)

    def step(self, packs: dict[str, PackedSequence], stop: bool = False, skipped: int = 0) -> Outcome:
        """Forward, backward, clip and update; a step that the watchdog calls bad changes nothing but the count of steps.

        Args:
            stop, skipped: what this worker has to tell: it is to end, and has met so many unusable samples.
        """
        counts = sum((count(pack) for pack in packs.values()), TokenCounts())
        tokens = sum(pack.length for pack in packs.values())
        totals = self._sum_soon(torch.tensor([counts.ce, counts.mse, int(stop), tokens, skipped]))
        optimiser, progress = self.state.optimiser, self.state.progress
        for group in optimiser.param_groups:
            group["lr"] = self.stage.learning_rate_at(progress.step)
        self._forget_gradients()
        losses = torch.zeros(2)
        for name, pack in packs.items():
            losses += self._backward(name, pack, totals)
        ce, mse = self._sum_gradients(losses).tolist()
        norm = self._clip()
        ces, mses, stops, tokens, skipped = totals().tolist()
        judged = {"ce": ce} if ces and self.stage.ce_weight else {}
        judged |= {"mse": mse} if mses and self.stage.mse_weight else {}
        good = progress.watchdog.is_good(judged, norm, self.training.anomaly)
        if good:
            optimiser.step()
            self.state.ema.update(progress.step)
        progress.step += 1
        return Outcome(ce if ces else None, mse if mses else None, norm, good, stops > 0, tokens, skipped)

    def _backward(self, name: str, pack: PackedSequence, totals: Callable[[], Tensor]) -> Tensor:
        noise = self.noise(pack, name).to(self.place.device, non_blocking=True)
        with self._precision():
            losses = self.model(pack.to(self.place.device), noise)
        loss, ce, mse = step_loss(losses, TokenCounts(*totals()[:2].tolist()), self.stage.ce_weight, self.stage.mse_weight)
        loss.backward()
        return torch.tensor([ce, mse])

    def noise(self, pack: PackedSequence, name: str) -> Tensor:
        """Noise that depends on the place in the run alone, so no generator state needs saving."""
        progress = self.state.progress
        again = f"/{progress.rollbacks}" if progress.rollbacks else ""
        return self.noise_of(pack, f"{self.seed}/{self.stage.name}/{name}/{progress.step}{again}")

    @staticmethod
    def noise_of(pack: PackedSequence, key: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return torch.randn(pack.latents.shape, generator=torch.Generator().manual_seed(seed))

    def _precision(self):
        if self.training.precision == "float32" or self.sharded:
            return nullcontext()
        return torch.autocast(self.place.device.type, torch.bfloat16)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, on the CPU."""
        return self._sum_soon(values)()

    def _sum_soon(self, values: Tensor) -> Callable[[], Tensor]:
        """What gives the sum over all workers, on the CPU; until it is asked nobody waits for it."""
        if self.place.workers == 1:
            return lambda: values
        there = values.to(self.place.device)
        work = dist.all_reduce(there, async_op=True)

        @cache
        def found() -> Tensor:
            work.wait()
            return there.cpu()

        return found

    def _forget_gradients(self) -> None:
        if self.gradients:
            self.gradients.zero()
        else:
            # The first to be reduced is then the gradient, and need not be added to zeros.
            self.state.optimiser.zero_grad(set_to_none=True)

    def _sum_gradients(self, losses: Tensor) -> Tensor:
        """Add up unsharded gradients, and the losses with them; returns the losses."""
        if self.gradients:
            return self.gradients.sum_over_workers(losses) if self.place.workers > 1 else losses
        for parameter in self.state.parameters.values():
            if parameter.grad is None:
                # What met no pack has a gradient of zero, and its moments decay like all others.
                parameter.grad = torch.zeros_like(parameter)
        return self.sum(losses)

    def _clip(self) -> float:
        """The norm of all gradients, which are made shorter where it is too great."""
        parameters, most = self.state.parameters.values(), self.stage.max_grad_norm
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        found = norm.item()
        if not found + 1e-6 <= most:
            nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return found
