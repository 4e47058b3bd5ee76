"""Where a sample or a patient has been: releases, stage checkpoints and models; and making them forget a patient."""

from corpus import changes, intake
from corpus.reader import release_index
from flows.releases import all_releases, make_release
from flows.report import find_release
from infra.records import utc_now
from infra.settings import get_settings
from infra.store import MissingObject, ObjectStore, corpus_store, log_store


def diff(before: str, after: str) -> dict:
    """What changed between two releases."""
    first, second = find_release(before), find_release(after)
    return {"before": first["tag"], "after": second["tag"], **changes.compare(_index(first), _index(second)).to_json()}


def trace(sample: str | None = None, patient: str | None = None) -> dict:
    """Every release, stage checkpoint and model that saw a sample (its id, or its record's) or a patient (its key).

    Raises:
        LookupError: no release holds it.
    """
    releases = [found for release in all_releases(corpus_store()) if (found := _found(release, sample, patient))]
    if not releases:
        raise LookupError(f"no release holds {sample or f'patient {patient}'}; sample ids and patient keys are those of the shards")
    tags = {found["tag"]: found["splits"] for found in releases}
    return {"releases": releases, "checkpoints": _checkpoints(tags), "models": _models(tags)}


def _found(release: dict, sample: str | None, patient: str | None) -> dict | None:
    if "purged" in release:
        return None
    table = _index(release).select(["id", "patient", "split", "shard"])
    rows = [r for r in table.to_pylist() if r["patient"] == patient or sample in (r["id"], r["id"].rpartition("#")[0])]
    if not rows:
        return None
    return {
        "tag": release["tag"],
        "samples": sorted(r["id"] for r in rows),
        "splits": sorted({r["split"] for r in rows}),
        "patients": sorted({r["patient"] for r in rows}),
        "shards": sorted({r["shard"] for r in rows}),
    }


def _checkpoints(tags: dict[str, list[str]]) -> list[dict]:
    """Stage checkpoints made from these releases: those saw what was in training, and scored what was not."""
    store, found = log_store(), []
    for entry in store.list("jobs/"):
        if entry.key.endswith("/result.json") and "stage" in (result := store.get_json(entry.key)["result"]):
            release = store.get_json(entry.key.replace("result.json", "inputs.json")).get("release")
            if release in tags:
                found.append({"stage": result["stage"], "checkpoint": result["prefix"], "release": release, "trained": "train" in tags[release]})
    return found


def _models(tags: dict[str, list[str]]) -> list[dict]:
    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    versions = {v.id: v for v in registry.list()}
    found = {v.id: v.lineage["release"] for v in versions.values() if v.lineage.get("release") in tags}
    # A refreshed model saw what its parent saw.
    while heirs := {v.id: found[origin] for v in versions.values() if v.id not in found and (origin := _origin(v)) in found}:
        found |= heirs
    return [{"version": name, "release": tag, "trained": "train" in tags[tag]} for name, tag in sorted(found.items())]


def _origin(version) -> str | None:
    """The model version whose weights this one went on from."""
    return next((stage["version"] for stage in version.lineage.get("stages", ()) if stage.get("version")), None)


def forget(patient: str, purge: bool, confirm, on_line) -> dict:
    """A release without a patient, and on `purge` the old shards gone from S3.

    Args:
        patient: the patient's key.
        confirm: asked with the tags that a purge breaks; it goes on only if this says True.

    Raises:
        LookupError: no source or release holds the patient.
    """
    store = corpus_store()
    try:
        seen = trace(patient=patient)
    except LookupError:
        seen = {"releases": [], "checkpoints": [], "models": []}
    from ray_jobs.params import load_params

    params, old = load_params(get_settings().params_file).corpus, []
    intake.remember_to_forget(patient, store)
    for source in intake.sources(store):
        record, gone = intake.without_patient(source, patient, params, store)
        old += gone
        if gone:
            on_line(f"{record['name']}: {len(gone) // 2} shards written anew")
    if not old and not seen["releases"]:
        raise LookupError(f"no source and no release holds patient {patient}")
    release = make_release(force=False, on_line=on_line) if old else find_release(None)
    breaks = [found["tag"] for found in seen["releases"]]
    purged = purge and confirm(breaks)
    return {"patient": patient, "release": release["tag"], **seen, "purged": _purge(seen["releases"], old, store) if purged else []}


def _purge(releases: list[dict], old: list[str], store: ObjectStore) -> list[str]:
    """Delete what held the patient from S3 and from this machine; returns the deleted keys."""
    from infra.corpus_repo import CorpusRepo

    shards = {shard for found in releases for shard in found["shards"]}
    keys = set(old)
    for found in releases:
        record = find_release(found["tag"])
        files = [f for f in record["shards"] if f["path"].removeprefix("shards/").split(".")[0] in shards]
        keys |= {file["key"] for file in files}
        CorpusRepo().discard([file["md5"] for file in files])
        for file in files:
            for path in (get_settings().state_dir / "cache" / "shards").glob(f"{file['md5']}.*"):
                path.unlink()
        store.put_json(f"releases/{found['tag'].removeprefix('corpus/')}.json", record | {"purged": {"at": utc_now(), "files": [f["path"] for f in files]}})
    for key in sorted(keys):
        store.delete(key)
    return sorted(keys)


def _index(release: dict):
    """Raises LookupError when parts of the release were purged."""
    if "purged" in release:
        raise LookupError(f"{release['tag']} was purged on {release['purged']['at']}: {len(release['purged']['files'])} of its files are gone")
    try:
        return release_index(release, corpus_store(), get_settings().state_dir / "cache" / "shards")
    except MissingObject as error:
        raise LookupError(f"{release['tag']} is not whole on S3: {error} is missing; `unimed data verify {release['tag']}` says more") from None
