"""The steps of a retraining, each a task that can be run again at no cost."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from prefect import task
from prefect.runtime import flow_run

from flows.stage_watch import StageWatch
from infra.jobs import JobSpec, find_result, run_job
from infra.records import digest, file_sha256, source_fingerprint
from infra.registry import ModelRegistry
from infra.settings import get_settings
from infra.store import log_store
from model.curriculum import BOOTSTRAP, CHAMPION, RUNNING, StageParams, starts
from ray_jobs.gate import GateDecision, decide
from ray_jobs.params import Params
from ray_jobs.train import forget_run

TRAINS = ("ray_jobs.bootstrap", "ray_jobs.train")


@cache
def _code() -> str:
    return source_fingerprint("model", "ray_jobs", "corpus")


def refuse_early(params: Params, curriculum: Sequence[StageParams], first: str) -> None:
    """See before anything starts that what the curriculum begins with is there.

    Raises:
        CheckpointError: the profile names published weights, a stage begins with them, and they are not there or not the network's.
    """
    if params.bootstrap.checkpoint and BOOTSTRAP in starts(curriculum, first):
        from ray_jobs import checkpoint_source

        checkpoint_source.refuse_early(params.bootstrap.checkpoint, params.model)


def refuse_mixtures(curriculum: Sequence[StageParams], release: dict) -> None:
    """See before the first stage is trained that the release has what the last one draws from, too.

    Raises:
        MixtureError: a stage asks for tasks or modalities of which the release has nothing.
    """
    from ray_jobs import mixture
    from ray_jobs.releases import open_release

    mixture.refuse_early(open_release(release["tag"]).index, curriculum)


@task
def bootstrap(params: Params, release: dict, force: bool, log) -> dict:
    """What the first stage begins with: published weights, or tokenizer, VAE and a fresh network."""
    if params.bootstrap.checkpoint:
        return _published(params, params.bootstrap.checkpoint, force, log)
    inputs = {
        "release": release["tag"],
        "model": params.model.model_dump(mode="json"),
        "bootstrap": params.bootstrap.model_dump(mode="json"),
        "threads": params.training.bootstrap_threads,
    }
    return _job(params, "bootstrap", "ray_jobs.bootstrap", inputs, force, log)


def _published(params: Params, address: str, force: bool, log) -> dict:
    """Published weights as a starting point. Their content is part of the step's name, and where they lie is not."""
    from ray_jobs.checkpoint_source import identify

    inputs = {"model": params.model.model_dump(mode="json"), "checkpoint": {"files": identify(address, log)}}
    spec = replace(_spec(params, BOOTSTRAP, "ray_jobs.published", inputs), running={"checkpoint": {"address": address, "again": force}})
    return _run(spec, force, log) | {"origin": address}


def train_curriculum(params: Params, curriculum: Sequence[StageParams], release: dict, first: str, force: bool, log) -> list[dict]:
    """The stages' records in order, each from where it says it starts; `first` is where one without a word begins that has none before it.

    Raises:
        LookupError: a stage starts from the champion, and there is none.
    """
    made: dict[str, dict] = {}
    for stage, start in zip(curriculum, starts(curriculum, first)):
        if start not in made:
            made[start] = _starting_point(params, start, release, force, log)
        made[stage.name] = train_stage(params, stage, release, made[start], made.get(CHAMPION, {}).get("release"), force, log)
    return list(made.values())


def _starting_point(params: Params, name: str, release: dict, force: bool, log) -> dict:
    return champion_checkpoint(None if force else _inputs(params, release)) if name == CHAMPION else bootstrap(params, release, force, log)


@task(task_run_name="train {stage.name}")
def train_stage(params: Params, stage: StageParams, release: dict, start: dict, known_release: str | None, force: bool, log) -> dict:
    """One curriculum stage from the checkpoint of another; `known_release` is what the champion it goes back to has learned from."""
    training = params.training.model_dump(mode="json")
    running = {name: training.pop(name) for name in RUNNING}
    inputs = {
        "release": release["tag"],
        "start": {key: start[key] for key in ("version", "prefix", "content_hash") if key in start},
        "stage": stage.model_dump(mode="json"),
        "training": training,
        "known_release": known_release if stage.replay is not None else None,
    }
    # Where a start came from is told of the run and no part of its name: its content is.
    told = {"origin": start["origin"]} if "origin" in start else {}
    spec = replace(_spec(params, stage.name, "ray_jobs.train", inputs), running={"training": running, "start": told})
    if done := find_result(spec):
        # Killed between the two, its job has left its checkpoints: nobody else would delete them, and a forced repetition would not train.
        forget_run(done)
    with StageWatch(spec.submission_id, stage, log) as watch:
        return _run(spec, force, watch.line) | {"run": spec.submission_id}


def champion_checkpoint(inputs: dict | None = None) -> dict:
    """The champion as a starting point, with the release it was trained on.

    Where these very inputs have made it, it is what it was made from: run again after it was promoted, a refresh has nothing
    to train, and is not begun anew with its own result.

    Raises:
        LookupError: there is no champion yet.
    """
    registry = ModelRegistry()
    champion = registry.alias("champion")
    if champion is None:
        raise LookupError("there is no champion to refresh; run `unimed retrain` first")
    version, lineage = champion.version, registry.get(champion.version).lineage
    parent = next((stage["version"] for stage in lineage.get("stages", ()) if stage.get("version")), None)
    if parent and inputs and inputs.items() <= lineage.items():
        version, lineage = parent, registry.get(parent).lineage
    return {"stage": CHAMPION, "version": version, "release": lineage.get("release"), "how": "up to date", "history": [], "scores": {}, "steps": 0}


def _inputs(params: Params, release: dict) -> dict:
    """What a retraining's result depends on, as its lineage tells."""
    return {"release": release["tag"], "code": _code(), "params": digest(params.model_dump(mode="json"))}


@task
def register(params: Params, release: dict, stages: list[dict], reason: str) -> str:
    """Publish the last stage's weights as an immutable version with its lineage."""
    from ray_jobs import tracker
    from ray_jobs.export import publish_version

    settings, registry = get_settings(), ModelRegistry()
    champion = registry.alias("champion")
    lineage = {
        **_inputs(params, release),
        "dvc_hash": release["dvc_hash"],
        "corpus_commit": release["corpus_commit"],
        "profile": params.profile,
        "environment": file_sha256(settings.repo_dir / "requirements.lock"),
        "stages": [{key: stage.get(key) for key in ("stage", "prefix", "content_hash", "version", "origin")} for stage in stages],
        "flow_run": str(flow_run.id or ""),
        "reason": reason,
        "parent": champion.version if champion else None,
    }
    version = publish_version(stages[-1], lineage).id
    registry.mark_candidate(version)
    if "run" in stages[-1]:
        tracker.tag_version(stages[-1]["run"], version)
    return version


@task(task_run_name="evaluate {version}")
def evaluate(params: Params, release: dict, version: str, log) -> dict:
    """The evaluation report of a version on the release's test split."""
    inputs = {"subject": version, "release": release["tag"], "evaluation": params.evaluation.model_dump(mode="json")}
    return _job(params, "evaluate", "ray_jobs.evaluate", inputs, False, log)["report"]


def evaluate_version(version: str, release: str | None, log) -> dict:
    """The report of a version or alias on a release (the newest by default), outside of any flow."""
    from flows.report import find_release
    from ray_jobs.params import load_params

    return evaluate.fn(load_params(get_settings().params_file), find_release(release), ModelRegistry().resolve(version), log)


def champion_report(params: Params, release: dict, candidate: str, log) -> dict | None:
    """The champion's report on the same release, or None where there is no other champion."""
    champion = ModelRegistry().alias("champion")
    if champion is None or champion.version == candidate:
        return None
    return evaluate(params, release, champion.version, log)


@task
def judge(params: Params, report: dict, champion: dict | None) -> GateDecision:
    """The gate's decision, kept beside the version whatever it is."""
    decision = decide(params.gate, report, champion)
    ModelRegistry().add_record(decision.candidate, "gate", decision.to_json())
    return decision


@task
def promote(params: Params, candidate: str, decision: GateDecision) -> bool:
    """Make the candidate champion if the gate lets it; a person decides instead where the policy says so.

    A version that was champion before and was followed by another is not brought back by repeating its
    retraining: that is what `unimed rollback` and `unimed promote` are for.
    """
    registry = ModelRegistry()
    if not registry.records(candidate, "promotion") and decision.verdict == "pass" and not params.gate.human_approval:
        registry.promote(candidate)
        registry.add_record(candidate, "promotion", {"verdict": decision.verdict})
    champion = registry.alias("champion")
    return champion is not None and champion.version == candidate


@task(retries=1)
def deploy(params: Params, log) -> dict | None:
    """Let the endpoint serve the champion; None while there is none."""
    from ray_jobs.serve.deploy import deploy as switch

    champion = ModelRegistry().alias("champion")
    return switch(champion.version, params.serving, log) if champion else None


def summary(release, stages, candidate, report, champion, decision, promoted, endpoint) -> dict:
    """What a caller wants to know of a run, as JSON."""
    scores = {b["name"]: b["score"] for b in report["benchmarks"]}
    return {
        "release": {"tag": release["tag"], "how": release["how"], "samples": release["card"]["samples"]},
        "stages": [{"stage": s["stage"], "origin": s.get("origin"), "how": s["how"], "steps": s["steps"], "last": s["history"][-1] if s["history"] else {}, "scores": s["scores"]} for s in stages],
        "candidate": candidate,
        "content_hash": ModelRegistry().get(candidate).content_hash,
        "scores": scores,
        "baseline": {b["name"]: b["score"] for b in report["baseline"]},
        "champion": {b["name"]: b["score"] for b in champion["benchmarks"]} if champion else None,
        "verdict": decision.verdict,
        "promoted": promoted,
        "endpoint": endpoint,
        "contact_sheet": log_store().url(report["contact_sheet_key"]),
        "flow_run": f"{get_settings().prefect_ui_url}/runs/flow-run/{flow_run.id}",
    }


def _job(params: Params, step: str, module: str, inputs: dict, force: bool, log) -> dict:
    return _run(_spec(params, step, module, inputs), force, log)


def _spec(params: Params, step: str, module: str, inputs: dict) -> JobSpec:
    return JobSpec(step, module, inputs | {"seed": params.seed, "code": _code()}, alone="training" if module in TRAINS else "")


def _run(spec: JobSpec, force: bool, log) -> dict:
    outcome = run_job(spec, on_log=log, force=force, owner=str(flow_run.id or ""))
    log(f"{spec.step}: {outcome.how}" + (f" in {outcome.seconds:.0f} s" if outcome.seconds else ""))
    return outcome.result | {"how": outcome.how}
