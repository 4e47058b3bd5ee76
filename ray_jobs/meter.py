"""The log line of a running stage: means since the last one."""

import re
import time
from functools import cache
from math import nan

import torch
from torch import Tensor

from infra.records import utc_now
from model.config import ModelConfig
from model.curriculum import StageParams
from model.plan import training_flops
from ray_jobs.place import Place
from ray_jobs.step import Outcome

# Dense bfloat16 peaks in TFLOP/s, as BAGEL counts MFU.
PEAKS = {"H100": 989, "H200": 989, "H800": 989, "A100": 312, "A800": 312, "MI300X": 1336, "H20": 148, "L40": 181.05, "L20": 119.5}
TOLD = ("step", "ce", "mse", "lr", "grad_norm")


class Meter:
    """Sums since the last line. The history keeps what is the same however often a run was killed."""

    def __init__(self, config: ModelConfig, stage: StageParams, place: Place, seconds: float):
        self.config, self.stage, self.place = config, stage, place
        self.peak = place.workers * peak_flops(place.device.type)
        self.before, self.begun = seconds, time.perf_counter()
        self._restart()

    @property
    def seconds(self) -> float:
        """Time in the stage's loop, before restarts as well."""
        return self.before + time.perf_counter() - self.begun

    def loaded(self, batch) -> None:
        now = time.perf_counter()
        self.waited += now - self.mark
        self.own_tokens, self.capacity = self.own_tokens + batch.tokens, self.capacity + batch.capacity
        self.flops += sum(training_flops(self.config, pack.length, pack.sample_lens) for pack in batch.packs.values())

    def stepped(self, outcome: Outcome) -> None:
        if outcome.good:
            values = (outcome.ce, outcome.mse, outcome.norm)
            self.sums = [total + (value or 0.0) for total, value in zip(self.sums, values)]
            self.counts = [count + (value is not None) for count, value in zip(self.counts, values)]
        self.steps, self.tokens, self.skipped = self.steps + 1, self.tokens + outcome.tokens, self.skipped + outcome.skipped
        self.mark = time.perf_counter()

    def go_on_from(self, sums: list[float], counts: list[int]) -> None:
        """Take up the sums that a checkpoint holds, and how many steps each is of."""
        self.sums, self.counts = list(sums), list(counts)

    def paused(self, seconds: float) -> None:
        """Time that was neither work nor waiting for data: a save, a validation."""
        self.stalled += seconds
        self.mark = time.perf_counter()

    def own(self) -> Tensor:
        """What the row needs of this worker: the room in its packs, and how long it waited, in a place of its own. It is given their sum over all."""
        numbers = torch.zeros(1 + self.place.workers, dtype=torch.float64)
        numbers[0], numbers[1 + self.place.rank] = self.capacity, self.waited
        return numbers

    def row(self, step: int, left: int, everybody: Tensor) -> dict:
        """The numbers since the last row, with so many steps left; None where there is no mean."""
        capacity, *waited = everybody.tolist()
        elapsed = time.perf_counter() - self.since
        working = max(elapsed - self.stalled, 1e-9)
        # Workers may have unequal numbers of streams.
        flops = self.flops * self.tokens / max(self.own_tokens, 1)
        # Nothing but bad steps, or none with a target of that kind: no mean.
        ce, mse, norm = (total / count if count else None for total, count in zip(self.sums, self.counts))
        row = {
            "step": step,
            "ce": ce,
            "mse": mse,
            "lr": self.stage.learning_rate_at(step - 1),
            "grad_norm": norm,
            "tokens_per_s": self.tokens / working,
            "real_share": self.tokens / max(capacity, 1),
            "mfu": flops / working / self.peak,
            # The others wait for the one that waits longest.
            "wait": max(waited) / working,
            "stall": self.stalled / elapsed,
            "good": self.counts[-1],
            "skipped": self.skipped,
            "seconds": self.seconds,
            "eta": left * elapsed / max(self.steps, 1),
            "at": utc_now(),
        }
        self._restart()
        return row

    def line(self, row: dict) -> str:
        return (
            f"{self.stage.name} step {row['step']}/{self.stage.steps} ce {told(row['ce'], '.3f')} mse {told(row['mse'], '.3f')} lr {row['lr']:.2e} norm {told(row['grad_norm'], '.2f')} "
            f"{row['tokens_per_s']:,.0f} tokens/s real {row['real_share']:.1%} mfu {row['mfu']:.1%} wait {row['wait']:.1%} eta {row['eta']:.0f} s"
        )

    def _restart(self) -> None:
        self.sums, self.counts = [0.0, 0.0, 0.0], [0, 0, 0]
        self.steps, self.tokens, self.own_tokens, self.capacity, self.skipped = 0, 0, 0, 0, 0
        self.flops = self.waited = self.stalled = 0.0
        self.since = self.mark = time.perf_counter()


def told(value: float | None, form: str) -> str:
    """A number as it is told; a stroke where there is none."""
    return "-" if value is None else format(value, form)


def gpu_peak(name: str) -> float:
    """Dense bfloat16 FLOP/s by the name that a GPU's driver gives it; NaN for one that is not listed: no MFU is better than another card's."""
    return next((tflops for known, tflops in PEAKS.items() if known in re.split(r"[\s-]+", name)), nan) * 1e12


@cache
def peak_flops(device: str) -> float:
    """FLOP/s a worker's device could reach: a GPU's data sheet, or what a large float32 product reaches on its CPU threads; NaN if unknown."""
    if device == "cuda":
        return gpu_peak(torch.cuda.get_device_name())
    side, best = 768, 0.0
    a = torch.randn(side, side)
    # Somebody else may have the core for a while.
    for _ in range(20):
        begun = time.perf_counter()
        a @ a
        best = max(best, 2 * side**3 / (time.perf_counter() - begun))
    return best
