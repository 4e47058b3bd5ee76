"""Sources from outside: read, examined and kept on S3 as shards, ready for any release.

A source's record, written last, names its shards, the rows of them that no longer count, and what was kept aside: a
source is never half there. Taking it in again writes only what is new or changed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from corpus import index, quality, shards
from corpus.params import CorpusParams
from corpus.record import Record, Rejection
from corpus.sample import Sample
from corpus.settle import settle
from infra.records import digest, utc_now
from infra.store import MissingObject, ObjectStore

Examined = list[Sample] | Rejection
# How records become samples: one after the other, or on many cores; in order either way.
Examine = Callable[[Iterable[Record | Rejection]], Iterator[tuple[Examined, int]]]
OnProgress = Callable[[int], None]


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
    taken = _take_in(name, examine(records), _Known(before, store), params, store, on_progress)
    listed = [s for s in before.get("shards", []) if s["shard"] in taken.still_used] + taken.written
    table, removed = _live(listed, taken.stale, store)
    settled = settle(table)
    for shard, row in zip(*(table.filter(pa.array(~settled.kept))[c].to_pylist() for c in ("shard", "row"))):
        removed.setdefault(shard, []).append(row)
    kept = table.filter(pa.array(settled.kept))
    record = {
        "name": name,
        "shards": listed,
        "removed": _put_json(store, name, "removed", {shard: sorted(rows) for shard, rows in sorted(removed.items())}),
        "quarantine": _put_quarantine(store, name, [*taken.aside, *settled.aside]),
        "records": {"seen": taken.seen, "kept": taken.seen - len(taken.aside), "quarantined": len(taken.aside)},
        "samples": {"kept": len(kept), "quarantined": len(settled.aside)},
        "reasons": dict(sorted(Counter(r.reason for r in [*taken.aside, *settled.aside]).items())),
        "questions_left_out": taken.left_out,
        "sources": dict(sorted(Counter(kept["source"].to_pylist()).items())),
    }
    return _publish(store, record, before)


class _Known:
    """The rows a source has already: an unchanged sample is not written again."""

    def __init__(self, record: dict, store: ObjectStore):
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
        else:
            new = [sample for sample in outcome if not known.has(sample)]
            taken.written += [_put_shard(store, name, shard) for shard in writer.add(new)]
        on_progress(taken.seen)
    taken.written += [_put_shard(store, name, shard) for shard in writer.finish()]
    taken.stale = known.stale()
    taken.still_used = set(known.table.filter(pa.array(known.used))["shard"].unique().to_pylist())
    return taken


def _live(listed: list[dict], stale: dict[str, list[int]], store: ObjectStore) -> tuple[pa.Table, dict[str, list[int]]]:
    """The index of what a source holds now, and the removed rows of the shards it still has."""
    removed = {s["shard"]: list(stale[s["shard"]]) for s in listed if s["shard"] in stale}
    return index.join([index.read(store.get(s["index_key"]), s["shard"], removed.get(s["shard"], ())) for s in listed]), removed


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
