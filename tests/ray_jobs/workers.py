"""Workers of a run as processes: `python -m tests.ray_jobs.workers RANK WORKERS PORT PLAN`, where PLAN is JSON."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from model.curriculum import TrainingParams
from ray_jobs.place import Place
from ray_jobs.validation import Validation
from tests.ray_jobs.training_runs import STAGE, TRAINING, NoticeAt, UnlikePacks, start


class OnOnePack(Validation):
    """Validation on the pack that every stream begins with."""

    def __init__(self, run):
        self.model, self.stage, self.place, self.seed, self.sharded = run.stepper.model, run.stage, run.place, 5, run.stepper.sharded
        self.packs = [(name, run.loader._pack(name, 0)) for name in run.loader.positions]

    def look(self, stepper):
        return {}, None


def main(rank: int, workers: int, port: str, plan: dict) -> None:
    """One worker: the run `plan["name"]` from `plan["folder"]`, stopped after `plan["steps"]`; rank 0 writes what was learned to `plan["out"]`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(workers)}
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    place = Place(rank, rank, workers, torch.device("cpu"))
    training = TrainingParams(**TRAINING.model_dump() | {"workers": workers, "streams": plan["streams"], "parallel": plan["parallel"]})
    run, told = start(Path(plan["folder"]), plan["name"], Path(plan["scratch"]), notice=NoticeAt(plan["steps"]), training=training, place=place, stage=STAGE.model_copy(update={"evaluate_every": plan["evaluate_every"]}))
    if plan["unlike"]:
        run.loader = UnlikePacks(run.loader.config, run.loader.positions)
    run.validation = OnOnePack(run)
    run.loader.skipped = ({"stream": str(rank), "position": 0, "sample": "made/torn", "reason": "torn"},)
    run.loader.pause_s = plan["pause_s"]
    ending = run.run()
    run.checkpoints.close()
    tensors = {name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).contiguous().clone() for name, tensor in run.state.tensors().items()}
    Path(plan["out"], f"seen-{rank}.json").write_text(json.dumps(told.seen))
    if rank == 0:
        save_file(tensors, Path(plan["out"]) / "learned.safetensors")
        Path(plan["out"], "ending.json").write_text(json.dumps({"ending": ending, "step": run.progress.step, "history": run.progress.history, "rows": told.rows}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
