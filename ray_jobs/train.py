"""One curriculum stage under Ray Train: `python -m ray_jobs.train --inputs stage.json`.

Inputs: `release` (corpus tag), `start` (record of the checkpoint to begin with), `stage`, `training`
(typed sections of params.yaml), `seed`, and `known_release` (the release the start has learned from, for
replay) or None. The result names the stage's checkpoint on S3. A run that was killed or stopped goes on from
its last committed checkpoint, on any number of workers; on the same number it ends with the weights of the
undisturbed run.
"""

import os
import signal
from pathlib import Path

from infra.folders import passing
from infra.jobs import JobCancelled, entrypoint, job_id
from infra.outage import patiently
from infra.records import digest
from infra.settings import get_settings
from infra.store import CorruptObject, MissingObject, model_store
from model.curriculum import RUNNING, StageParams, TrainingParams
from ray_jobs.checkpoints import fetch_folder, publish_folder

NEEDED = ("release", "start", "stage", "training", "seed")
# How a run ended that waits for somebody to mend something.
LOST = "cannot go on"
# What a process must have before it meets its GPU: a cuBLAS that is deterministic, and memory that packs of ever new
# lengths do not leave in pieces.
GPU_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


class CannotGoOn(RuntimeError):
    """Something is wrong that no worker which is started again could mend; the message says what."""


class TrainingDiverged(RuntimeError):
    """The loss ran away and going back did not help; the message says what happened."""


def train(inputs: dict) -> dict:
    """Run the stage to its end and publish its averaged weights. The run's checkpoints stay until the result is recorded.

    Raises:
        ValueError: the run was begun with other inputs, or its inputs are wrong.
        JobCancelled: it was told to stop, and saved what it had.
        TrainingDiverged: too many bad steps in a row, again after going back.
        CannotGoOn: a shard is gone, the data are unusable, or whatever else has to be mended first.
    """
    if not job_id():
        # A flow has seen to it before it submits a job.
        refuse_early(inputs)
    run, minutes = run_name(inputs), TrainingParams(**inputs["training"]).outage_minutes
    patiently(lambda: take_up(run, inputs), minutes)
    patiently(lambda: model_store().delete(_ending_key(run)), minutes)
    _fit(inputs, run)
    try:
        ending = patiently(lambda: model_store().get_json(_ending_key(run)), minutes)
    except MissingObject:
        raise JobCancelled(f"{run} was stopped before its first step; the same command begins again") from None
    if ending["how"] == "stopped":
        raise JobCancelled(f"{run} stopped at step {ending['step']} and saved it; the same command goes on from there")
    if ending["how"] == LOST:
        raise CannotGoOn(f"{run} cannot go on: {ending['why']}; mend that, and the same command goes on from the last checkpoint")
    if ending["how"] == "diverged":
        raise TrainingDiverged(f"{run} stopped at step {ending['step']}: {ending['why']}")
    try:
        record = _published(inputs, run, ending["step"], minutes)
    except KeyboardInterrupt:
        raise JobCancelled(f"{run} was stopped while its weights were published; the same command goes on with that") from None
    return {**record, "stage": inputs["stage"]["name"], "steps": ending["step"], "history": ending["history"], "scores": ending["scores"], "run": run}


def refuse_early(inputs: dict) -> None:
    """See before any worker is started what no worker that is started again could mend.

    Raises:
        ValueError: inputs are missing or wrong, or the release has nothing of what the stage draws.
        MissingObject: there is no such release.
    """
    from ray_jobs import mixture
    from ray_jobs.releases import open_release

    if missing := [name for name in NEEDED if name not in inputs]:
        raise ValueError(f"the inputs lack {', '.join(missing)}; `python -m ray_jobs.train --help` tells what they are")
    stage, training = StageParams(**inputs["stage"]), TrainingParams(**inputs["training"])
    mixture.refuse_early(open_release(inputs["release"], outage_minutes=training.outage_minutes).index, [stage])


def _published(inputs: dict, run: str, step: int, minutes: float) -> dict:
    """The record of the stage's averaged weights on S3."""
    from ray_jobs.stage_export import export_average

    with passing(get_settings().state_dir / "cache" / "exports" / f"{run}-published") as folder:
        export_average(_start_folder(inputs, minutes), run, step, model_store(), folder, minutes)
        return patiently(lambda: publish_folder(folder, inputs["stage"]["name"]), minutes)


def forget_run(result: dict) -> None:
    """Delete what remains of a stage whose result is recorded: it would only keep a forced repetition from training."""
    model_store().delete_dir(f"runs/{result['run']}/")


def run_name(inputs: dict) -> str:
    return job_id() or f"{inputs['stage']['name']}-alone"


def take_up(run: str, inputs: dict) -> None:
    """See that what the run left is of the same inputs, but for how they are run: a job's name says so, a stage's alone does not.

    Raises:
        ValueError: it is of others.
    """
    key = f"runs/{run}/inputs.json"
    training = {name: value for name, value in inputs["training"].items() if name not in RUNNING}
    start = {name: value for name, value in inputs["start"].items() if name != "origin"}
    known = {"sha256": digest(inputs | {"training": training, "start": start})}
    try:
        found = model_store().get_json(key)
    except MissingObject:
        model_store().put_json(key, known)
        return
    if found != known:
        raise ValueError(f"{run} was begun with other inputs and has not ended: go on with those, give the stage another name, or delete runs/{run}/ in the models bucket to begin anew")


def _ending_key(run: str) -> str:
    return f"runs/{run}/ending.json"


def _fit(inputs: dict, run: str) -> None:
    """Ray Train's run of the stage: it places workers, starts them again after failures, and grows or shrinks their number."""
    import ray

    from ray_jobs.notice import Bell

    _connect()
    bell = ray.remote(num_cpus=0)(Bell).remote()

    def ring(number, frame) -> None:
        if not ray.get(bell.ring.remote()):
            # The one exception that gets through where Ray waits.
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ring)
    try:
        # Our checkpoints go their own way, so nothing but Ray's marker lies there: in the store it would have to answer at that very moment.
        with passing(get_settings().state_dir / "cache" / "ray-train" / run) as folder:
            _trainer(inputs, run, bell, folder).fit()
    except KeyboardInterrupt:
        raise JobCancelled(f"{run} was stopped while it waited for its workers; the same command goes on from its last checkpoint") from None
    finally:
        # There are no workers to be told any more.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _connect() -> None:
    import ray

    if ray.is_initialized():
        return
    try:
        # In a job Ray tells which; of several on one machine it would take any.
        ray.init(address=os.environ.get("RAY_ADDRESS") or get_settings().ray_address, log_to_driver=True)
    except SystemExit:
        # What Ray makes of SIGTERM from here on.
        raise KeyboardInterrupt from None


def _trainer(inputs: dict, run: str, bell, folder: Path):
    """Ray Train's trainer of the stage; tells where the cluster has no room for its workers."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = TrainingParams(**inputs["training"])
    fewest = training.min_workers or training.workers
    each = {"CPU": training.threads_per_worker} | ({"GPU": training.gpus_per_worker} if training.gpus_per_worker else {})
    if (fit := _workers_that_fit(ray.nodes(), each)) < fewest:
        print(f"waiting: {fewest} workers of {_named(each)} are needed, and the cluster's nodes have room for {fit}; add nodes, or `unimed train stop {run}`, lower `training.workers` and run the same command again", flush=True)
    return TorchTrainer(
        _work,
        train_loop_config={"inputs": inputs, "run": run, "bell": bell},
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers if fewest == training.workers else (fewest, training.workers),
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=run,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": GPU_ENVIRONMENT} if training.gpus_per_worker else None,
        ),
    )


def _workers_that_fit(nodes: list[dict], each: dict[str, int]) -> int:
    """How many workers there is room for, where nobody else is."""
    return sum(min(int(node["Resources"].get(kind, 0) // needed) for kind, needed in each.items()) for node in nodes if node["Alive"])


def _named(resources: dict[str, int]) -> str:
    return " and ".join(f"{needed} {kind}" for kind, needed in resources.items())


def _work(told: dict) -> None:
    """What every worker runs."""
    import socket

    from ray.train import get_context
    from ray.train.torch import get_device

    from ray_jobs.metrics import StageMetrics
    from ray_jobs.notice import Notice
    from ray_jobs.place import Place, from_first
    from ray_jobs.run_log import RunLog, next_stamp

    inputs, run = told["inputs"], told["run"]
    context = get_context()
    place = Place(context.get_world_rank(), context.get_local_rank(), context.get_world_size(), get_device())
    minutes = TrainingParams(**inputs["training"]).outage_minutes
    log = RunLog(run, since=from_first(patiently(lambda: next_stamp(run), minutes) if place.first else None, place.workers))
    if place.first:
        about = {key: inputs.get(key) for key in ("stage", "training", "release", "start", "seed")}
        log.begin(about | {"workers": place.workers, "host": socket.gethostname()})
    scratch = Path(os.environ.get("UNIMED_SCRATCH_DIR") or get_settings().state_dir / "cache" / "checkpoints") / run
    how = "failed"
    try:
        how = work_on(inputs, run, place, log, Notice(told["bell"]), scratch, metrics=StageMetrics(run, inputs["stage"]["name"]))
    finally:
        log.close(how)


def work_on(inputs: dict, run: str, place, log, notice, scratch: Path, under_ray: bool = True, metrics=None) -> str:
    """One worker's whole part, under Ray or without it; the first worker leaves word of the ending. Returns how it ended.

    Ray Train starts workers again whatever has ended them. What that cannot mend is left as the ending, and they have
    nothing to do until the run is asked for again.
    """
    from corpus.shard_cache import LostShard
    from model.weights import CheckpointError
    from ray_jobs.mixture import MixtureError
    from ray_jobs.place import from_first

    minutes = TrainingParams(**inputs["training"]).outage_minutes
    if from_first(patiently(lambda: _is_lost(run), minutes) if place.first else None, place.workers):
        return LOST
    try:
        return _work_on(inputs, run, place, log, notice, scratch, under_ray, metrics)
    except (LostShard, MixtureError, CheckpointError, CorruptObject, MissingObject) as error:
        ending = {"how": LOST, "why": str(error)}
        patiently(lambda: model_store().put_json(_ending_key(run), ending), minutes)
        raise


def _is_lost(run: str) -> bool:
    try:
        return model_store().get_json(_ending_key(run))["how"] == LOST
    except MissingObject:
        return False


def _work_on(inputs: dict, run: str, place, log, notice, scratch: Path, under_ray: bool, metrics) -> str:
    from ray_jobs.loader import Loader
    from ray_jobs.place import gather
    from ray_jobs.plans import Planner
    from ray_jobs.releases import open_release, release_record
    from ray_jobs.stage_checkpoints import StageCheckpoints
    from ray_jobs.stage_loop import StageRun
    from ray_jobs.validation import Validation

    stage, training, seed = StageParams(**inputs["stage"]), TrainingParams(**inputs["training"]), inputs["seed"]
    prepare_process(training)
    if place.first_here:
        _start_folder(inputs, training.outage_minutes)
    # The others of a machine find it there.
    gather(None, place.workers)
    model = starting_network(_start_folder(inputs, training.outage_minutes), training, place)
    reader, numbers = open_release(inputs["release"], training.cache_gib, training.outage_minutes), list(range(place.rank, training.streams, place.workers))
    known = reader.held_by(release_record(inputs["known_release"], training.outage_minutes)) if stage.replay is not None and inputs.get("known_release") else None
    half = place.device.type == "cuda" and training.precision == "bfloat16"
    loader = Loader(reader, Planner(model, stage, half=half), stage, seed, numbers, training.streams, known=known)
    validation = Validation(reader, model, stage, seed, numbers, training.streams, place, training.parallel == "fsdp", half) if stage.evaluate_every else None
    checkpoints = StageCheckpoints(run, model_store(), place, scratch, training.keep_checkpoints, training.outage_minutes, before_commit=lambda: log.flush(60 * training.outage_minutes))
    stage_run = StageRun(model, loader, stage, training, seed, place, checkpoints, log, notice, lambda: starting_network(_start_folder(inputs, training.outage_minutes), training, place), validation, under_ray, metrics)
    how = stage_run.run()
    checkpoints.close()
    if place.first:
        progress = stage_run.progress
        ending = {"how": how, "why": stage_run.why, "step": progress.step, "history": progress.history, "scores": progress.scores}
        patiently(lambda: model_store().put_json(_ending_key(run), ending), training.outage_minutes)
    return how


def _start_folder(inputs: dict, minutes: float) -> Path:
    """The checkpoint that the stage begins with, on this machine."""
    return patiently(lambda: fetch_folder(inputs["start"]), minutes)


def prepare_process(training: TrainingParams) -> None:
    """This process's threads, and sums in one order whenever they are taken."""
    import torch

    torch.set_num_threads(training.threads_per_worker)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory it has not written; filling it first costs a sixth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False


def starting_network(folder: Path, training: TrainingParams, place):
    """The start's network, whole or sharded, ready to train."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from model import UniMedVL
    from model.parallelize import checkpoint_activations, load_sharded

    if training.parallel == "fsdp":
        dtype = torch.bfloat16 if training.precision == "bfloat16" else None
        model = load_sharded(folder, init_device_mesh(place.device.type, (place.workers,)), dtype)
    else:
        # Masters are float32, whatever the files hold.
        model = UniMedVL.from_pretrained(folder, str(place.device)).float()
    checkpoint_activations(model, training.activation_checkpointing)
    return model


if __name__ == "__main__":
    # Told to end, it ends well at any time, also where there are no workers yet, or no more.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    entrypoint(train, forget_run)
    # Ray's farewell ends by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
