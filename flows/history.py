"""Where a sample or a patient has been: releases, stage checkpoints and models."""

from collections.abc import Iterable, Iterator, Set

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
    versions = _versions()
    return {"releases": releases, "checkpoints": _checkpoints(tags, versions), "models": _models(tags, versions)}


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


def _checkpoints(tags: dict[str, list[str]], versions: dict) -> list[dict]:
    """Stage checkpoints that learned from these releases, or began with weights that did: those saw what was in training, and scored what was not."""
    stages = _stages()
    found = ((prefix, stage, _met(_releases_of_stage(prefix, stages, versions), tags)) for prefix, stage in stages.items())
    return [{"stage": stage["stage"], "checkpoint": prefix, **met} for prefix, stage, met in found if met]


def _models(tags: dict[str, list[str]], versions: dict) -> list[dict]:
    """Model versions, as `_checkpoints`."""
    found = ((name, _met(_releases_of_model(name, versions), tags)) for name in sorted(versions))
    return [{"version": name, **met} for name, met in found if met]


def _met(releases: Iterable[str], tags: dict[str, list[str]]) -> dict | None:
    """Of the releases that weights have learned from, the last first: the one in whose training it was, else the last that held it."""
    held = [tag for tag in releases if tag in tags]
    if not held:
        return None
    trained = [tag for tag in held if "train" in tags[tag]]
    return {"release": (trained or held)[0], "trained": bool(trained)}


def _stages() -> dict[str, dict]:
    """By a checkpoint's prefix: its stage, release and start."""
    store, found = log_store(), {}
    for entry in store.list("jobs/"):
        if entry.key.endswith("/result.json") and "stage" in (result := store.get_json(entry.key)["result"]):
            inputs = store.get_json(entry.key.replace("result.json", "inputs.json"))
            found[result["prefix"]] = {"stage": result["stage"], "release": inputs.get("release"), "start": inputs.get("start", {})}
    return found


def _versions() -> dict:
    from infra.registry import ModelRegistry

    return {version.id: version for version in ModelRegistry().list()}


def _releases_of_stage(prefix: str | None, stages: dict[str, dict], versions: dict) -> Iterator[str]:
    """A stage's own release, then those of what it began with."""
    while stage := stages.get(prefix):
        yield stage["release"]
        yield from _releases_of_model(stage["start"].get("version"), versions)
        prefix = stage["start"].get("prefix")


def _releases_of_model(name: str | None, versions: dict) -> Iterator[str]:
    """A refreshed model's own release, then those of the versions whose weights it went on from."""
    while version := versions.get(name):
        yield version.lineage.get("release")
        name = next((stage["version"] for stage in version.lineage.get("stages", ()) if stage.get("version")), None)
