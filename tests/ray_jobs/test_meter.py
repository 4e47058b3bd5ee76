"""The log line of a stage, worked out by hand from two steps of two workers."""

from types import SimpleNamespace

import pytest
import torch

from model.config import ModelConfig
from model.curriculum import StageParams
from ray_jobs import meter
from ray_jobs.meter import Meter
from ray_jobs.place import Place
from ray_jobs.step import Outcome

STAGE = StageParams(name="measured", steps=100, mixture={"text": 1}, learning_rate=0.002, schedule="linear", warmup_steps=0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, and a worker's device that can do 1 GFLOP/s, with packs of 0.3 GFLOP."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(meter, "peak_flops", lambda device: 1e9)
    monkeypatch.setattr(meter, "training_flops", lambda *pack: 3e8)
    return now


def told(clock, *outcomes: Outcome) -> tuple[Meter, dict]:
    """The first worker's line at step 20: of each step it waits 1 s, works 1.5 s, and then saves for 1 s. The second waits 3 s in all, and has packs as large, less full."""
    measured = Meter(ModelConfig(), STAGE, Place(0, 0, 2, torch.device("cpu")), seconds=100.0)
    for outcome in outcomes:
        clock.seconds += 1.0
        measured.loaded(SimpleNamespace(tokens=60, capacity=100, packs={"0": SimpleNamespace(length=60, sample_lens=[60])}))
        clock.seconds += 1.5
        measured.stepped(outcome)
    clock.seconds += 1.0
    measured.paused(1.0)
    assert measured.own().tolist() == [200.0, 2.0, 0.0]
    return measured, measured.row(20, 80, torch.tensor([400.0, 2.0, 3.0]))


def test_a_line_holds_all_that_is_asked_of_a_run(clock):
    """Of 6 s one stood still: in 5 s 240 tokens, half of them here, are 1.2 GFLOP of the 10 that two workers could do."""
    measured, row = told(clock, Outcome(2.0, None, 1.0, True, False, 120, 1), Outcome(4.0, 0.5, 3.0, True, False, 120, 0))
    assert measured.line(row) == "measured step 20/100 ce 3.000 mse 0.500 lr 1.62e-03 norm 2.00 48 tokens/s real 60.0% mfu 12.0% wait 60.0% eta 240 s"
    assert (row["good"], row["skipped"], row["seconds"], row["stall"]) == (2, 1, 106.0, pytest.approx(1 / 6))


def test_bad_steps_count_as_time_and_not_as_losses(clock):
    measured, row = told(clock, Outcome(float("nan"), 9.0, 1.0, False, False, 120, 0), Outcome(float("nan"), 9.0, 1.0, False, False, 120, 0))
    assert measured.line(row) == "measured step 20/100 ce - mse - lr 1.62e-03 norm - 48 tokens/s real 60.0% mfu 12.0% wait 60.0% eta 240 s" and row["good"] == 0
