"""Records of the sources that were taken in.

A source's record, written last, names its shards, the rows of them that no longer count, and what was kept aside: a
source is never half there.
"""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa

from corpus import index, shards
from corpus.params import CorpusParams
from corpus.record import Rejection
from corpus.settle import settle
from infra.records import digest, utc_now
from infra.store import READ_AT_ONCE, MissingObject, ObjectStore, PreconditionFailed

# Where the shards of sources lie. Samples that wait for a person lie apart: no release looks here but for those that were accepted.
INTAKE, HELD = "intake", "held"


class SourceElsewhere(ValueError):
    """Another folder or file was taken in under this name."""


class SourceConflict(RuntimeError):
    """Another command changed the source, or had a patient forgotten, while this one was under way."""

    def __init__(self, name: str):
        super().__init__(f"source {name!r} was changed, or a patient forgotten, by another command while this one was under way; run this one again")


def sources(store: ObjectStore) -> list[dict]:
    """Records of all sources taken in, by name."""
    names = [entry.key.removeprefix(f"{INTAKE}/").removesuffix(".json") for entry in store.list(f"{INTAKE}/") if entry.key.count("/") == 1 and entry.key.endswith(".json")]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        # One may be removed between the listing and the reading.
        return [record for record, _ in pool.map(lambda name: current(store, name), names) if record]


def find(name: str, store: ObjectStore) -> dict:
    """The record of a source. Raises LookupError: none of this name was added."""
    # A name with a slash would be that of something else that is kept there.
    if "/" in name or not (found := current(store, name)[0]):
        raise LookupError(f"no source {name} was added; `unimed data list` names those that were, and sources.yaml lists those that are built in")
    return found


def remove(name: str, store: ObjectStore) -> None:
    """Delete the record that makes a source one. Its shards stay: a release under way may need them, and the source may be added again."""
    store.delete(f"{INTAKE}/{name}.json")


def current(store: ObjectStore, name: str) -> tuple[dict, str | None]:
    """The record of a source and its etag; nothing where there is none yet."""
    try:
        return store.get_json_with_etag(f"{INTAKE}/{name}.json")
    except MissingObject:
        return {}, None


def require_place(name: str, place: str, store: ObjectStore) -> None:
    """Raises SourceElsewhere if the source of this name lies in another place."""
    if current(store, name)[0].get("place", place) != place:
        raise SourceElsewhere(f"source {name!r} was taken in from another folder or file, and would lose what that holds: name this one otherwise (--name), or put it in the other's stead (--replace)")


def settled(store: ObjectStore, params: CorpusParams, name: str, listed: list[dict], stale: dict[str, list[int]], aside: list[Rejection], counts: dict, held: list[dict]) -> dict:
    """The record of a source that holds these shards less some rows, after the checks that see all of it.

    The shards of `held` are no part of it: they wait for a person.
    """
    stale = {s["shard"]: stale[s["shard"]] for s in listed if s["shard"] in stale}
    removed = {shard: list(rows) for shard, rows in stale.items()}
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        table = index.join(list(pool.map(lambda s: index.read(store.get(s["index_key"]), s["shard"], stale.get(s["shard"], ())), listed)))
    seen = settle(table, params.quality.near_distance)
    late, kept = table.filter(pa.array(~seen.kept)), table.filter(pa.array(seen.kept))
    for shard, row in zip(late["shard"].to_pylist(), late["row"].to_pylist()):
        removed.setdefault(shard, []).append(row)
    return counts | {
        "name": name,
        "shards": listed,
        "held": held,
        "stale": _put_json(store, name, "stale", stale),
        "removed": _put_json(store, name, "removed", {shard: sorted(rows) for shard, rows in sorted(removed.items())}),
        "rejected": _put_quarantine(store, name, aside),
        "quarantine": _put_quarantine(store, name, [*aside, *seen.aside]),
        "samples": {"kept": len(kept), "quarantined": len(seen.aside)},
        "reasons": dict(sorted(Counter(r.reason for r in [*aside, *seen.aside]).items())),
        "sources": dict(sorted(Counter(kept["source"].to_pylist()).items())),
    }


def keep_origins(store: ObjectStore, name: str, told: bytes | None) -> dict:
    """Where it is kept what rows are read from by now, if their shards do not say it."""
    if told is None:
        return {}
    key = f"{INTAKE}/{name}/origins-{hashlib.sha256(told).hexdigest()[:16]}.parquet"
    store.put(key, told)
    return {"origins": key}


def _put_json(store: ObjectStore, name: str, kind: str, content: dict) -> str:
    key = f"{INTAKE}/{name}/{kind}-{digest(content)[:16]}.json"
    store.put(key, json.dumps(content, separators=(",", ":")).encode())
    return key


def _put_quarantine(store: ObjectStore, name: str, aside: list[Rejection]) -> str:
    key = f"{INTAKE}/{name}/quarantine-{digest([vars(r) for r in aside])[:16]}.parquet"
    store.put(key, shards.quarantine_bytes(aside))
    return key


def publish(store: ObjectStore, record: dict, before: dict, etag: str | None) -> dict:
    """Make a record the source's, in the stead of the one of this etag; returns it, and `how` it differs from that.

    Raises:
        SourceConflict: there is another one by now.
    """
    there = {k: v for k, v in before.items() if k != "added_at"}
    if there == record:
        return before | {"how": "up to date"}
    same = {**there, "origins": None} == {**record, "origins": None}
    try:
        store.put_json(f"{INTAKE}/{record['name']}.json", record | {"added_at": utc_now()}, **({"if_match": etag} if etag else {"if_absent": True}))
    except (PreconditionFailed, MissingObject):
        raise SourceConflict(record["name"]) from None
    return record | {"how": "up to date" if same else "replaced" if before else "added"}


def put_back(store: ObjectStore, record: dict, before: dict) -> None:
    """Make the record that was there before the source's again, unless it was changed since this one was published."""
    now, etag = current(store, record["name"])
    if any(now.get(key) != record[key] for key in ("shards", "held", "removed")):
        return
    if before:
        with suppress(PreconditionFailed, MissingObject):
            store.put_json(f"{INTAKE}/{record['name']}.json", before, if_match=etag)
    else:
        remove(record["name"], store)
