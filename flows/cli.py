"""`unimed`: the front door to the same flows that Prefect schedules."""

from pathlib import Path
from typing import Annotated

import typer

from corpus.readers import FORMATS
from flows import console
from flows.console import JSON

app = typer.Typer(help="Retrain, judge, ship and watch UniMedVL.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(help="Corpus sources and releases.", no_args_is_help=True)
models = typer.Typer(help="Model versions.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(models, name="models")
Json = Annotated[bool, JSON]


def _needs_stack() -> None:
    """Refuse early, and tell libraries where things are."""
    from infra.settings import get_settings
    from infra.stack import Stack

    down = [service.name for service in Stack().status() if not service.running]
    if down:
        raise console.fail(f"{', '.join(down)} not running; start the stack with `unimed up`")
    get_settings().export()


@app.command()
def doctor(json: Json = False) -> None:
    """Check this machine and this checkout; name the mend of whatever is wrong."""
    from infra.doctor import examine
    from infra.settings import get_settings
    from ray_jobs.params import load_params

    checks = examine(lambda: load_params(get_settings().params_file))
    rows = [["ok" if c.ok else "WRONG", c.name, c.detail, "" if c.ok else c.mend] for c in checks]
    console.show([vars(c) for c in checks], json, lambda: console.table(["", "check", "found", "mend"], rows))
    raise typer.Exit(console.DONE if all(c.ok for c in checks) else console.FAILED)


@app.command()
def up(json: Json = False) -> None:
    """Start S3, Prefect, Ray and the worker, all on loopback; what runs already stays."""
    from infra.stack import Stack

    stack = Stack()
    stack.up(console.progress)
    _status(stack, json)


@app.command()
def down(json: Json = False) -> None:
    """Stop everything `unimed up` started; data stays."""
    from infra.stack import Stack

    stack = Stack()
    stack.down(console.progress)
    _status(stack, json)


@app.command()
def status(json: Json = False) -> None:
    """What runs, and where."""
    from infra.stack import Stack

    _status(Stack(), json)


def _status(stack, json: bool) -> None:
    found = stack.status()
    rows = [[s.name, "up" if s.running else "down", s.pid or "", s.url, s.log] for s in found]
    console.show([vars(s) for s in found], json, lambda: console.table(["service", "", "pid", "address", "log"], rows))


@app.command()
def demo(json: Json = False) -> None:
    """The whole loop: release, train, judge, serve, watch, and a retraining that drift starts."""
    from flows.demo import run

    result, text = run(console.progress)
    console.show(result, json, lambda: text)


@app.command()
def retrain(
    force: Annotated[bool, typer.Option(help="Train even where results are there.")] = False,
    refresh: Annotated[bool, typer.Option(help="Go on from the champion with the last stage only.")] = False,
    deploy: Annotated[bool, typer.Option(help="Let the endpoint serve the champion.")] = True,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the profile's training steps, for a quick look.")] = 1.0,
    json: Json = False,
) -> None:
    """Release, train, judge, promote and deploy; what is up to date is not done again. Exit 3: the gate said no."""
    _needs_stack()
    from flows.report import retraining
    from flows.retrain import retrain as flow

    result = flow(reason="by hand", refresh=refresh, force=force, deploy=deploy, share=share)
    console.show(result, json, lambda: retraining(result))
    raise typer.Exit({"pass": console.DONE, "fail": console.REFUSED}.get(result["verdict"], console.NO_EVIDENCE))


@app.command("eval")
def evaluate(
    version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion",
    release: Annotated[str | None, typer.Option(help="Corpus tag; the newest by default.")] = None,
    json: Json = False,
) -> None:
    """Score a model on a release's test split, with intervals and slices."""
    _needs_stack()
    from flows.report import evaluation
    from flows.steps import evaluate_version

    report = evaluate_version(version, release, console.progress)
    console.show(report, json, lambda: evaluation(report))


@app.command()
def plan(
    profile: Annotated[str, typer.Option(help="Name of a profile, or its file.")] = "unimedvl-14b",
    gpus: Annotated[int, typer.Option(min=1)] = 8,
    memory_gb: Annotated[float, typer.Option(help="Memory of one GPU.")] = 80,
    peak_tflops: Annotated[float, typer.Option(help="Dense bfloat16 peak of one GPU (H100: 989, A100: 312).")] = 989,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the peak that training reaches.")] = 0.45,
    json: Json = False,
) -> None:
    """What training a profile takes: parameters, memory a GPU, time of a step. Exit 3: it does not fit."""
    from flows.report import plans
    from model.plan import Hardware
    from model.plan import plan as plan_stage
    from ray_jobs.params import find_profile, load_params

    params, hardware = load_params(find_profile(profile)), Hardware(gpus, memory_gb, peak_tflops, mfu)
    found = [plan_stage(params.model, stage, hardware) for stage in params.curriculum]
    console.show([p.to_json() for p in found], json, lambda: plans(found, hardware))
    raise typer.Exit(console.DONE if all(p.fits for p in found) else console.REFUSED)


@app.command()
def promote(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "candidate", json: Json = False) -> None:
    """Make a version champion by hand; its gate decision is kept with who asked for it. Exit 3: the gate had said no."""
    _needs_stack()
    import getpass

    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    chosen = registry.resolve(version)
    decisions = registry.records(chosen, "gate")
    if not decisions:
        raise console.fail(f"{chosen} was never judged; `unimed retrain` does", console.NO_EVIDENCE)
    if decisions[-1]["verdict"] != "pass":
        raise console.fail(f"the gate said {decisions[-1]['verdict']} to {chosen}; `unimed models show {chosen}` tells why", console.REFUSED)
    registry.add_record(chosen, "approval", {"by": getpass.getuser()})
    alias = registry.promote(chosen)
    registry.add_record(chosen, "promotion", {"by": getpass.getuser()})
    console.show(vars(alias), json, lambda: f"champion is {alias.version}; `unimed deploy` serves it")


@app.command()
def rollback(json: Json = False) -> None:
    """Make the previous champion champion again, and serve it."""
    _needs_stack()
    from infra.registry import ModelRegistry

    alias = ModelRegistry().rollback()
    served = _deploy(alias.version)
    console.show(served, json, lambda: f"champion is {alias.version} again, served at {served['url']}")


@app.command()
def deploy(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion", json: Json = False) -> None:
    """Switch the endpoint to a version; no request is lost."""
    _needs_stack()
    from infra.registry import ModelRegistry

    served = _deploy(ModelRegistry().resolve(version))
    console.show(served, json, lambda: f"{served['version']}: {served['how']}, {served['url']}/v1")


def _deploy(version: str) -> dict:
    from infra.settings import get_settings
    from ray_jobs.params import load_params
    from ray_jobs.serve.deploy import deploy as switch

    return switch(version, load_params(get_settings().params_file).serving, console.progress)


@app.command()
def ask(image: Annotated[Path, typer.Argument(help="A PNG, JPEG … file.")], question: str, model: str = "unimedvl", json: Json = False) -> None:
    """Ask the served model about a picture."""
    from flows import client

    if not image.is_file():
        raise console.fail(f"{image} is no file", console.USAGE)
    answer = client.ask(image.read_bytes(), question, model)
    console.show({"answer": answer.text, "model": answer.model}, json, lambda: answer.text)


@app.command()
def draw(
    prompt: str,
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG file to write.")] = Path("drawing.png"),
    seed: int = 0,
    model: str = "unimedvl",
    json: Json = False,
) -> None:
    """Let the served model draw a picture."""
    from flows import client

    out.write_bytes(client.draw(prompt, seed, model))
    console.show({"file": str(out.resolve())}, json, lambda: str(out))


@app.command()
def drift(
    hours: Annotated[float | None, typer.Option(help="Length of the window; the profile's by default.")] = None,
    act: Annotated[bool, typer.Option(help="Let a confirmed drift start a retraining.")] = True,
    json: Json = False,
) -> None:
    """Compare the request log with the champion's reference window. Exit 4: too few requests."""
    _needs_stack()
    from datetime import UTC, datetime, timedelta

    from flows.watch_drift import watch_drift

    result = watch_drift(since=datetime.now(UTC) - timedelta(hours=hours) if hours else None, act=act)
    console.show(result, json, lambda: f"{result['verdict']} ({', '.join(result['drifted']) or 'no column'} drifted), retraining: {result['retraining']}\n{result['html'] or ''}")
    raise typer.Exit(console.NO_EVIDENCE if result["verdict"] == "insufficient" else console.DONE)


@data.command("add")
def data_add(
    path: Annotated[Path, typer.Argument(help="A file or folder; docs/data.md tells what is read of each format.")],
    name: Annotated[str | None, typer.Option(help="Source name; the folder's by default.")] = None,
    format: Annotated[str, typer.Option(help=f"auto (each file by the reader that recognises it), {', '.join(FORMATS)}.")] = "auto",
    license: Annotated[str | None, typer.Option(help="Licence, where the files name none.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality, where the files name none.")] = None,
    attribution: Annotated[str, typer.Option(help="Whom to name, where the files name nobody.")] = "",
    split: Annotated[str | None, typer.Option(help="train, val or test, where the files name none.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="our=theirs: a Parquet table's name of a column; may be given again.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder that picture paths start from; the file's own by default.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Cores of the cluster that examine the records; 0 for all, 1 for this process alone.")] = 0,
    json: Json = False,
) -> None:
    """Take in pictures with what is known of them. What cannot be used is kept aside with its reason."""
    named = dict(pair.split("=", 1) for pair in columns or [] if "=" in pair)
    if format not in ("auto", *FORMATS):
        raise console.fail(f"{format!r} is no format; these are: auto, {', '.join(FORMATS)}", console.USAGE)
    if len(named) != len(columns or []):
        raise console.fail("--columns takes our=theirs, each of ours once", console.USAGE)
    for place in (path, image_root):
        if place and not place.exists():
            raise console.fail(f"{place} does not exist", console.USAGE)
    _needs_stack()
    from ray_jobs.ingest import add_source

    said = {"license": license, "modality": modality, "attribution": attribution, "split": split, "columns": named, "image_root": image_root}
    record = add_source(path, name, format, workers, console.counter("records"), **said)
    told = f"{record['name']}: {record['how']}; {record['records']['seen']} records seen, {record['records']['kept']} kept, {record['records']['quarantined']} kept aside"
    console.show(record, json, lambda: told + f"\n{record['samples']['kept']} samples; kept aside: {record['reasons'] or 'nothing'}")


@data.command("release")
def data_release(force: bool = False, json: Json = False) -> None:
    """Make a corpus release, if any source changed."""
    _needs_stack()
    from flows.release_corpus import release_corpus
    from flows.report import release

    record = release_corpus(force=force)
    console.show(record, json, lambda: release(record))


@data.command("list")
def data_list(json: Json = False) -> None:
    """Sources taken in, and releases."""
    _needs_stack()
    from corpus import intake
    from flows.release_corpus import all_releases
    from infra.store import corpus_store

    store = corpus_store()
    sources, releases = intake.sources(store), all_releases(store)
    rows = [["source", s["name"], s["samples"]["kept"], s["records"]["quarantined"] + s["samples"]["quarantined"]] for s in sources]
    rows += [["release", r["tag"], r["card"]["samples"], r["card"]["quarantined"]] for r in releases]
    console.show({"sources": sources, "releases": releases}, json, lambda: console.table(["", "name", "samples", "kept aside"], rows))


@data.command("show")
def data_show(name: Annotated[str | None, typer.Argument(help="A source's name or a release's tag; the newest release by default.")] = None, json: Json = False) -> None:
    """What a source or release holds, and what was kept aside and why."""
    _needs_stack()
    from flows.report import kept_aside

    result = kept_aside(name)
    console.show(result, json, lambda: result["text"])


@data.command("diff")
def data_diff(before: str, after: Annotated[str | None, typer.Argument(help="The newest release by default.")] = None, json: Json = False) -> None:
    """What changed from one release to another, in words and numbers."""
    _needs_stack()
    from flows import history, report

    result = _found(lambda: history.diff(before, after))
    console.show(result, json, lambda: report.changes(result))


@data.command("trace")
def data_trace(
    sample: Annotated[str | None, typer.Argument(help="A sample's or record's id, such as MedNIST/mednist-Hand-000145.")] = None,
    patient: Annotated[str | None, typer.Option(help="A patient's key instead.")] = None,
    json: Json = False,
) -> None:
    """Every release, stage checkpoint and model that saw a sample or a patient."""
    if (sample is None) == (patient is None):
        raise console.fail("name a sample, or a patient with --patient", console.USAGE)
    _needs_stack()
    from flows import history, report

    result = _found(lambda: history.trace(sample, patient))
    console.show(result, json, lambda: report.trace(result))


@data.command("forget")
def data_forget(
    patient: Annotated[str, typer.Argument(help="The patient's key, or with --source the identifier the source knows the patient by.")],
    source: Annotated[str | None, typer.Option(help="The `source` of the patient's records.")] = None,
    purge: Annotated[bool, typer.Option(help="Also delete the old shards from S3; the releases that need them cannot be read again.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask before a purge.")] = False,
    json: Json = False,
) -> None:
    """Make a release without a patient, and name everything that saw the patient."""
    _needs_stack()
    from corpus.patients import patient_key
    from flows import history, report
    from ray_jobs.ingest import salt

    def confirm(tags: list[str]) -> bool:
        return yes or typer.confirm(f"{', '.join(tags) or 'no release'} cannot be pulled or trained on again, and can't be brought back. Purge?")

    key = patient_key(salt(), source, patient) if source else patient
    result = _found(lambda: history.forget(key, purge, confirm, console.progress))
    console.show(result, json, lambda: report.forgotten(result))


def _found(look):
    """What `look` finds; what is not there is told in a line."""
    try:
        return look()
    except LookupError as error:
        raise console.fail(str(error.args[0])) from None


@data.command("verify")
def data_verify(tag: Annotated[str | None, typer.Argument(help="A release's tag; the newest by default.")] = None, json: Json = False) -> None:
    """Read every shard of a release from S3 and compare it with its recorded hash."""
    _needs_stack()
    import hashlib

    from flows.report import find_release
    from infra.store import MissingObject, corpus_store

    record, store, bad = find_release(tag), corpus_store(), []
    for shard in record["shards"]:
        try:
            whole = hashlib.md5(store.get(shard["key"]), usedforsecurity=False).hexdigest() == shard["md5"]
        except MissingObject:
            whole = False
        bad += [] if whole else [shard["path"]]
    result = {"tag": record["tag"], "shards": len(record["shards"]), "damaged": bad}
    console.show(result, json, lambda: f"{record['tag']}: {len(record['shards'])} shards, " + (f"damaged or missing: {', '.join(bad)}" if bad else "all whole"))
    raise typer.Exit(console.FAILED if bad else console.DONE)


@models.command("list")
def models_list(json: Json = False) -> None:
    """All versions, with their aliases."""
    _needs_stack()
    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    aliases, versions = registry.aliases(), registry.list()
    named = {v.id: ", ".join(sorted(a for a, target in aliases.items() if target == v.id)) for v in versions}
    rows = [[v.id, named[v.id], v.created_at, v.lineage.get("release", ""), v.lineage.get("reason", "")] for v in versions]
    result = {"aliases": aliases, "versions": [vars(v) for v in versions]}
    console.show(result, json, lambda: console.table(["version", "aliases", "created", "release", "reason"], rows))


@models.command("show")
def models_show(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion", json: Json = False) -> None:
    """A version's manifest, lineage, evaluation and gate decisions."""
    _needs_stack()
    import json as js

    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    chosen = registry.resolve(version)
    result = vars(registry.get(chosen)) | {"records": registry.records(chosen)}
    console.show(result, json, lambda: js.dumps(result, indent=1))


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
