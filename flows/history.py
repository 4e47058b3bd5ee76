"""Where a sample or a patient has been: releases, stage checkpoints and models."""

from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc

from corpus import changes, index
from corpus.reader import release_index
from flows.releases import all_releases
from flows.report import find_release
from infra.settings import get_settings
from infra.store import MissingObject, corpus_store, log_store


def diff(before: str, after: str) -> dict:
    """What changed between two releases.

    Raises:
        LookupError: there is no such release, or a part of it is gone.
    """
    first, second = (whole(find_release(tag)) for tag in (before, after))
    return {"before": first["tag"], "after": second["tag"], **changes.compare(whole_index(first), whole_index(second)).to_json()}


def trace(sample: str | None = None, patient: str | None = None) -> dict:
    """Every release, stage checkpoint and model that saw a sample (its id, or its record's) or a patient (its key).

    Raises:
        LookupError: no release holds it.
    """
    found = seen(sample, {patient} if patient else frozenset())
    if not found["releases"]:
        raise LookupError(f"no release holds {sample or f'patient {patient}'}; sample ids and patient keys are those of the shards")
    return found


def seen(sample: str | None = None, patient: Set[str] = frozenset()) -> dict:
    """As `trace`, of a patient by all the patient's keys; of what no release holds, nothing."""
    releases = [found for release in all_releases(corpus_store()) if (found := _found(release, sample, patient))]
    tags = {found["tag"]: found["splits"] for found in releases}
    return {"releases": releases, "checkpoints": _checkpoints(tags), "models": _models(tags)}


def _found(release: dict, sample: str | None, patient: Set[str]) -> dict | None:
    table = whole_index(release).select(["id", "record", "patient", "split", "shard"])
    meant = pc.is_in(table["patient"], pa.array(sorted(patient))) if patient else pc.or_(pc.equal(table["id"], sample), pc.equal(table["record"], pa.scalar(index.hash64(sample), pa.uint64())))
    rows = table.filter(meant).to_pylist()
    # Of a patient who was purged, the release's record tells.
    purged = {key: splits for key, splits in release.get("purged", {}).get("patients", {}).items() if key in patient}
    splits = {row["split"] for row in rows}.union(*purged.values())
    if not splits:
        return None
    return {
        "tag": release["tag"],
        "samples": sorted(row["id"] for row in rows),
        "splits": sorted(splits),
        "patients": sorted({row["patient"] for row in rows} | purged.keys()),
        "shards": sorted({row["shard"] for row in rows}),
    }


def whole(release: dict) -> dict:
    """The release. Raises LookupError when parts of it were purged."""
    if gone := release.get("purged"):
        raise LookupError(f"{release['tag']} was purged on {gone['at']}: {len(gone['files'])} of its shards are gone")
    return release


def whole_index(release: dict, uncounted: bool = False) -> pa.Table:
    """The index of a release, also of one whose shards were purged; if asked, with rows that do not count.

    Raises:
        LookupError: a part of it is missing.
    """
    try:
        return release_index(release, corpus_store(), get_settings().state_dir / "cache" / "shards", uncounted)
    except MissingObject as error:
        raise LookupError(f"{release['tag']} is not whole on S3: {error} is missing; `unimed data verify {release['tag']}` says more") from None


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
