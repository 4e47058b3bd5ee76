"""Runs on several workers: the same step sharded or not, and checkpoints that any number of workers can read."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from model.config import ModelConfig
from tests.ray_jobs.test_stage_run import tiny  # noqa: F401
from tests.ray_jobs.training_runs import MadePacks, UnlikePacks, learned, same, start


def train(workers: int, tiny, name: str, out, parallel: str = "ddp", steps: float = 1e9, streams: int = 2, pause_s: float = 0.0, evaluate_every: int | None = None, unlike: bool = False) -> dict:
    """Run `name` on this many processes; returns its ending with what was learned and which samples were seen."""
    out.mkdir(exist_ok=True)
    plan = {"name": name, "folder": str(tiny), "scratch": str(out / "scratch"), "out": str(out), "parallel": parallel, "steps": steps, "streams": streams, "pause_s": pause_s, "evaluate_every": evaluate_every, "unlike": unlike}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.ray_jobs.workers"]
    started = [subprocess.Popen([*command, str(rank), str(workers), port, json.dumps(plan)], env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(workers)]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(text[-3000:] for text in said)
    seen = [entry for rank in range(workers) for entry in json.loads((out / f"seen-{rank}.json").read_text())]
    order = sorted((e["step"], e["stream"], e["position"], e["sample"]) for e in seen)
    return json.loads((out / "ending.json").read_text()) | {"learned": load_file(out / "learned.safetensors"), "order": order}


@pytest.fixture(scope="module")
def one(tiny, s3, tmp_path_factory):  # noqa: F811
    run, told = start(tiny, "one-worker", tmp_path_factory.mktemp("scratch"))
    run.run()
    return learned(run), sorted((e["step"], e["stream"], e["position"], e["sample"]) for e in told.seen)


def close(one: dict, other: dict) -> bool:
    """Whether weights agree but for rounding. A key's bias has no gradient but rounding, which Adam blows up to whole steps."""
    names = [name for name in one if name.startswith("weights/") and not (name.startswith("weights/vit") and "k_proj.bias" in name)]
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-3) for name in names)


def test_two_workers_stopped_and_resumed_end_with_the_same_bits(tiny, s3, one, tmp_path):  # noqa: F811
    whole = train(2, tiny, "two-whole", tmp_path / "whole")
    stopped = train(2, tiny, "two-cut", tmp_path / "cut", steps=7)
    assert (stopped["ending"], stopped["step"]) == ("stopped", 7)
    resumed = train(2, tiny, "two-cut", tmp_path / "cut")
    assert resumed["ending"] == "finished" and same(resumed["learned"], whole["learned"])
    assert resumed["history"][-1] == whole["history"][-1]
    assert whole["order"] == one[1] and close(whole["learned"], one[0])


def test_a_log_line_is_of_all_workers_however_many_streams_each_has(tiny, s3, tmp_path):  # noqa: F811
    """Three streams: two of them are the first worker's, which writes the line. Each worker skips a sample a step; the second waits for data that fills half its pack."""
    told = train(2, tiny, "uneven", tmp_path, streams=3, pause_s=0.3)["rows"]
    pack = MadePacks(ModelConfig.load(tiny))._pack("0", 0)
    for before, row in zip(told, told[1:]):
        working = (row["seconds"] - before["seconds"]) * (1 - row["stall"])
        assert row["tokens_per_s"] * working == pytest.approx(2 * 3 * pack.length, rel=0.1) and row["skipped"] == 2 * 2
        assert row["real_share"] == pytest.approx(3 / 4) and row["wait"] * working > 2 * 0.3 * 0.9


def test_another_number_of_workers_goes_on_with_the_same_samples(tiny, s3, one, tmp_path):  # noqa: F811
    before = train(2, tiny, "shrunk", tmp_path / "two", steps=5)
    after = train(1, tiny, "shrunk", tmp_path / "one")
    assert before["order"] + after["order"] == one[1]
    assert after["step"] == 12 and close(after["learned"], one[0])


def test_sharded_workers_learn_the_same_and_their_shards_fit_one(tiny, s3, one, tmp_path):  # noqa: F811
    before = train(2, tiny, "sharded", tmp_path / "two", parallel="fsdp", steps=7)
    assert before["step"] == 7
    after = train(1, tiny, "sharded", tmp_path / "one")
    assert before["order"] + after["order"] == one[1]
    assert close(after["learned"], one[0])


def test_validating_sharded_weights_changes_nothing_that_is_learned(tiny, s3, tmp_path):  # noqa: F811
    """Else a run that goes on from a checkpoint, which has just not validated, would learn something else."""
    plain = train(2, tiny, "unlooked-at", tmp_path / "plain", parallel="fsdp", steps=4)
    looked = train(2, tiny, "looked-at", tmp_path / "looked", parallel="fsdp", steps=4, evaluate_every=1)
    assert same(plain["learned"], looked["learned"]) and plain["history"] == looked["history"]


def test_a_worker_without_targets_of_a_kind_adds_nothing_to_it(tiny, s3, tmp_path):  # noqa: F811
    """One has words alone, the other drawings alone: losses and weights are those of one worker that has both."""
    whole, _ = start(tiny, "unlike-alone", tmp_path / "scratch")
    whole.loader = UnlikePacks(whole.loader.config)
    whole.run()
    both = train(2, tiny, "unlike-two", tmp_path / "two", unlike=True)
    wanted = whole.progress.history
    for kind in ("ce", "mse"):
        assert [line[kind] for line in both["history"]] == pytest.approx([line[kind] for line in wanted], rel=1e-3)
    assert close(both["learned"], learned(whole))
