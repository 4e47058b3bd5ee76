"""One worker of a stage without Ray: `python -m bench.stage_worker RANK WORKERS PORT PLAN`, for bench/training.py."""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from ray_jobs.place import Place
from ray_jobs.run_log import RunLog
from ray_jobs.train import work_on


# What `work_on` imports as it begins: start-up of Python, which is not what is measured.
MODULES = ("loader", "plans", "releases", "stage_checkpoints", "stage_loop", "validation")


class _Log(RunLog):
    """A run log that knows when the first line was written."""

    first = 0.0

    def metrics(self, row: dict) -> None:
        self.first = self.first or time.perf_counter()
        super().metrics(row)


class _NoticeAfter:
    """Notice that is given at a step."""

    def __init__(self, steps: int):
        self.left = steps

    def given(self) -> bool:
        self.left -= 1
        return self.left == 0


def main(rank: int, workers: int, port: str, plan: dict) -> None:
    """Runs `plan["inputs"]` as `plan["run"]`, for `plan["steps"]` steps if they are given; prints the seconds to the first log line."""
    if workers > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(workers)}
        dist.init_process_group("gloo", rank=rank, world_size=workers)
    log, place = _Log(plan["run"]), Place(rank, rank, workers, torch.device("cpu"))
    if place.first:
        log.begin({key: plan["inputs"][key] for key in ("stage", "training", "release", "start", "seed")} | {"workers": workers})
    for name in MODULES:
        import_module(f"ray_jobs.{name}")
    begun = time.perf_counter()
    work_on(plan["inputs"], plan["run"], place, log, _NoticeAfter(plan.get("steps", 0)), Path(plan["scratch"]), under_ray=False)
    log.close()
    print(json.dumps({"first": log.first - begun}))
    if workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
