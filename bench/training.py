"""Training's speed around the network: `python -m bench.training`.

Loading is measured beside peers and a bare loop (bench/loading.py). Everything else is the tiny profile's first stage on
UniMed-mini, without validation: on one worker and on two, without Ray and under Ray Train, in turns. Waits and stalls are
those of the run's own log after its first line; rates are of its second half, when most pictures have been decoded once. A
resume is counted from the start of a worker's part, so that the start's weights, the release and the checkpoint are fetched and
opened in it, to the end of its first step; what is before that is Python's start-up and, under Ray Train, Ray's. A real object
store and Ray run for as long as the benchmark does.

Where a GPU is at hand, the largest slice of the 14B that it holds is trained on it too (bench/trainer_slice.py).

Peers are found in the environment whose Python BENCH_PEERS names (bench/requirements.txt); without them the bare loop
remains. `--quick` leaves out peers, Ray and the second worker.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from bench import trainer_slice
from bench.contestants import SHARD_BYTES
from bench.corpus import FEW, with_store
from bench.loading import COUNT, loading
from bench.rows import Row, report

ROOT = Path(__file__).resolve().parent.parent
LOG_EVERY = 10


def measure(quick: bool) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            small = {"tokens_per_pack": 256}
            return with_store(Path(folder), lambda: [*stages(Path(folder), steps=20, repeats=1, ray=False, stage=small), *loading(Path(folder), 60, 1, peers=False)], FEW)
        shards = {"shards": {"target_bytes": SHARD_BYTES}}  # as everybody's
        return with_store(Path(folder), lambda: [*stages(Path(folder), steps=200, repeats=3, ray=True, stage={}), *loading(Path(folder), COUNT, 3, peers=True)], shards, ("s3", "ray"))


def stages(folder: Path, steps: int, repeats: int, ray: bool, stage: dict) -> list[Row]:
    """What a step waits for, what a checkpoint and a restart cost, what Ray and a second worker change; `stage` is what differs from the profile's."""
    bench = _Stages(folder, steps, stage)
    more = {"ray": bench.under_ray, "two": bench.two, "apart": bench.apart, "alone-of-four": bench.alone_of_four, "two-of-four": bench.two_of_four}
    kinds = {"alone": bench.alone, **(more if ray else {})}
    runs = {kind: [] for kind in kinds}
    for turn in range(repeats):
        for kind, run in kinds.items():
            runs[kind].append(run(f"{kind}-{turn}"))
    one = {name: statistics.median(run[name] for run in runs["alone"]) for name in runs["alone"][0]}
    rows = [
        Row("share of step time not waiting for data", 1 - one["wait"], "of 1", "a step that never waits", 1.0, goal=0.99),
        Row("share of training not stalled by checkpoints", 1 - one["stall"], "of 1", "training that never saves", 1.0, goal=0.99),
        _resume("resume, to the end of the first step", [bench.resume(f"resume-{turn}") for turn in range(repeats)]),
    ]
    if ray:
        rows.append(_resume("resume under Ray Train, to the end of the first step", [bench.resume_under_ray(f"resume-ray-{turn}") for turn in range(repeats)]))
        both = {name: statistics.median(run[name] for run in runs["two"]) for name in ("wait", "stall")}
        rows.append(Row("share of step time not waiting for data, two workers", 1 - both["wait"], "of 1", "a step that never waits", 1.0, goal=0.99))
        rows.append(Row("share of training not stalled by checkpoints, two workers", 1 - both["stall"], "of 1", "training that never saves", 1.0, goal=0.99))
        under, two, apart, one_of_four, two_of_four = (statistics.median(run["rate"] for run in runs[kind]) for kind in more)
        rows.append(Row("steps under Ray Train, one worker", under, "tokens/s", "the bare loop", one["rate"], goal=0.97))
        rows.append(Row("two workers", two, "tokens/s", "one worker", one["rate"], goal=1.7))
        rows.append(Row("two workers, four packs a step", two_of_four, "tokens/s", "one worker, four packs a step", one_of_four, goal=1.7))
        # What the cores allow: neither waits for the other.
        rows.append(Row("two workers", two, "tokens/s", "two runs of one worker side by side", apart, goal=0.95))
    return rows + (trainer_slice.measure(bench.release, steps=3 if not ray else 12) if torch.cuda.is_available() else [])


def _resume(name: str, seconds: list[float]) -> Row:
    return Row(name, 1 / statistics.median(seconds), "1/s", "10 s", 0.1, goal=1.0)


class _Stages:
    """Runs of the first stage from one starting point, each told by its log: {wait, stall, rate}."""

    def __init__(self, folder: Path, steps: int, stage: dict):
        from flows.releases import make_release
        from ray_jobs import bootstrap
        from ray_jobs.params import find_profile, load_params

        self.folder, self.steps, self.stage = folder, steps, stage
        self.params = load_params(find_profile("tiny"))
        self.release = make_release(force=False, on_line=lambda line: None)["tag"]
        # The VAE's quality changes no time.
        begin = self.params.bootstrap.model_copy(update={"vae_steps": 1})
        with redirect_stdout(sys.stderr):
            self.begin = bootstrap.run({"release": self.release, "model": self.params.model.model_dump(), "bootstrap": begin.model_dump(), "threads": 1, "seed": 1})

    def alone(self, name: str) -> dict:
        return self._run(name, self._inputs(name, 1))

    def two(self, name: str) -> dict:
        return self._run(name, self._inputs(name, 2))

    def alone_of_four(self, name: str) -> dict:
        return self._run(name, self._inputs(name, 1, streams=4, steps=self.steps // 2))

    def two_of_four(self, name: str) -> dict:
        """Two packs a worker and step, whose gradients are accumulated: there is as much to sum for twice the work."""
        return self._run(name, self._inputs(name, 2, streams=4, steps=self.steps // 2))

    def apart(self, name: str) -> dict:
        """Two runs at the same time that know nothing of each other; the rate is of both."""
        names = [f"{name}-{number}" for number in range(2)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: self._bare(one, 1, self._inputs(one, 1)), names))
        told = [self._told(one) for one in names]
        return told[0] | {"rate": sum(one["rate"] for one in told)}

    def under_ray(self, name: str) -> dict:
        _finished([self._under_ray(name, self._inputs(name, 1))])
        return self._told(f"{name}-alone")

    def resume(self, name: str) -> float:
        """Seconds that going on from a checkpoint takes to the end of its first step."""
        inputs = self._inputs(name, 1, log_every=1)
        return [self._bare(name, 1, inputs, steps) for steps in (10, 1)][-1]

    def resume_under_ray(self, name: str) -> float:
        """The same under Ray Train: from the start of the worker's part, which the run log has, until its first line is heard here."""
        from ray_jobs import runs

        for _ in range(2):
            process = self._under_ray(name, self._inputs(name, 1, log_every=1))
            next(line for line in process.stdout if "tokens/s" in line)
            heard = datetime.now(UTC)
            process.terminate()
            _finished([process])
        begun = runs.read(f"{name}-alone").about["attempts"][-1]["begun_at"]
        return (heard - datetime.fromisoformat(begun)).total_seconds()

    def _under_ray(self, name: str, inputs: dict) -> subprocess.Popen:
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(inputs))
        return subprocess.Popen([sys.executable, "-m", "ray_jobs.train", "--inputs", str(file)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})

    def _run(self, name: str, inputs: dict) -> dict:
        self._bare(name, inputs["training"]["workers"], inputs)
        return self._told(name)

    def _inputs(self, name: str, workers: int, log_every: int = LOG_EVERY, streams: int = 2, steps: int = 0) -> dict:
        # One line more than is counted: the first holds the start.
        stage = self.params.curriculum[0].model_copy(update={"name": name, "steps": (steps or self.steps) + LOG_EVERY, "evaluate_every": None} | self.stage)
        training = self.params.training.model_copy(update={"workers": workers, "log_every": log_every, "streams": streams})
        return {"release": self.release, "start": self.begin, "stage": stage.model_dump(), "training": training.model_dump(), "seed": self.params.seed}

    def _bare(self, run: str, workers: int, inputs: dict, steps: int = 0) -> float:
        """Run without Ray, to the end or for some steps; the first worker's seconds to its first log line."""
        plan = json.dumps({"run": run, "inputs": inputs, "steps": steps, "scratch": str(self.folder / "scratch")})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "bench.stage_worker"]
        started = [subprocess.Popen([*command, str(rank), str(workers), port, plan], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(workers)]
        return json.loads(_finished(started)[0].splitlines()[-1])["first"]

    def _told(self, run: str) -> dict:
        from ray_jobs import runs

        rows = runs.read(run).metrics
        elapsed = np.diff(rows["seconds"])
        stall, wait, rate = (rows[name].to_numpy()[1:] for name in ("stall", "wait", "tokens_per_s"))
        return {"wait": float(np.average(wait, weights=elapsed * (1 - stall))), "stall": float(np.average(stall, weights=elapsed)), "rate": float(np.median(rate[len(rate) // 2 :]))}


def _finished(processes: list[subprocess.Popen]) -> list[str]:
    """What they print. Raises RuntimeError when one fails."""
    said = [process.communicate(timeout=400)[0] for process in processes]
    for process, text in zip(processes, said):
        if process.returncode:
            raise RuntimeError(text[-3000:])
    return said


if __name__ == "__main__":
    report(__doc__, measure)
