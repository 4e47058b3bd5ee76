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
    path: Annotated[Path, typer.Argument(parser=console.place, metavar="PATH", help="A file or folder; docs/data.md tells what is read of each format.")],
    name: Annotated[str | None, typer.Option(help="Source name; the folder's by default.")] = None,
    format: Annotated[str, typer.Option(help=f"auto (each file by the reader that recognises it), {', '.join(FORMATS)}.")] = "auto",
    license: Annotated[str | None, typer.Option(help="Licence, where the files name none.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality, where the files name none.")] = None,
    attribution: Annotated[str, typer.Option(help="Whom to name, where the files name nobody.")] = "",
    split: Annotated[str | None, typer.Option(help="train, val or test, where the files name none.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="our=theirs: a Parquet table's name of a column; may be given again.")] = None,
    image_root: Annotated[Path | None, typer.Option(parser=console.place, metavar="DIR", help="Folder that picture paths start from; the file's own by default.")] = None,
    replace: Annotated[bool, typer.Option(help="Put it in the stead of a source of this name that was taken in from elsewhere.")] = False,
    empty: Annotated[bool, typer.Option(help="Take it in though nothing is found any more of a source that had records.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Cores of the cluster that examine the records; 0 for all, 1 for this process alone.")] = 0,
    json: Json = False,
) -> None:
    """Take in pictures with what is known of them. What cannot be used is kept aside with its reason."""
    named = dict(pair.split("=", 1) for pair in columns or [] if "=" in pair)
    if format not in ("auto", *FORMATS):
        raise console.fail(f"{format!r} is no format; these are: auto, {', '.join(FORMATS)}", console.USAGE)
    if columns and format not in ("auto", "unimed-5m"):
        raise console.fail(f"--columns goes with --format unimed-5m, or auto: {format} has columns of its own", console.USAGE)
    if len(named) != len(columns or []):
        raise console.fail("--columns takes our=theirs, each of ours once", console.USAGE)
    for place in (path, image_root):
        if place and not place.exists():
            raise console.fail(f"{place} does not exist", console.USAGE)
    if image_root and not image_root.is_dir():
        raise console.fail(f"{image_root} is no folder that picture paths could start from", console.USAGE)
    console.needs_stack()
    console.results_only()
    from ray_jobs.ingest import BadSourceName, UnknownTerm, add_source

    said = {"license": license, "modality": modality, "attribution": attribution, "split": split, "columns": named, "image_root": image_root}
    try:
        record = add_source(path, name, format, workers, console.counter("records"), replace, empty, **said)
    except (BadSourceName, UnknownTerm) as error:
        raise console.fail(str(error), console.USAGE) from None
    told = f"{record['name']}: {record['how']}; {record['records']['seen']} records seen, {record['records']['kept']} kept, {record['records']['quarantined']} kept aside"
    console.show(record, json, lambda: told + f"\n{record['samples']['kept']} samples; kept aside: {record['reasons'] or 'nothing'}")


@app.command("release")
def data_release(force: Annotated[bool, typer.Option(help="Build it anew, checking each shard in the clone, though nothing changed.")] = False, json: Json = False) -> None:
    """Make a corpus release, if any source changed."""
    console.needs_stack()
    from flows.release_corpus import release_corpus
    from flows.report import release

    record = release_corpus(force=force)
    console.show(record, json, lambda: release(record))


@app.command("remove")
def data_remove(
    name: Annotated[str, typer.Argument(help="A source that was added.")],
    yes: Annotated[bool, typer.Option(help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Take a source out: the next release is without it. Releases that were made keep what they hold."""
    console.needs_stack()
    from corpus import taken_in
    from infra.store import corpus_store

    source = _found(lambda: taken_in.find(name, corpus_store()))
    if not yes:
        typer.confirm(f"{name}, {source['samples']['kept']} samples, will be in no later release. Remove it?", abort=True, err=True)
    taken_in.remove(name, corpus_store())
    console.show(source, json, lambda: f"{name} removed: {source['samples']['kept']} samples less in the next release; `unimed data add` brings it back")


@app.command("list")
def data_list(json: Json = False) -> None:
    """Sources taken in, and releases."""
    console.needs_stack()
    from corpus import taken_in
    from flows.releases import all_releases
    from infra.store import corpus_store

    store = corpus_store()
    sources, releases = taken_in.sources(store), all_releases(store)
    rows = [["source", s["name"], s["samples"]["kept"], s["records"]["quarantined"] + s["samples"]["quarantined"]] for s in sources]
    rows += [["release, purged" if "purged" in r else "release", r["tag"], r["card"]["samples"], r["card"]["quarantined"]] for r in releases]
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


@app.command("review")
def data_review(
    sample: Annotated[str | None, typer.Argument(help="A sample's or record's id; the whole queue, one after the other, by default.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="It belongs into the corpus.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="It does not.")] = False,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    reviewer: Annotated[str | None, typer.Option(help="Who decides; the user's name by default.")] = None,
    overrule: Annotated[bool, typer.Option(help="Replace another decision that is there.")] = False,
    size: Annotated[int, typer.Option(min=1, help="Cases of the queue.")] = 200,
    release: Annotated[str | None, typer.Option(help="A release's tag; the newest by default.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Tell what waits, and ask nothing.")] = False,
    pictures: Annotated[Path | None, typer.Option(parser=console.place, metavar="DIR", help="Where to write the pictures; they may name patients. A folder that is deleted in the end, by default.")] = None,
    json: Json = False,
) -> None:
    """Accept or reject what quality control is not sure of, and a sample of what it kept. It takes effect at the next release."""
    if accept and reject or (accept or reject) and not sample:
        raise console.fail("name a sample and one of --accept and --reject", console.USAGE)
    console.needs_stack()
    from corpus.review import AlreadyDecided
    from flows import report, review

    desk = _found(lambda: review.Review(release))
    try:
        if accept or reject:
            made = desk.decide(_found(lambda: desk.case(sample)), accept, reviewer, note, overrule)
            console.show(made, json, lambda: f"{made['record']}: {'accepted' if made['accepted'] else 'rejected'} by {made['who']} ({made['how']}); the next release follows it")
            return
        cases = [_found(lambda: desk.case(sample))] if sample else desk.queue(size)
        if listed or json:
            rows = [case.to_json() | ({"picture": str(review.save_picture(desk.samples(case), pictures) or "")} if pictures else {}) for case in cases]
            console.show(rows, json, lambda: report.cases(rows))
            return
        _ask(desk, cases, reviewer, note, overrule, pictures)
    except AlreadyDecided as error:
        raise console.fail(str(error), console.REFUSED) from None


def _ask(desk, cases: list, reviewer: str | None, note: str, overrule: bool, pictures: Path | None) -> None:
    """Show each case and ask for a word; pictures go when all is said."""
    import signal
    import tempfile

    from corpus.review import AlreadyDecided
    from flows import review

    # A terminal that is closed is an interruption too: at once ended, the process would leave the pictures.
    for ending in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(ending) == signal.SIG_DFL:
            signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="unimed-review-") as private:
        for number, case in enumerate(cases, start=1):
            samples = desk.samples(case)
            typer.echo(f"\n{number} of {len(cases)}: {console.printable(case.record)} ({case.modality}, {'kept' if case.kept else 'kept aside'})\n{case.reason}: {case.detail}")
            typer.echo(f"{review.save_picture(samples, pictures or Path(private)) or 'no picture'}\n{review.words(samples)}")
            word = ""
            while word not in ("a", "r", "s", "q"):
                word = typer.prompt("accept, reject, skip or quit (a/r/s/q)").strip().lower()[:1]
            if word == "q":
                return
            if word != "s":
                try:
                    desk.decide(case, word == "a", reviewer, note or typer.prompt("note", default="", show_default=False), overrule)
                except AlreadyDecided as error:
                    typer.echo(f"unimed: {error}", err=True)


@app.command("trace")
def data_trace(
    sample: Annotated[str | None, typer.Argument(help="A sample's or record's id, such as MedNIST/mednist-Hand-000145.")] = None,
    patient: Annotated[str | None, typer.Option(help="A patient's key instead.")] = None,
    json: Json = False,
) -> None:
    """Every release, stage checkpoint and model that saw a sample or a patient."""
    if (sample is None) == (patient is None) or not (sample or patient):
        raise console.fail("name a sample, or a patient with --patient", console.USAGE)
    console.needs_stack()
    from flows import history, report

    result = _found(lambda: history.trace(sample, patient))
    console.show(result, json, lambda: report.trace(result))


@app.command("forget")
def data_forget(
    patient: Annotated[str, typer.Argument(help="The patient's key, or with --source the identifier the source knows the patient by (of DICOM the PatientID, or 'ID|ISSUER').")],
    source: Annotated[str | None, typer.Option(help="The `source` of the patient's records, with which their ids begin.")] = None,
    purge: Annotated[bool, typer.Option(help="Also delete the old shards from S3; the releases that need them cannot be read again.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask before a purge.")] = False,
    json: Json = False,
) -> None:
    """Make a release without a patient, and name everything that saw the patient."""
    from corpus.patients import is_key, normal, patient_key

    if not normal(patient):
        raise console.fail("the patient's key or identifier is empty", console.USAGE)
    if not (source or is_key(patient)):
        raise console.fail("a patient's key is 20 hex digits, as `unimed data trace` shows it; what a source calls the patient needs --source", console.USAGE)
    console.needs_stack()
    from flows import forgetting, report
    from ray_jobs.ingest import salt

    def confirm(tags: list[str]) -> bool:
        lost = f"{', '.join(tags)} cannot be pulled or trained on again, and" if tags else "every release stays whole; what is deleted"
        return yes or typer.confirm(f"{lost} can't be brought back. Purge?")

    key = patient_key(salt(), source, patient) if source else patient
    try:
        result = forgetting.forget(key, purge, confirm, console.progress)
    except LookupError as error:
        raise console.fail(f"{error.args[0]}{forgetting.strange(source) if source else ''}") from None
    console.show(result, json, lambda: report.forgotten(result))


def _found(look):
    """What `look` finds; what is not there is told in a line."""
    try:
        return look()
    except LookupError as error:
        raise console.fail(str(error.args[0])) from None


@app.command("verify")
def data_verify(tag: Annotated[str | None, typer.Argument(help="A release's tag; the newest by default.")] = None, json: Json = False) -> None:
    """Read every file of a release from S3 and compare it with its recorded hash."""
    console.needs_stack()
    from flows.releases import not_whole
    from flows.report import find_release
    from infra.store import corpus_store

    record = _found(lambda: find_release(tag))
    gone, bad = list(record.get("purged", {}).get("files", ())), not_whole(record, corpus_store())
    result = {"tag": record["tag"], "shards": len(record["shards"]), "purged": gone, "damaged": bad}
    told = f"damaged or missing: {', '.join(bad)}" if bad else "all others whole" if gone else "all whole"
    console.show(result, json, lambda: f"{record['tag']}: {len(record['shards'])} files of shards and what lies beside them, " + (f"{len(gone)} of them purged, " if gone else "") + told)
    raise typer.Exit(console.FAILED if bad else console.DONE)
