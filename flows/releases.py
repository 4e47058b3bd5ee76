"""Releases of the corpus: made from its sources, and found again."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.records import digest, read_yaml, source_fingerprint, to_yaml, utc_now


class ReleaseConflict(RuntimeError):
    """Another release was made at the same moment."""


def make_release(force: bool, on_line: Callable[[str], None], wait_s: float = 600, enforced: str | None = None) -> dict:
    """Build, check, push and tag what the sources give; the record written last makes it visible.

    Killed at any point, or without its store, it leaves no release; run again, it goes on.

    Args:
        force: make one even if nothing changed, and look at all of its shards again.
        wait_s: how long to wait for a release that is being made.
        enforced: `corpus.expectations.enforced` for this release alone, if not as in params.

    Raises:
        LeaseHeld: another release is still being made.
        ReleaseConflict: another release came first though this one held the lease, as after a long pause.
        RepositoryError: the release was refused or a command failed.
        BadSources: the checkout's sources.yaml lists no sources.
        StoreUnavailable: S3 does not answer.
    """
    from infra.corpus_repo import CorpusRepo
    from infra.lease import Lease
    from infra.settings import get_settings
    from infra.store import corpus_store

    store, settings = corpus_store(), get_settings()
    inputs, repo = _inputs(store, settings), CorpusRepo(settings)
    if not force and (found := _up_to_date(inputs, all_releases(store))):
        return found
    with repo.held(wait_s), Lease("release", holder=inputs["digest"], wait_s=wait_s, on_wait=on_line):
        # While this one waited, another may have been made, or a patient been forgotten; and code that is not committed builds nothing.
        releases = all_releases(store)
        repo.prepare(released=[r["tag"] for r in releases])
        inputs = _inputs(store, settings, repo.path)
        if not force and (found := _up_to_date(inputs, releases)):
            return found
        return _release(repo, store, inputs, releases, force, on_line, enforced) | {"how": "released"}


def _inputs(store, settings, code: Path | None = None) -> dict:
    """Sources and the digest of all that decides what a release holds; `code` is the folder of that which builds it, by default this process's."""
    from corpus import review, taken_in
    from ray_jobs.params import load_params

    sources = _sources(settings.repo_dir, taken_in.sources(store))
    corpus = load_params(settings.params_file).corpus.model_dump(mode="json")
    decisions = review.pinned(store)
    inputs = {"sources": sources, "decisions": decisions, "params": corpus, "code": source_fingerprint("corpus", root=code)}
    return {"sources": sources, "decisions": decisions, "digest": digest(inputs)}


def _up_to_date(inputs: dict, releases: list[dict]) -> dict | None:
    return releases[-1] | {"how": "up to date"} if releases and releases[-1]["inputs_digest"] == inputs["digest"] else None


def _release(repo, store, inputs: dict, releases: list[dict], force: bool, on_line: Callable[[str], None], enforced: str | None) -> dict:
    from corpus import data_docs
    from infra.store import PreconditionFailed

    parent, tag = (releases[-1] if releases else None), _next_tag(releases)
    repo.write("sources.yaml", _yaml(inputs, parent))
    if enforced:
        repo.write("params.yaml", _enforcing(enforced, repo.path / "params.yaml"))
    there = {file["key"] for file in parent["shards"]} if parent and "purged" not in parent else set()
    files = _built(repo, set() if force else there, on_line)
    card = repo.read_json("data/release/card.json")
    repo.push(files.values(), there, _origins(inputs["sources"]))
    repo.commit_and_tag(f"Release {card['samples']} samples from {len(inputs['sources'])} sources", tag)
    number = tag.removeprefix("corpus/")
    docs = f"data-docs/{number}-{digest(card)[:8]}.html"
    store.put(docs, data_docs.page(tag, repo.read_json("data/release/validation.json")).encode())
    record = {
        "tag": tag,
        "parent": parent["tag"] if parent else None,
        "created_at": max([utc_now(), *(r["created_at"] for r in releases[-1:])]),
        "inputs_digest": inputs["digest"],
        "corpus_commit": repo.commit(),
        "dvc_hash": repo.dvc_hash(),
        "card": card,
        "changed": _changed(parent, card),
        "quarantine_key": files["quarantine.parquet"]["key"],
        "doubts_key": files["doubts.parquet"]["key"],
        "removed": files["removed.json"],
        "data_docs_key": docs,
        "shards": [file for path, file in files.items() if path.startswith("shards/")],
    }
    try:
        store.put_json(f"releases/{number}.json", record, if_absent=True)
    except PreconditionFailed:
        repo.drop([tag])
        raise ReleaseConflict(f"another release was made as {tag} at the same moment; run this one again to release on top of it") from None
    return record


def _built(repo, known: set[str], on_line: Callable[[str], None]) -> dict[str, dict]:
    """The files of the release when it is built: what lay damaged in the clone goes, and is brought again.

    Args:
        known: keys of files that were looked at before. DVC hashes what changed, so that a damaged one has another key.
    """
    from infra.corpus_repo import OUT, RepositoryError

    for _ in range(2):
        _build(repo, on_line)
        files = repo.files()
        if not (damaged := _damaged(repo.path / OUT, [file for path, file in files.items() if path.startswith("shards/") and file["key"] not in known])):
            return files
        repo.discard(file["md5"] for file in damaged)
        for file in damaged:
            on_line(f"{file['path']} is damaged in {repo.path}")
            (repo.path / OUT / file["path"]).unlink()
    raise RepositoryError(f"release refused: shards are damaged in {repo.path} as soon as they are there; is the disk whole?")


def _damaged(folder: Path, files: list[dict]) -> list[dict]:
    """Those whose bytes in the folder are not what they are named by."""
    from corpus.release import AT_ONCE
    from corpus.stored import as_named

    with ThreadPoolExecutor(AT_ONCE) as pool:
        whole = pool.map(lambda file: as_named(file["path"], (folder / file["path"]).read_bytes()), files)
        return [file for file, good in zip(files, whole) if not good]


def _build(repo, on_line: Callable[[str], None]) -> None:
    """The clone's own code builds the release: here, if this process runs that very code, else through `dvc repro`."""
    from infra.corpus_repo import RepositoryError
    from ray_jobs.ingest import build_release

    if not repo.runs_our_code("corpus", "infra", "ray_jobs"):
        return repo.reproduce(on_line)
    try:
        build_release(repo.path / "sources.yaml", repo.path / "data/release", repo.path / "params.yaml", on_line)
    except ValueError as error:
        raise RepositoryError(f"release refused: {error}") from None
    repo.take_up()


def _origins(sources: list) -> dict[str, str]:
    """By path in the release, the objects that shards of sources taken in are copies of. A built-in source is a name alone."""
    from corpus.shards import DATA, INDEX

    taken_in = [shard for source in sources if isinstance(source, dict) for shard in source.get("shards", ())]
    return {f"shards/{shard['shard']}{suffix}": shard[key] for shard in taken_in for suffix, key in ((DATA, "key"), (INDEX, "index_key"))}


def _next_tag(releases: list[dict]) -> str:
    """The next of today. Whoever's clock went ahead, a release is not before the one that it follows."""
    tags = [_numbered(r["tag"]) for r in releases]
    day = max([f"corpus/{utc_now()[:10]}", *(day for day, _ in tags[-1:])])
    return f"{day}.{max((number for on, number in tags if on == day), default=0) + 1}"


def _numbered(tag: str) -> tuple[str, int]:
    """The day of a release's tag, and which of that day's it is."""
    day, _, number = tag.rpartition(".")
    return day, int(number)


def all_releases(store) -> list[dict]:
    """All releases, oldest first.

    Raises:
        CorruptObject: the record of one is damaged.
    """
    from infra.store import READ_AT_ONCE

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        records = list(pool.map(lambda entry: store.get_json(entry.key, ("tag", "created_at")), store.list("releases/")))
    return sorted(records, key=lambda r: (r["created_at"], _numbered(r["tag"])))


def not_whole(release: dict, store) -> list[str]:
    """Paths of a release's files that S3 lacks, or has otherwise than they were released. What was purged is not looked for."""
    from infra.corpus_repo import object_key

    gone, listed = release.get("purged", {}).get("files", ()), release["dvc_hash"]
    # DVC's list of the folder, which `dvc pull` begins with; what is no shard is recorded there alone.
    listing = {"path": "list of files", "key": object_key(listed), "md5": listed.removesuffix(".dir")}
    files = [release["removed"], *(file for file in release["shards"] if file["path"] not in gone), listing]
    if _is_whole(listing, store):
        others = {entry["relpath"]: entry["md5"] for entry in json.loads(store.get(listing["key"])) if not entry["relpath"].startswith("shards/")}
        files = [{"path": path, "key": object_key(md5), "md5": md5} for path, md5 in others.items() if path != release["removed"]["path"]] + files
    docs = release.get("data_docs_key")
    return [file["path"] for file in files if not _is_whole(file, store)] + ([docs] if docs and not store.exists(docs) else [])


def _is_whole(file: dict, store) -> bool:
    from corpus.stored import as_named
    from infra.store import MissingObject

    try:
        data = store.get(file["key"])
    except MissingObject:
        return False
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == file["md5"] and (not file["path"].startswith("shards/") or as_named(file["path"], data))


def _sources(repo, taken_in: list[dict]) -> list:
    """The checkout's sources.yaml, and after them what was added, pinned by content."""
    from corpus import release

    return release.listed(repo / "sources.yaml") + [{key: source[key] for key in ("name", "shards", "held", "stale", "removed", "quarantine") if key in source} for source in taken_in]


def _yaml(inputs: dict, parent: dict | None) -> str:
    """sources.yaml of the clone; what the parent held is what balance is compared with."""
    last = {"last_release": {"tag": parent["tag"], "by_source": parent["card"].get("by_source", {})}} if parent else {}
    decided = {"decisions": inputs["decisions"]} if inputs["decisions"] else {}
    return to_yaml({"sources": inputs["sources"]} | decided | last)


def _enforcing(enforced: str, params_file: Path) -> str:
    """A params.yaml by which these expectations are enforced."""
    params = read_yaml(params_file)
    corpus = params.get("corpus", {})
    return to_yaml(params | {"corpus": corpus | {"expectations": corpus.get("expectations", {}) | {"enforced": enforced}}})


def _changed(parent: dict | None, card: dict) -> dict[str, int]:
    """Samples gained or lost by source since the parent release."""
    before, now = (parent["card"]["sources"] if parent else {}), card["sources"]
    return {s: now.get(s, 0) - before.get(s, 0) for s in sorted({*before, *now}) if now.get(s, 0) != before.get(s, 0)}
