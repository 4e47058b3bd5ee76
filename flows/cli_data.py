"""`unimed data`: sources and releases of the corpus."""

from pathlib import Path
from typing import Annotated

import typer

from corpus.readers import FORMATS
from flows import console
from flows.console import Json

app = typer.Typer(help="Corpus sources and releases.", no_args_is_help=True)


@app.command("add")
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
    console.needs_stack()
    from ray_jobs.ingest import add_source

    said = {"license": license, "modality": modality, "attribution": attribution, "split": split, "columns": named, "image_root": image_root}
    record = add_source(path, name, format, workers, console.counter("records"), **said)
    told = f"{record['name']}: {record['how']}; {record['records']['seen']} records seen, {record['records']['kept']} kept, {record['records']['quarantined']} kept aside"
    console.show(record, json, lambda: told + f"\n{record['samples']['kept']} samples; kept aside: {record['reasons'] or 'nothing'}")


@app.command("release")
def data_release(force: bool = False, json: Json = False) -> None:
    """Make a corpus release, if any source changed."""
    console.needs_stack()
    from flows.release_corpus import release_corpus
    from flows.report import release

    record = release_corpus(force=force)
    console.show(record, json, lambda: release(record))


@app.command("list")
def data_list(json: Json = False) -> None:
    """Sources taken in, and releases."""
    console.needs_stack()
    from corpus import intake
    from flows.release_corpus import all_releases
    from infra.store import corpus_store

    store = corpus_store()
    sources, releases = intake.sources(store), all_releases(store)
    rows = [["source", s["name"], s["samples"]["kept"], s["records"]["quarantined"] + s["samples"]["quarantined"]] for s in sources]
    rows += [["release", r["tag"], r["card"]["samples"], r["card"]["quarantined"]] for r in releases]
    console.show({"sources": sources, "releases": releases}, json, lambda: console.table(["", "name", "samples", "kept aside"], rows))


@app.command("show")
def data_show(name: Annotated[str | None, typer.Argument(help="A source's name or a release's tag; the newest release by default.")] = None, json: Json = False) -> None:
    """What a source or release holds, and what was kept aside and why."""
    console.needs_stack()
    from flows.report import kept_aside

    result = kept_aside(name)
    console.show(result, json, lambda: result["text"])


@app.command("diff")
def data_diff(before: str, after: Annotated[str | None, typer.Argument(help="The newest release by default.")] = None, json: Json = False) -> None:
    """What changed from one release to another, in words and numbers."""
    console.needs_stack()
    from flows import history, report

    result = _found(lambda: history.diff(before, after))
    console.show(result, json, lambda: report.changes(result))


@app.command("trace")
def data_trace(
    sample: Annotated[str | None, typer.Argument(help="A sample's or record's id, such as MedNIST/mednist-Hand-000145.")] = None,
    patient: Annotated[str | None, typer.Option(help="A patient's key instead.")] = None,
    json: Json = False,
) -> None:
    """Every release, stage checkpoint and model that saw a sample or a patient."""
    if (sample is None) == (patient is None):
        raise console.fail("name a sample, or a patient with --patient", console.USAGE)
    console.needs_stack()
    from flows import history, report

    result = _found(lambda: history.trace(sample, patient))
    console.show(result, json, lambda: report.trace(result))


@app.command("forget")
def data_forget(
    patient: Annotated[str, typer.Argument(help="The patient's key, or with --source the identifier the source knows the patient by.")],
    source: Annotated[str | None, typer.Option(help="The `source` of the patient's records.")] = None,
    purge: Annotated[bool, typer.Option(help="Also delete the old shards from S3; the releases that need them cannot be read again.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask before a purge.")] = False,
    json: Json = False,
) -> None:
    """Make a release without a patient, and name everything that saw the patient."""
    console.needs_stack()
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


@app.command("verify")
def data_verify(tag: Annotated[str | None, typer.Argument(help="A release's tag; the newest by default.")] = None, json: Json = False) -> None:
    """Read every shard of a release from S3 and compare it with its recorded hash."""
    console.needs_stack()
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
