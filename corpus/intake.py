"""Sources from outside: read, examined and kept on S3 as shards, ready for any release.

A source's record, written last, names its shards, the rows of them that no longer count, and what was kept aside: a
source is never half there. Taking it in again writes only what is new or changed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from corpus import index, quality, shards
from corpus.params import CorpusParams
from corpus.record import Record, Rejection
from corpus.sample import Sample
from corpus.settle import settle
from infra.records import digest, utc_now
from infra.store import MissingObject, ObjectStore, PreconditionFailed

Examined = list[Sample] | Rejection
# How records become samples: one after the other, or on many cores; in order either way.
Examine = Callable[[Iterable[Record | Rejection]], Iterator[tuple[Examined, int]]]
OnProgress = Callable[[int], None]

FORGOTTEN = "privacy/forgotten.json"


def one_by_one(params: CorpusParams, salt: bytes) -> Examine:
    """Examine records in this process; gives each outcome with the number of questions left out."""

    def examine(records: Iterable[Record | Rejection]) -> Iterator[tuple[Examined, int]]:
        for record in records:
            if isinstance(record, Rejection):
                yield record, 0
            else:
                yield quality.examine(record, params.quality, salt), record.left_out

    return examine


def add(name: str, records: Iterable[Record | Rejection], params: CorpusParams, store: ObjectStore, examine: Examine, on_progress: OnProgress = lambda seen: None) -> dict:
    """Take a source in. Returns its record; an unchanged source gives the record that is there."""
    before = _current(store, name)
    taken = _take_in(name, examine(records), _Known(before, store, forgotten(store)), params, store, on_progress)
    listed = [s for s in before.get("shards", []) if s["shard"] in taken.still_used] + taken.written
    counts = {"seen": taken.seen, "kept": taken.seen - len(taken.aside), "quarantined": len(taken.aside)}
    return _publish(store, _settled(store, name, listed, taken.stale, taken.aside, {"records": counts, "questions_left_out": taken.left_out}), before)


def without_patient(record: dict, patient: str, params: CorpusParams, store: ObjectStore) -> tuple[dict, list[str]]:
    """A source without a patient: shards that hold the patient are written anew. Returns its new record and the old shards' keys.

    A source without the patient is returned as it is.
    """
    listed, stale, old = [], store.get_json(record["stale"]), []
    for shard in record["shards"]:
        if patient not in index.read(store.get(shard["index_key"]), shard["shard"])["patient"].to_pylist():
            listed.append(shard)
            continue
        gone = stale.pop(shard["shard"], [])
        stay = [s for row, s in enumerate(shards.unpack(store.get(shard["key"]))) if s.patient != patient and row not in gone]
        listed += [_put_shard(store, record["name"], shards.make(stay[0].source, stay, params.shards))] if stay else []
        old += [shard["key"], shard["index_key"]]
    if not old:
        return record, []
    aside = shards.read_quarantine(store.get(record["rejected"]))
    kept = {key: record[key] for key in ("records", "questions_left_out")}
    return _publish(store, _settled(store, record["name"], listed, stale, aside, kept), record), old


def _settled(store: ObjectStore, name: str, listed: list[dict], stale: dict[str, list[int]], aside: list[Rejection], counts: dict) -> dict:
    """The record of a source that holds these shards less some rows, after the checks that see all of it."""
    stale = {s["shard"]: stale[s["shard"]] for s in listed if s["shard"] in stale}
    removed = {shard: list(rows) for shard, rows in stale.items()}
    table = index.join([index.read(store.get(s["index_key"]), s["shard"], stale.get(s["shard"], ())) for s in listed])
    settled = settle(table)
    late, kept = table.filter(pa.array(~settled.kept)), table.filter(pa.array(settled.kept))
    for shard, row in zip(late["shard"].to_pylist(), late["row"].to_pylist()):
        removed.setdefault(shard, []).append(row)
    return counts | {
        "name": name,
        "shards": listed,
        "stale": _put_json(store, name, "stale", stale),
        "removed": _put_json(store, name, "removed", {shard: sorted(rows) for shard, rows in sorted(removed.items())}),
        "rejected": _put_quarantine(store, name, aside),
        "quarantine": _put_quarantine(store, name, [*aside, *settled.aside]),
        "samples": {"kept": len(kept), "quarantined": len(settled.aside)},
        "reasons": dict(sorted(Counter(r.reason for r in [*aside, *settled.aside]).items())),
        "sources": dict(sorted(Counter(kept["source"].to_pylist()).items())),
    }


def forgotten(store: ObjectStore) -> set[str]:
    """Keys of patients that no source may bring back."""
    try:
        return set(store.get_json(FORGOTTEN))
    except MissingObject:
        return set()


def remember_to_forget(patient: str, store: ObjectStore) -> None:
    """From now on no source takes this patient in."""
    while patient not in forgotten(store):
        try:
            current, etag = store.get_with_etag(FORGOTTEN)
            store.put_json(FORGOTTEN, sorted({*json.loads(current), patient}), if_match=etag)
        except MissingObject:
            with suppress(PreconditionFailed):
                store.put_json(FORGOTTEN, [patient], if_absent=True)
        except PreconditionFailed:
            continue


class _Known:
    """The rows a source has already: an unchanged sample is not written again."""

    def __init__(self, record: dict, store: ObjectStore, forgotten: set[str]):
        self.forgotten = forgotten
        tables = [index.read(store.get(s["index_key"]), s["shard"]) for s in record.get("shards", [])]
        self.table = index.join(tables)
        self.contents = index.column(self.table, "content")
        self.order = np.argsort(self.contents, kind="stable")
        self.used = np.zeros(len(self.contents), dtype=bool)

    def has(self, sample: Sample) -> bool:
        """True, and the row counts from now on, if this very sample is there."""
        wanted = np.uint64(index.content(sample))
        place = np.searchsorted(self.contents, wanted, sorter=self.order)
        while place < len(self.order) and self.contents[self.order[place]] == wanted:
            if not self.used[self.order[place]]:
                self.used[self.order[place]] = True
                return True
            place += 1
        return False

    def stale(self) -> dict[str, list[int]]:
        """Rows no record has asked for, by shard."""
        gone = self.table.filter(pa.array(~self.used))
        stale: dict[str, list[int]] = {}
        for shard, row in zip(gone["shard"].to_pylist(), gone["row"].to_pylist()):
            stale.setdefault(shard, []).append(row)
        return stale


@dataclass
class _Taken:
    """What a reading of a source gave."""

    seen: int = 0
    left_out: int = 0
    aside: list[Rejection] = field(default_factory=list)
    written: list[dict] = field(default_factory=list)
    stale: dict[str, list[int]] = field(default_factory=dict)
    still_used: set[str] = field(default_factory=set)


def _take_in(name: str, examined: Iterator[tuple[Examined, int]], known: _Known, params: CorpusParams, store: ObjectStore, on_progress: OnProgress) -> _Taken:
    taken, writer = _Taken(), shards.ShardWriter(params.shards)
    for outcome, left_out in examined:
        taken.seen, taken.left_out = taken.seen + 1, taken.left_out + left_out
        if isinstance(outcome, Rejection):
            taken.aside.append(outcome)
        elif outcome[0].patient in known.forgotten:
            taken.aside.append(Rejection(outcome[0].source, "a forgotten patient", "forgotten", "the patient was forgotten: see `unimed data forget`"))
        else:
            new = [sample for sample in outcome if not known.has(sample)]
            taken.written += [_put_shard(store, name, shard) for shard in writer.add(new)]
        on_progress(taken.seen)
    taken.written += [_put_shard(store, name, shard) for shard in writer.finish()]
    taken.stale = known.stale()
    taken.still_used = set(known.table.filter(pa.array(known.used))["shard"].unique().to_pylist())
    return taken


def _put_shard(store: ObjectStore, name: str, shard: shards.Shard) -> dict:
    keys = {"key": f"intake/{name}/{shard.name}.parquet", "index_key": f"intake/{name}/{shard.name}.index.parquet"}
    for key, data in zip(keys.values(), (shard.data, shard.index)):
        if not store.exists(key):
            store.put(key, data)
    return {"shard": shard.name, **keys, "rows": shard.rows, "bytes": len(shard.data)}


def _put_json(store: ObjectStore, name: str, kind: str, content: dict) -> str:
    key = f"intake/{name}/{kind}-{digest(content)[:16]}.json"
    store.put(key, json.dumps(content, separators=(",", ":")).encode())
    return key


def _put_quarantine(store: ObjectStore, name: str, aside: list[Rejection]) -> str:
    key = f"intake/{name}/quarantine-{digest([vars(r) for r in aside])[:16]}.parquet"
    store.put(key, shards.quarantine_bytes(aside))
    return key


def _current(store: ObjectStore, name: str) -> dict:
    try:
        return store.get_json(f"intake/{name}.json")
    except MissingObject:
        return {}


def _publish(store: ObjectStore, record: dict, before: dict) -> dict:
    if {k: v for k, v in before.items() if k not in ("added_at", "how")} == record:
        return before | {"how": "up to date"}
    store.put_json(f"intake/{record['name']}.json", record | {"added_at": utc_now()})
    return record | {"how": "replaced" if before else "added"}


def sources(store: ObjectStore) -> list[dict]:
    """Records of all sources taken in, by name."""
    keys = [entry.key for entry in store.list("intake/") if entry.key.count("/") == 1 and entry.key.endswith(".json")]
    return [store.get_json(key) for key in keys]
