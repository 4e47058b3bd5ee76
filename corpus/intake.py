"""Sources from outside: read, examined and kept on S3 as shards, ready for any release."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from corpus import quality, shards
from corpus.params import CorpusParams
from corpus.readers import formats
from corpus.readers.source import Source
from corpus.record import Rejection
from infra.records import digest, utc_now
from infra.store import MissingObject, ObjectStore

OnProgress = Callable[[int], None]


def add(source: Source, format: str, params: CorpusParams, store: ObjectStore, salt: bytes, on_progress: OnProgress = lambda seen: None) -> dict:
    """Take a source in, as `corpus.readers.formats` reads it. Returns its record; an unchanged source gives the record that is there.

    The record, written last, names the shards and the quarantine, so a source is never half there.
    """
    name, kept, aside, seen, left_out = source.name, [], [], 0, 0
    source = replace(source, languages=params.quality.languages, max_pixels=params.quality.max_pixels)
    for record in formats.read(source, format):
        seen += 1
        outcome = record if isinstance(record, Rejection) else quality.examine(record, params.quality, salt)
        left_out += getattr(record, "left_out", 0)
        aside.append(outcome) if isinstance(outcome, Rejection) else kept.append(outcome)
        on_progress(seen)
    settled, late = quality.settle(sample for samples in kept for sample in samples)
    entries = [_put(store, name, *shard) for shard in shards.pack(settled, params.shards)]
    quarantine = shards.quarantine_bytes([*aside, *late])
    quarantine_name = f"quarantine-{digest([vars(r) for r in [*aside, *late]])[:16]}.parquet"
    store.put(f"intake/{name}/{quarantine_name}", quarantine)
    record = {
        "name": name,
        "shards": entries,
        "quarantine": f"intake/{name}/{quarantine_name}",
        "records": {"seen": seen, "kept": len(kept), "quarantined": len(aside)},
        "samples": {"kept": len(settled), "quarantined": len(late)},
        "reasons": dict(sorted(Counter(r.reason for r in [*aside, *late]).items())),
        "questions_left_out": left_out,
        "sources": dict(sorted(Counter(s.source for s in settled).items())),
    }
    return _publish(store, record)


def _put(store: ObjectStore, name: str, shard: str, data: bytes, rows: int) -> dict:
    key = f"intake/{name}/{shard}"
    if not store.exists(key):
        store.put(key, data)
    return {"key": key, "rows": rows, "bytes": len(data)}


def _publish(store: ObjectStore, record: dict) -> dict:
    key = f"intake/{record['name']}.json"
    try:
        current = store.get_json(key)
    except MissingObject:
        current = {}
    if {k: v for k, v in current.items() if k not in ("added_at", "how")} == record:
        return current | {"how": "up to date"}
    store.put_json(key, record | {"added_at": utc_now()})
    return record | {"how": "replaced" if current else "added"}


def sources(store: ObjectStore) -> list[dict]:
    """Records of all sources taken in, by name."""
    keys = [entry.key for entry in store.list("intake/") if entry.key.count("/") == 1 and entry.key.endswith(".json")]
    return [store.get_json(key) for key in keys]
