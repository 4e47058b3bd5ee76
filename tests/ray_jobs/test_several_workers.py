"""Runs on several workers: the same step sharded or not, checkpoints that any number of workers can read, and workers that are killed."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from infra.store import corpus_store, log_store, model_store
from model.config import ModelConfig
from ray_jobs.checkpoints import publish_folder
from ray_jobs.place import alone
from ray_jobs.runs import read
from ray_jobs.stage_checkpoints import checkpoints_prefix, committed
from tests.ray_jobs.made_release import publish, sample
from tests.ray_jobs.test_stage_run import in_store, tiny  # noqa: F401
from tests.ray_jobs.training_runs import STAGE, TRAINING, MadePacks, UnlikePacks, learned, same, start
from tests.ray_jobs.workers import job

# How the 14B is trained.
AT_SCALE = {"parallel": "fsdp", "precision": "bfloat16", "activation_checkpointing": True}


def begin(workers: int, plan: dict) -> list[subprocess.Popen]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.ray_jobs.workers"]
    return [subprocess.Popen([*command, str(rank), str(workers), port, json.dumps(plan)], env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(workers)]


def end(started: list[subprocess.Popen]) -> None:
    """Wait for processes that are to end well."""
    said = [process.communicate(timeout=240)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(text[-3000:] for text in said)


def planned(tiny, name: str, out: Path, steps: float = 1e9, pause_s: float = 0.0, evaluate_every: int | None = None, release: dict | None = None, unlike: bool = False, full: int | None = None, **training) -> dict:
    """A run on made-up packs, which is told to stop after so many steps."""
    out.mkdir(exist_ok=True)
    return {"name": name, "folder": str(tiny), "scratch": str(out / "scratch"), "out": str(out), "steps": steps, "pause_s": pause_s, "evaluate_every": evaluate_every, "release": release, "unlike": unlike, "full": full, "training": training}


def train(workers: int, tiny, name: str, out: Path, **how) -> dict:
    """Run `name` on this many processes; returns its ending with what was learned and which samples were seen."""
    end(begin(workers, planned(tiny, name, out, **how)))
    seen = [entry for rank in range(workers) for entry in json.loads((out / f"seen-{rank}.json").read_text())]
    return json.loads((out / "ending.json").read_text()) | {"learned": load_file(out / "learned.safetensors"), "order": in_order(seen)}


def in_order(seen: list[dict]) -> list[tuple]:
    return sorted((e["step"], e["stream"], e["position"], e["sample"]) for e in seen)


def told_on_the_way(run: str) -> tuple[list[dict], list[np.ndarray]]:
    """A run's scores and drawings, in order."""
    known = read(run)
    return [row["scores"] for row in known.scores], [np.asarray(Image.open(io.BytesIO(log_store().get(key))), dtype=float) for key in known.pictures]


@pytest.fixture(scope="module")
def release(s3) -> dict:
    """Something to learn from, to ask and to draw."""
    made = [sample(number + 20 * (split == "val"), task, split=split) for split in ("train", "val") for task in ("understanding", "generation") for number in range(20)]
    release = publish(made, corpus_store(), tag="corpus/2000-05-05.1")
    corpus_store().put_json("releases/2000-05-05.1.json", release)
    return release


@pytest.fixture(scope="module")
def one(tiny, s3, tmp_path_factory):  # noqa: F811
    """What one worker learned, and the order of its samples."""
    run, told = start(tiny, "one-worker", tmp_path_factory.mktemp("scratch"))
    run.run()
    return learned(run), in_order(told.seen)


@pytest.fixture(scope="module")
def whole(tiny, s3, tmp_path_factory):  # noqa: F811
    """The undisturbed run of two workers."""
    return train(2, tiny, "two-whole", tmp_path_factory.mktemp("whole"))


def close(one: dict, other: dict) -> bool:
    """Whether weights agree but for rounding. A key's bias has no gradient but rounding, which Adam blows up to whole steps."""
    names = [name for name in one if name.startswith("weights/") and not (name.startswith("weights/vit") and "k_proj.bias" in name)]
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-3) for name in names)


def test_two_workers_stopped_and_resumed_end_with_the_same_bits(tiny, s3, one, whole, tmp_path):  # noqa: F811
    stopped = train(2, tiny, "two-cut", tmp_path, steps=7)
    assert (stopped["ending"], stopped["step"]) == ("stopped", 7)
    resumed = train(2, tiny, "two-cut", tmp_path)
    assert resumed["ending"] == "finished" and same(resumed["learned"], whole["learned"])
    assert resumed["history"] == whole["history"]
    assert whole["order"] == one[1] and close(whole["learned"], one[0])


def test_a_worker_that_is_killed_costs_nothing_but_its_time(tiny, s3, whole, tmp_path):  # noqa: F811
    first, second = begin(2, planned(tiny, "one-killed", tmp_path, pause_s=0.3))
    try:
        deadline = time.monotonic() + 120
        while not committed(model_store(), checkpoints_prefix("one-killed")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second.kill()
        # Ray Train ends the other one; here it meets that nobody answers.
        first.wait(timeout=60)
    finally:
        first.kill()
    assert [worker.wait() != 0 for worker in (first, second)] == [True, True] and not (tmp_path / "ending.json").exists()
    again = train(2, tiny, "one-killed", tmp_path)
    assert again["order"][0][0] in (5, 9) and again["history"] == whole["history"] and same(again["learned"], whole["learned"])


@pytest.mark.parametrize("training", [{"parallel": "fsdp"}, AT_SCALE], ids=["float32", "as the 14B"])
def test_sharded_workers_stopped_and_looked_at_end_with_the_same_bits(tiny, s3, one, release, tmp_path, training):  # noqa: F811
    """A run that goes on from a checkpoint has just not validated: validating must not change what is learned either."""
    name = f"sharded-{len(training)}"
    undisturbed = train(2, tiny, name, tmp_path / "whole", **training)
    looks = {"evaluate_every": 5, "release": release}
    stopped = train(2, tiny, f"{name}-cut", tmp_path / "before", steps=7, **looks, **training)
    assert (stopped["ending"], stopped["step"]) == ("stopped", 7)
    resumed = train(2, tiny, f"{name}-cut", tmp_path / "after", **looks, **training)
    assert same(resumed["learned"], undisturbed["learned"]) and resumed["history"] == undisturbed["history"]
    assert stopped["order"] + resumed["order"] == undisturbed["order"] == one[1]


def test_sharded_workers_tell_on_the_way_what_one_worker_tells(tiny, s3, release, tmp_path):  # noqa: F811
    stage = STAGE.model_dump(mode="json") | {"steps": 6, "mixture": {"understanding": 1, "generation": 1}, "evaluate_every": 3, "tokens_per_pack": 600}
    inputs = {"release": release["tag"], "start": publish_folder(tiny, "start"), "stage": stage, "training": TRAINING.model_dump(mode="json"), "seed": 5}
    sharded = inputs | {"training": inputs["training"] | {"workers": 2, "parallel": "fsdp"}}
    job(alone(), "told-alone", inputs, tmp_path)
    end(begin(2, {"name": "told-sharded", "inputs": sharded, "scratch": str(tmp_path)}))
    (scores, sheets), (wanted, shown) = map(told_on_the_way, ("told-sharded", "told-alone"))
    assert scores == [pytest.approx(row, abs=0.1) for row in wanted] and wanted[-1]["vqa/made"] > 0.1
    assert len(sheets) == 2 and all(np.abs(one - other).mean() < 0.1 for one, other in zip(sheets, shown, strict=True))


def test_a_log_line_is_of_all_workers_however_many_streams_each_has(tiny, s3, tmp_path):  # noqa: F811
    """Three streams: two of them are the first worker's, which writes the line. Each worker skips a sample a step; the second waits for data that fills half its pack."""
    told = train(2, tiny, "uneven", tmp_path, streams=3, pause_s=0.3)["rows"]
    pack = MadePacks(ModelConfig.load(tiny))._pack("0", 0)
    for before, row in zip(told, told[1:]):
        working = (row["seconds"] - before["seconds"]) * (1 - row["stall"])
        assert row["tokens_per_s"] * working == pytest.approx(2 * 3 * pack.length, rel=0.1) and row["skipped"] == 2 * 2
        assert row["real_share"] == pytest.approx(3 / 4) and row["wait"] * working > 2 * 0.3 * 0.9


def test_any_number_of_workers_sharded_or_not_goes_on_with_the_same_samples(tiny, s3, one, tmp_path):  # noqa: F811
    """More of them, into sharding, more sharded ones, and out of it with fewer."""
    order = []
    for workers, parallel, steps in ((1, "ddp", 3), (2, "ddp", 2), (1, "fsdp", 2), (2, "fsdp", 2), (1, "ddp", 1e9)):
        part = train(workers, tiny, "reshaped", tmp_path, parallel=parallel, steps=steps)
        order += part["order"]
    assert order == one[1] and part["step"] == 12 and close(part["learned"], one[0])


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


@pytest.mark.parametrize("rank", [0, 1])
def test_one_workers_full_disk_costs_all_a_checkpoint_and_no_step(tiny, s3, one, tmp_path, rank):  # noqa: F811
    """That of step 8 is left out, and the run ends as ever."""
    told = train(2, tiny, f"full-{rank}", tmp_path, full=rank)
    assert told["ending"] == "finished" and told["kinds"].count("checkpoint-failed") == 1 and told["order"] == one[1] and close(told["learned"], one[0])
    assert [name.split("-")[0] for name in in_store(f"full-{rank}")] == ["00000012", "00000004"]
