"""What people decided about single records: kept on S3, one object a record, and pinned for a release.

A decision holds for the samples as they were seen: a record that changes afterwards is a new case.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus import index, shards, stored
from corpus.params import ShardParams
from corpus.record import Rejection
from corpus.settle import record_of
from infra.records import digest, utc_now
from infra.store import READ_AT_ONCE, MissingObject, ObjectStore, PreconditionFailed

DECISIONS, PINNED, ADMITTED = "review/decisions", "review/pinned", "review/admitted"
REJECTED = "rejected-by-reviewer"


class AlreadyDecided(RuntimeError):
    """Another decision on this record is there; the message says whose."""


@dataclass(frozen=True)
class Decisions:
    """All decisions a release follows: accepted samples as (id, content), and by whom and why others were rejected."""

    accepted: frozenset[tuple[str, int]] = frozenset()
    rejected: dict[tuple[str, int], str] = field(default_factory=dict)

    @cached_property
    def _ids(self) -> dict[bool, pa.Array]:
        return {accepted: pa.array(sorted({name for name, _ in decided}), pa.string()) for accepted, decided in ((True, self.accepted), (False, self.rejected))}

    def rows(self, table: pa.Table, accepted: bool) -> np.ndarray:
        """A mask of the rows of an index that were decided so, as they are now."""
        decided, found = self.accepted if accepted else self.rejected, np.zeros(len(table), dtype=bool)
        if decided:
            rows = np.flatnonzero(pc.is_in(table["id"], self._ids[accepted]).combine_chunks().to_numpy(zero_copy_only=False))
            found[rows] = [sample in decided for sample in _samples(table.take(pa.array(rows)))]
        return found

    def refused(self, table: pa.Table) -> dict[str, str]:
        """Records of an index that were rejected as they are now, and by whom and why."""
        return {record_of(sample[0]): self.rejected[sample] for sample in _samples(table.filter(pa.array(self.rows(table, accepted=False))))}


def decide(store: ObjectStore, record: str, samples: dict[str, int], patient: str, accept: bool, who: str, note: str, overrule: bool = False) -> dict:
    """Keep a decision on a record; returns it with `how`: "decided" or "up to date" if it was so already.

    Args:
        samples: contents of its samples by id, as the person saw them.
        patient: the key of its patient, with whom the decision is forgotten.
        overrule: replace a decision that is there; without it the first of two reviewers wins.

    Raises:
        AlreadyDecided: it was decided otherwise.
    """
    key = decision_key(record, samples)
    made = {"record": record, "samples": samples, "patient": patient, "accepted": accept, "who": who, "note": note, "when": utc_now()}
    try:
        store.put_json(key, made, if_absent=True)
        return made | {"how": "decided"}
    except PreconditionFailed:
        data, etag = store.get_with_etag(key)
    before = json.loads(data)
    if before["accepted"] == accept:
        return before | {"how": "up to date"}
    told = f"{record} was {_word(before['accepted'])} by {before['who']} on {before['when']}"
    if not overrule:
        raise AlreadyDecided(f"{told}; --overrule replaces that")
    made |= {"overruled": before}
    try:
        store.put_json(key, made, if_match=etag)
    except PreconditionFailed:
        raise AlreadyDecided(f"{told}, and somebody decided again just now: look at it once more") from None
    return made | {"how": "decided"}


def decided(store: ObjectStore) -> set[str]:
    """Keys of all decisions, see `decision_key`."""
    return {entry.key for entry in store.list(f"{DECISIONS}/")}


def pinned(store: ObjectStore) -> str | None:
    """The key of an object with all decisions there are, named by them; None if there are none."""
    entries = [(entry.key, entry.etag) for entry in store.list(f"{DECISIONS}/")]
    key = f"{PINNED}/{digest(entries)[:16]}.json"
    if entries and not store.exists(key):
        store.put_json(key, [store.get_json(name) for name, _ in entries])
    return key if entries else None


def read(store: ObjectStore, key: str | None) -> Decisions:
    """The decisions that were pinned. Of a sample that stayed while its record changed, the last word counts."""
    made = sorted(store.get_json(key), key=lambda decision: decision["when"]) if key else []
    last = {sample: decision for decision in made for sample in decision["samples"].items()}
    rejected = {sample: f"by {d['who']} on {d['when']}: {d['note'] or 'no note'}" for sample, d in last.items() if not d["accepted"]}
    return Decisions(frozenset(last.keys() - rejected.keys()), rejected)


def forget(store: ObjectStore, patients: set[str], records: set[int]) -> int:
    """Delete the decisions on records of these patients, by their keys, and on these records, given as hashes; returns how many there were."""
    # Decisions of an earlier version of this code name no patient.
    found = [key for key, decision in _each(store, DECISIONS) if decision.get("patient") in patients or index.hash64(decision["record"]) in records]
    for key in found:
        store.delete(key)
    return len(found)


def unpin(store: ObjectStore) -> None:
    """Take decisions that are there no more, as their patient was forgotten, out of what was pinned for releases."""
    found = list(_each(store, PINNED))
    there = decided(store)
    for key, made in found:
        if (stay := [decision for decision in made if decision_key(decision["record"], decision["samples"]) in there]) != made:
            store.put_json(key, stay)


def _each(store: ObjectStore, prefix: str) -> Iterator[tuple[str, object]]:
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        yield from pool.map(lambda entry: (entry.key, store.get_json(entry.key)), store.list(f"{prefix}/"))


def let_in(source: dict, decisions: Decisions, params: ShardParams, store: ObjectStore) -> tuple[dict, set[str], dict[str, str]]:
    """A source as it is with what people accepted, the records that came back by it, and those that people rejected (see `Decisions.refused`).

    Held samples come as shards of their own: what lies beside them in a held shard stays there.
    """
    if not (decisions.accepted or decisions.rejected) or "stale" not in source:
        return source, set(), {}
    removed, stale, records, refused = json.loads(store.get(source["removed"])), json.loads(store.get(source["stale"])), set(), {}
    for shard in source["shards"]:
        if late := sorted({*removed.get(shard["shard"], ())} - {*stale.get(shard["shard"], ())}):
            table = stored.table(shard, store).take(pa.array(late))
            back = table.filter(pa.array(decisions.rows(table, accepted=True)))
            removed[shard["shard"]] = sorted({*removed[shard["shard"]]} - {*back["row"].to_pylist()})
            records |= {record_of(name) for name in back["id"].to_pylist()}
            refused |= decisions.refused(table)
    shown = {}
    for shard in source.get("held", ()):
        table = stored.table(shard, store)
        if back := table.filter(pa.array(decisions.rows(table, accepted=True)))["row"].to_pylist():
            shown[shard["key"]] = back
            records |= {record_of(name) for name in table["id"].take(pa.array(back)).to_pylist()}
        refused |= decisions.refused(table)
    if not records:
        return source, records, refused
    return source | {"removed": removed, "shards": source["shards"] + _admitted(source["name"], shown, params, store)}, records, refused


def _admitted(name: str, rows: dict[str, list[int]], params: ShardParams, store: ObjectStore) -> list[dict]:
    """Shards of these rows of held shards; made once."""
    if not rows:
        return []
    prefix = f"{ADMITTED}/{name}"
    key = f"{prefix}-{digest([rows, params.model_dump()])[:16]}.json"
    try:
        return store.get_json(key)
    except MissingObject:
        samples = ([sample] for shard, wanted in rows.items() for row, sample in enumerate(shards.unpack(store.get(shard))) if row in wanted)
        made = [shards.put(store, prefix, shard) for shard in shards.write(samples, params)]
        store.put_json(key, made)
        return made


def still_aside(aside: Iterable[Rejection], records: set[str]) -> list[Rejection]:
    """What is kept aside without the records that came back."""
    return [rejection for rejection in aside if rejection.record not in records]


def told(aside: Iterable[Rejection], refused: dict[str, str]) -> list[Rejection]:
    """What is kept aside, with a person's word on the records that were rejected in the place of the judgement that they confirm."""
    return [replace(r, reason=REJECTED, detail=f"{refused[r.record]} ({r.reason})") if r.record in refused else r for r in aside]


def decision_key(record: str, samples: dict[str, int]) -> str:
    """Where a decision on a record as it is now is kept."""
    return f"{DECISIONS}/{digest([record, samples])[:32]}.json"


def _samples(table: pa.Table) -> list[tuple[str, int]]:
    """Each row of an index as decisions name it: its id and content."""
    return list(zip(table["id"].to_pylist(), index.column(table, "content").tolist()))


def _word(accepted: bool) -> str:
    return "accepted" if accepted else "rejected"
