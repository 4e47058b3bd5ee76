"""Workers of a run as processes: `python -m tests.ray_jobs.workers RANK WORKERS PORT PLAN`, where PLAN is JSON."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from corpus.reader import ReleaseReader
from corpus.shard_cache import ShardCache
from infra.store import corpus_store
from model.curriculum import TrainingParams
from ray_jobs.place import Place
from ray_jobs.run_log import RunLog
from ray_jobs.train import work_on
from ray_jobs.validation import Validation
from tests.ray_jobs.outage import files_at_most
from tests.ray_jobs.training_runs import STAGE, TRAINING, NoticeAt, UnlikePacks, start


class OnOnePack(Validation):
    """Validation on the pack that every stream begins with, and on the questions and prompts of a release."""

    def __init__(self, run, release: dict, cache: Path):
        self.model, self.stage, self.place, self.seed, self.sharded = run.stepper.model, run.stage, run.place, 5, run.stepper.sharded
        self.packs = [(name, run.loader._pack(name, 0)) for name in run.loader.positions]
        self.reader = ReleaseReader(release, ShardCache(corpus_store(), cache))


def fill_disk(run, step: int) -> None:
    """This worker's disk has no room while the checkpoint of this step is written."""
    save = run.checkpoints.save

    def at_a_full_disk(at: int, *rest) -> None:
        with files_at_most(2**14) if at == step else nullcontext():
            save(at, *rest)
            run.checkpoints.wait()

    run.checkpoints.save = at_a_full_disk


def main(rank: int, workers: int, port: str, plan: dict) -> None:
    """One worker: of the job `plan["inputs"]` if there is one, else of a run on made-up packs."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(workers)}
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    place = Place(rank, rank, workers, torch.device("cpu"))
    if "inputs" in plan:
        job(place, plan["name"], plan["inputs"], Path(plan["scratch"]))
    else:
        made_up(place, plan)
    dist.destroy_process_group()


def job(place: Place, name: str, inputs: dict, scratch: Path) -> None:
    """A worker's whole part of a job, as under Ray."""
    log = RunLog(name)
    if place.first:
        log.begin(inputs)
    log.close(work_on(inputs, name, place, log, NoticeAt(), scratch, under_ray=False))


def made_up(place: Place, plan: dict) -> None:
    """The run `plan["name"]` from `plan["folder"]`, stopped after `plan["steps"]`; the first worker writes what was learned to `plan["out"]`."""
    training = TrainingParams(**TRAINING.model_dump() | {"workers": place.workers} | plan["training"])
    run, told = start(Path(plan["folder"]), plan["name"], Path(plan["scratch"]), notice=NoticeAt(plan["steps"]), training=training, place=place, stage=STAGE.model_copy(update={"evaluate_every": plan["evaluate_every"]}))
    if plan["unlike"]:
        run.loader = UnlikePacks(run.loader.config, run.loader.positions)
    if plan["full"] == place.rank:
        fill_disk(run, step=8)
    if plan["release"]:
        run.validation = OnOnePack(run, plan["release"], Path(plan["scratch"], "cache"))
    run.loader.skipped = ({"stream": str(place.rank), "position": 0, "sample": "made/torn", "reason": "torn"},)
    run.loader.pause_s = plan["pause_s"]
    ending = run.run()
    run.checkpoints.close()
    tensors = {name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).contiguous().clone() for name, tensor in run.state.tensors().items()}
    Path(plan["out"], f"seen-{place.rank}.json").write_text(json.dumps(told.seen))
    if place.first:
        save_file(tensors, Path(plan["out"]) / "learned.safetensors")
        Path(plan["out"], "ending.json").write_text(json.dumps({"ending": ending, "step": run.progress.step, "history": run.progress.history, "rows": told.rows, "kinds": told.kinds()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
