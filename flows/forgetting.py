"""A patient who must be forgotten: a release without the patient, and on purge all that holds the patient gone from S3 and this machine.

Every step finds its work by looking, not from what the step before it said: stopped anywhere, the same command completes it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from corpus import forgotten, index, review, taken_in
from corpus.shards import DATA, INDEX
from flows.history import seen, whole_index
from flows.releases import all_releases, make_release
from infra.corpus_repo import CorpusRepo, object_key
from infra.lease import Lease
from infra.records import utc_now
from infra.settings import get_settings
from infra.stack import Stack
from infra.store import MissingObject, ObjectStore, PreconditionFailed, corpus_store


# For another patient who is being forgotten.
WAIT_S = 600


class StillThere(RuntimeError):
    """The newest release holds the patient still, or something does after a purge."""


def forget(patient: str, purge: bool, confirm: Callable[[list[str]], bool], on_line: Callable[[str], None]) -> dict:
    """A release without a patient, which only its licences and splits can prevent, and on `purge` the old shards gone from S3. `left` are objects that hold the patient afterwards.

    Args:
        patient: the patient's key.
        confirm: asked with the tags that a purge breaks; it goes on only if this says True.

    Raises:
        LookupError: nothing holds the patient, who is kept aside all the same from now on.
        StillThere: the patient is of a built-in source, or another command wrote something with the patient during the purge, or deleted what was looked at.
        LeaseHeld: another patient is still being forgotten, or a release made.
        SourceConflict, RepositoryError: see `corpus.forgotten.without_patient` and `flows.releases.make_release`.
    """
    # Each of two purges would delete what the other is about to read.
    with Lease("forget", holder=patient, wait_s=WAIT_S, on_wait=on_line):
        try:
            return _forget(patient, purge, confirm, on_line)
        except MissingObject as error:
            raise StillThere(f"{error}: where another command deleted it meanwhile, run this one again") from None


def _forget(patient: str, purge: bool, confirm: Callable[[list[str]], bool], on_line: Callable[[str], None]) -> dict:
    from ray_jobs.params import load_params

    store, params = corpus_store(), load_params(get_settings().params_file).corpus
    keys = forgotten.known_as(patient, store)
    if others := keys - {patient}:
        on_line(f"patient {patient} counts as one with {len(others)} others of a group: all are forgotten")
    again = keys <= forgotten.patients(store)
    forgotten.remember(keys, store)
    for source in taken_in.sources(store):
        _, count = forgotten.without_patient(source["name"], keys, params, store)
        if count:
            on_line(f"{source['name']}: {count} shards written anew")
    records = forgotten.records_of(keys, store)
    if count := review.forget(store, keys, records):
        on_line(f"{count} decisions on the patient's records deleted")
    if not (again or records or seen(patient=keys)["releases"] or _look(keys, store).anything()):
        raise LookupError(f"no source and no release holds patient {patient}; should a source bring the patient, the patient is kept aside")
    # The patient goes, whatever is wrong with what remains.
    release = make_release(force=False, on_line=on_line, enforced="safety")
    checks = release["card"]["expectations"]
    if broken := checks["of"] - checks["held"]:
        on_line(f"{release['tag']} breaks {broken} of {checks['of']} expectations, which `unimed data show {release['tag']}` leads to; the next ordinary release must hold them")
    if _shards(release, keys):
        raise StillThere(f"{release['tag']} holds patient {patient} still, who is of no source that was added: take the built-in one out of sources.yaml")
    # Another release may have come to its end meanwhile: what counts is what is there now.
    known, old = seen(patient=keys), _look(keys, store)
    purged = old.anything() and purge and confirm(sorted(old.released))
    if purged:
        review.unpin(store)
        _purge(keys, old, known["releases"], store)
        if left := _look(keys, store).anything():
            raise StillThere(f"{left} objects and files hold patient {patient} again, which another command wrote meanwhile: run this one again")
    if purge and (purged or not old.anything()):
        _rewrite(on_line)
    return {"patient": patient, "linked": sorted(others), "release": release["tag"], **known, "purged": old.keys if purged else [], "left": [] if purged else old.keys}


def strange(source: str) -> str:
    """What to add where no record is of this source, as its patients would have other keys; nothing where one is."""
    store = corpus_store()
    known = sorted({name for taken in taken_in.sources(store) for name in taken["sources"]}.union(*(made["card"].get("by_source", {}) for made in all_releases(store))))
    return "" if source in known else f". No record is of source {source!r}; records there are of {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class _Old:
    """What holds a patient: files of releases by tag, hashes of what no release names, the keys of all objects on S3, and files of the clone."""

    released: dict[str, list[dict]]
    unrecorded: set[str]
    keys: list[str]
    here: list[Path]

    def anything(self) -> int:
        """How many objects and files."""
        return len(self.keys) + len(self.here)

    def md5s(self) -> set[str]:
        return self.unrecorded | {file["md5"] for files in self.released.values() for file in files}


def _look(patient: set[str], store: ObjectStore) -> _Old:
    """All that holds a patient now, by any of the patient's keys."""
    released, unrecorded = _released(patient), _unrecorded(patient, store)
    there = {object_key(file["md5"]) for files in released.values() for file in files} | {*map(object_key, unrecorded), *forgotten.holding(patient, store)}
    return _Old(released, unrecorded, [key for key in sorted(there) if store.exists(key)], [path for path in CorpusRepo().parquet() if _holds(path, patient)])


def _holds(file: Path | bytes, patient: set[str]) -> bool:
    try:
        return not patient.isdisjoint(index.patients(file))
    except (pa.ArrowException, OSError):
        # Nobody can tell what is in it: a process died while it wrote the file, or it was damaged since.
        return isinstance(file, bytes) or file.exists()


def _released(patient: set[str]) -> dict[str, list[dict]]:
    """Files of releases that hold a patient; of one that was purged of the patient, those that its record gives up."""
    found = {}
    for release in all_releases(corpus_store()):
        purged = release.get("purged", {})
        gone, shards = purged["files"] if not patient.isdisjoint(purged.get("patients", ())) else (), _shards(release, patient)
        files = [file for file in release["shards"] if file["path"] in gone or _name(file) in shards]
        found |= {release["tag"]: files} if files else {}
    return found


def _shards(release: dict, patient: set[str]) -> set[str]:
    """Shards of a release that hold a patient: rows that do not count are bytes as well."""
    table = whole_index(release, uncounted=True)
    return {*table.filter(pc.is_in(table["patient"], pa.array(sorted(patient))))["shard"].unique().to_pylist()}


def _name(file: dict) -> str:
    return file["path"].removeprefix("shards/").removesuffix(DATA).removesuffix(".index")


def _unrecorded(patient: set[str], store: ObjectStore) -> set[str]:
    """Hashes of objects with the patient that releases left which came to nothing: no record names them."""
    named, prefix = {file["key"] for release in all_releases(store) for file in release["shards"]}, f"{object_key('').rstrip('/')}/"
    lost = [entry.key for entry in store.list(prefix) if entry.key not in named and not entry.key.endswith(".dir")]
    return {key.removeprefix(prefix).replace("/", "") for key in lost if (data := store.get(key))[:4] == b"PAR1" and _holds(data, patient)}


def _purge(patient: set[str], old: _Old, releases: list[dict], store: ObjectStore) -> None:
    """Delete what is there on S3, and what this machine has of them. Before anything goes, the record of each release says so."""
    for tag, files in old.released.items():
        splits = {key: found["splits"] for found in releases if found["tag"] == tag for key in found["patients"]}
        _mark(tag, dict.fromkeys(patient, []) | splits, files, store)
    for path in old.here:
        path.unlink(missing_ok=True)
    for path in (get_settings().state_dir / "cache" / "shards").glob("*"):
        # What a process that was killed had not written to its end is named so after a dot.
        if path.name.removeprefix(".").partition(".")[0] in old.md5s():
            path.unlink(missing_ok=True)
    for key in old.keys:
        store.delete(key)


def _rewrite(on_line: Callable[[str], None]) -> None:
    """Take what was deleted off the store's disk, even if nothing was left to delete: the command before this one may have been stopped here."""
    if not Stack().rewrite_without_deleted():
        on_line("bytes of what was deleted are still on the store's disk, which may be full, in use or read-only (`unimed doctor`): run this one again when that is mended")


def _mark(tag: str, splits: dict[str, list[str]], files: list[dict], store: ObjectStore) -> None:
    """Write into a release's record which shards are given up, and in which splits it held the patient, by key.

    Their indexes give way to ones that do not tell of the patient: where the others were can still be traced.
    """
    key, paths = f"releases/{tag.removeprefix('corpus/')}.json", {file["path"] for file in files}
    while True:
        record, etag = store.get_json_with_etag(key)
        before = record.get("purged", {"files": [], "patients": {}})
        try:
            told = {file["path"]: _untold(file, {*splits}, store) for file in record["shards"] if file["path"] in paths and file["path"].endswith(INDEX)}
            purged = {"at": utc_now(), "files": sorted({*before["files"], *(paths - told.keys())}), "patients": splits | before["patients"]}
            store.put_json(key, record | {"purged": purged, "shards": [told.get(file["path"], file) for file in record["shards"]]}, if_match=etag)
            return
        except (MissingObject, PreconditionFailed):
            # Another purge put its own indexes into the record meanwhile: they are taken from there. What is missing else is told.
            if store.get_with_etag(key)[1] == etag:
                raise


def _untold(file: dict, patient: set[str], store: ObjectStore) -> dict:
    """The file of a release's index, put on S3 without the patient."""
    data = index.without_patient(store.get(file["key"]), patient)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    store.put(object_key(md5), data)
    return file | {"md5": md5, "key": object_key(md5), "size": len(data)}
