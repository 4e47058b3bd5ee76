"""One curriculum stage under Ray Train: `python -m ray_jobs.train --inputs stage.json`.

Inputs: `release` (corpus tag), `start` (record of the checkpoint to begin with), `stage`, `training`
(typed sections of params.yaml) and `seed`. The result names the stage's checkpoint on S3. A run that was
killed goes on from its last committed checkpoint, and ends with the weights of the undisturbed run.
"""

import tempfile
from pathlib import Path

from infra.jobs import entrypoint, job_id
from infra.settings import get_settings
from infra.store import arrow_filesystem, model_store
from model.curriculum import StageParams, TrainingParams
from ray_jobs.checkpoints import fetch_folder, publish_folder


def train(inputs: dict) -> dict:
    """Run the stage to its last step, publish its averaged weights, and score them on validation data."""
    last = _fit(inputs)
    from model import UniMedVL
    from ray_jobs.evaluate import quick_scores
    from ray_jobs.releases import open_release
    from ray_jobs.training_state import load_average

    model = UniMedVL.from_pretrained(fetch_folder(inputs["start"]))
    with last.as_directory() as folder:
        history = load_average(model, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        record = publish_folder(Path(folder), inputs["stage"]["name"])
    scores = quick_scores(model, open_release(inputs["release"]), split="val")
    # The stage is published: what remains of the run would only keep a forced repetition from training.
    model_store().delete_dir(f"runs/{_run_name(inputs)}/")
    return {**record, "stage": inputs["stage"]["name"], "steps": inputs["stage"]["steps"], "history": history, "scores": scores}


def _fit(inputs: dict):
    """The last checkpoint of the stage's Ray Train run, begun or resumed."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = TrainingParams(**inputs["training"])
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config=inputs,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=training.workers, resources_per_worker={"CPU": training.threads_per_worker}),
        run_config=RunConfig(
            # Same name and path: Ray Train finds the run's checkpoints again, whoever starts it.
            name=_run_name(inputs),
            storage_path=f"{get_settings().bucket_models}/runs",
            storage_filesystem=arrow_filesystem(),
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit().checkpoint


def _run_name(inputs: dict) -> str:
    return job_id() or f"{inputs['stage']['name']}-alone"


def _work(inputs: dict) -> None:
    """What every worker runs."""
    import torch
    from ray.train import get_context

    from model import UniMedVL
    from ray_jobs.loader import Stream
    from ray_jobs.plans import Planner
    from ray_jobs.releases import open_release
    from ray_jobs.stage_loop import run_stage

    stage, training = StageParams(**inputs["stage"]), TrainingParams(**inputs["training"])
    torch.set_num_threads(training.threads_per_worker)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory it has not written; filling it first costs a sixth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    context = get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if training.streams % workers:
        raise ValueError(f"training.streams={training.streams} must be a multiple of the {workers} workers")
    model = UniMedVL.from_pretrained(fetch_folder(inputs["start"]))
    reader, planner = open_release(inputs["release"]), Planner(model, stage)
    streams = [Stream(reader, planner, stage, inputs["seed"], number) for number in range(rank, training.streams, workers)]
    run_stage(model, streams, stage, training, inputs["seed"])


if __name__ == "__main__":
    entrypoint(train)
