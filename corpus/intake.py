"""Sources from outside: read, examined and kept on S3 as shards, ready for any release.

A source's record, written last, names its shards, the rows of them that no longer count, and what was kept aside: a
source is never half there. Taking it in again writes only what is new or changed.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus import index, quality, review, shards
from corpus.fingerprint import fingerprint, origin, with_pictures
from corpus.known import Known
from corpus.params import CorpusParams
from corpus.patients import patient_key
from corpus.record import HeldBack, Record, Rejection
from corpus.sample import Sample
from corpus.settle import settle
from corpus.shards import DATA, INDEX
from infra.records import digest, source_fingerprint, utc_now
from infra.store import READ_AT_ONCE, MissingObject, ObjectStore, PreconditionFailed

Examined = list[Sample] | Rejection
# How records become samples: one after the other, or on many cores; in order either way.
Examine = Callable[[Iterable[Record]], Iterator[Examined]]
OnProgress = Callable[[int], None]

# Samples that wait for a person lie apart: no release looks here but for those that were accepted.
HELD = "held"
FORGOTTEN, LINKED = "privacy/forgotten.json", "privacy/linked"
# Of encoded pictures in memory.
BATCH, BATCH_BYTES = 32, 4 * 2**20


class SourceElsewhere(ValueError):
    """Another folder or file was taken in under this name."""


class SourceConflict(RuntimeError):
    """Another command changed the source, or had a patient forgotten, while this one was under way."""


def in_this_process(params: CorpusParams, salt: bytes) -> Examine:
    """Examine records one after the other."""
    return lambda records: chain.from_iterable(quality.examine_all(batch, params.quality, salt) for batch in batches(records, BATCH))


def batches(records: Iterable[Record], most: int) -> Iterator[list[Record]]:
    """So many records at a time, or fewer where their pictures are large."""
    batch, size = [], 0
    for record in records:
        batch.append(record)
        # Those that are in no memory yet are decoded one at a time.
        size += sum(getattr(picture, "held", 0) for picture in (*record.images, record.target))
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def add(
    name: str, records: Iterable[Record | Rejection], params: CorpusParams, store: ObjectStore, salt: bytes, examine: Examine | None = None, on_progress: OnProgress = lambda seen: None, place: str = ""
) -> dict:
    """Take a source in. Returns its record; an unchanged source gives the record that is there.

    Run again after it was interrupted, it goes on with the shards that are written already. `place` tells where the source lies.

    Raises:
        SourceConflict: the source was changed meanwhile, or a patient forgotten. Nothing was; run again, it goes on.
    """
    before, etag = _current(store, name)
    reading = _Reading(name, before, params, store, salt)
    try:
        reading.run(records, examine or in_this_process(params, salt), on_progress)
        counts = reading.counts() | _origins(store, name, reading.known.origins()) | ({"place": place} if place else {})
        reading.tell_groups()
        settled = _settled(store, params, name, reading.listed(), reading.stale(), reading.aside(), counts, reading.held)
    except MissingObject:
        # A purge may have deleted shards that were there when this began.
        reading.require_nobody_forgotten()
        raise
    reading.require_nobody_forgotten()
    record = _publish(store, settled, before, etag)
    store.delete(_journal(name))
    return record


def require_place(name: str, place: str, store: ObjectStore) -> None:
    """Raises SourceElsewhere if the source of this name lies in another place."""
    if _current(store, name)[0].get("place", place) != place:
        raise SourceElsewhere(f"source {name!r} was taken in from another folder or file, and would lose what that holds: name this one otherwise (--name), or put it in the other's stead (--replace)")


def known_as(patient: str, store: ObjectStore) -> set[str]:
    """All keys that count as a patient's: of a group, those of its patients, as far as any reading of a source linked them."""
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        groups = [{*group} for told in pool.map(lambda entry: store.get_json(entry.key), store.list(f"{LINKED}/")) for group in told]
    keys = {patient}
    while more := [group for group in groups if not keys.isdisjoint(group) and not keys >= group]:
        keys.update(*more)
    return keys


def without_patient(name: str, patient: set[str], params: CorpusParams, store: ObjectStore) -> tuple[dict, int]:
    """A source without a patient, by all the patient's keys: shards that hold the patient are written anew. Returns its record and how many those are.

    A source without the patient stays as it is.

    Raises:
        SourceConflict: it was changed meanwhile.
    """
    record, etag = _current(store, name)
    stale, old = store.get_json(record["stale"]), 0

    def without(found: list[dict], prefix: str) -> Iterator[dict]:
        nonlocal old
        for shard in found:
            if patient.isdisjoint(index.patients(store.get(shard["index_key"]))):
                yield shard
                continue
            gone = stale.pop(shard["shard"], [])
            stay = [s for row, s in enumerate(shards.unpack(store.get(shard["key"]))) if s.patient not in patient and row not in gone]
            old += 1
            if stay:
                anew = shards.put(store, f"{prefix}/{name}", shards.make(stay[0].source, [(sample, 0) for sample in stay], params.shards))
                # It may come out the same as one that is there, of whose rows some did not count.
                stale.pop(anew["shard"], None)
                yield anew

    listed, held = _each_once(without(record["shards"], "intake")), _each_once(without(record.get("held", []), HELD))
    if not old:
        return record, 0
    aside = shards.read_quarantine(store.get(record["rejected"]))
    kept = {key: record[key] for key in ("records", "questions_left_out", "place") if key in record}
    return _publish(store, _settled(store, params, name, listed, stale, aside, kept, held), record, etag), old


def holding(patient: set[str], store: ObjectStore) -> list[str]:
    """Keys of all that was ever taken in and holds a patient, whether a source still uses it or not: shards and their indexes."""
    there = {entry.key for prefix in ("intake/", f"{HELD}/", f"{review.ADMITTED}/") for entry in store.list(prefix) if entry.key.endswith(DATA)}
    # Where a process died between a shard and its index, the shard itself tells.
    tells = {key: beside if (beside := key.removesuffix(DATA) + INDEX) in there else key for key in there if not key.endswith(INDEX)}
    return sorted({name for key, teller in tells.items() if not patient.isdisjoint(index.patients(store.get(teller))) for name in (key, teller)})


def records_of(patient: set[str], store: ObjectStore) -> set[int]:
    """Hashes of the records that were ever taken in of a patient and are nobody else's by now. No source may hold the patient any more."""

    def told(key: str) -> pa.Table:
        return index.read(store.get(key), "", columns=["patient", "record"])

    current = [shard["index_key"] for source in sources(store) for shard in [*source["shards"], *source.get("held", ())]]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        old = [table.filter(pc.is_in(table["patient"], pa.array(sorted(patient)))) for table in pool.map(told, [key for key in holding(patient, store) if key.endswith(INDEX)])]
        found = {record for table in old for record in table["record"].to_pylist()}
        return found.difference(*(table["record"].to_pylist() for table in pool.map(told, current)))


def _settled(store: ObjectStore, params: CorpusParams, name: str, listed: list[dict], stale: dict[str, list[int]], aside: list[Rejection], counts: dict, held: list[dict]) -> dict:
    """The record of a source that holds these shards less some rows, after the checks that see all of it.

    The shards of `held` are no part of it: they wait for a person.
    """
    stale = {s["shard"]: stale[s["shard"]] for s in listed if s["shard"] in stale}
    removed = {shard: list(rows) for shard, rows in stale.items()}
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        table = index.join(list(pool.map(lambda s: index.read(store.get(s["index_key"]), s["shard"], stale.get(s["shard"], ())), listed)))
    settled = settle(table, params.quality.near_distance)
    late, kept = table.filter(pa.array(~settled.kept)), table.filter(pa.array(settled.kept))
    for shard, row in zip(late["shard"].to_pylist(), late["row"].to_pylist()):
        removed.setdefault(shard, []).append(row)
    return counts | {
        "name": name,
        "shards": listed,
        "held": held,
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


def remember_to_forget(patient: set[str], store: ObjectStore) -> None:
    """From now on no source takes this patient in."""
    while not patient <= forgotten(store):
        try:
            current, etag = store.get_with_etag(FORGOTTEN)
            store.put_json(FORGOTTEN, sorted({*json.loads(current), *patient}), if_match=etag)
        except MissingObject:
            with suppress(PreconditionFailed):
                store.put_json(FORGOTTEN, sorted(patient), if_absent=True)
        except PreconditionFailed:
            continue


class _Reading:
    """One reading of a source: what was seen, set aside and written."""

    def __init__(self, name: str, before: dict, params: CorpusParams, store: ObjectStore, salt: bytes):
        self.name, self.params, self.store, self.salt = name, params, store, salt
        self.groups: dict[tuple[str, ...], frozenset[str]] = {}
        self.untold: set[frozenset[str]] = set()
        self.journalled = _journalled(store, name)
        self.shards = _each_once([*before.get("shards", ()), *self.journalled])
        self.forgotten = forgotten(store)
        # Keys of who is kept aside as one with a forgotten patient: shards from before they were linked hold them.
        self.kept_out: set[str] = set()
        self.known = Known(self.shards, store, self.forgotten, store.get(before["origins"]) if "origins" in before else None)
        # The outcome for a record depends on these too: change one, and everything is looked at again.
        self.key = digest({"quality": params.quality.model_dump(mode="json"), "salt": salt.hex(), "code": source_fingerprint("corpus")}).encode()
        self.seen = self.left_out = 0
        # With the place in the source: what is examined is told later than what readers reject, by how many is at once.
        self._aside: list[tuple[int, Rejection]] = []
        self.written: list[dict] = []
        self.held: list[dict] = []
        self._sending: Future | None = None

    def run(self, records: Iterable[Record | Rejection], examine: Examine, on_progress: OnProgress) -> None:
        """Take everything in. A shard is sent while the next records are examined."""
        with ThreadPoolExecutor(1, "shards") as self._sender:
            self._run(records, examine, on_progress)
            self._sent()

    def _run(self, records: Iterable[Record | Rejection], examine: Examine, on_progress: OnProgress) -> None:
        gathering, holding, fingerprints = shards.Gathering(self.params.shards), shards.Gathering(self.params.shards), deque()
        for outcome in examine(self._unknown(records, fingerprints, on_progress)):
            place, read = fingerprints.popleft()
            samples = getattr(outcome, "samples", outcome)
            if isinstance(outcome, Rejection) and not isinstance(outcome, HeldBack):
                self._aside.append((place, outcome))
            elif isinstance(outcome, HeldBack):
                self._aside.append((place, outcome.told()))
                self._hold(holding.add(samples))
            else:
                told = origin(read, len(outcome))
                self._write(gathering.add([sample for sample in outcome if not self.known.has(sample, told)], told))
        for shard in self.known.to_write_anew(self.kept_out):
            for sample, told in self.known.take(shard, self._bytes(shard)):
                self._write(gathering.add([sample], told))
        self._write(gathering.finish())
        self._hold(holding.finish())

    def _unknown(self, records: Iterable[Record | Rejection], fingerprints: deque, on_progress: OnProgress) -> Iterator[Record]:
        """The records that must be examined; their fingerprints are lined up for the outcomes."""
        for item in records:
            self.seen += 1
            on_progress(self.seen)
            if isinstance(item, Rejection):
                self._aside.append((self.seen, item))
                continue
            self.left_out += item.left_out + sum(max(map(len, turn[:2])) > self.params.quality.max_text for turn in item.turns)
            # A key takes as long as a small picture's hash, so it is made where somebody asks.
            if (self.forgotten or item.linked) and not self.forgotten.isdisjoint(keys := self._known_as(item)):
                self.kept_out |= keys
                self._aside.append((self.seen, Rejection(item.source, "a forgotten patient", "forgotten", "the patient was forgotten: see `unimed data forget`")))
                continue
            read, pictures = fingerprint(item, self.key)
            if not self.known.has_read(read):
                fingerprints.append((self.seen, read))
                yield with_pictures(item, pictures)

    def _known_as(self, record: Record) -> frozenset[str]:
        """The keys that count as a record's patient; a group's are noted."""
        who = (record.source, record.patient, *record.linked)
        if keys := self.groups.get(who):
            return keys
        keys = frozenset(patient_key(self.salt, record.source, name) for name in who[1:])
        if record.linked:
            self.groups[who] = keys
            self.untold.add(keys)
        return keys

    def tell_groups(self) -> None:
        """Keep which keys count as one patient, before a shard knows the patient by one of them: releases and shards from before may by another."""
        if groups := sorted(map(sorted, self.untold)):
            self.store.put_json(f"{LINKED}/{self.name}-{digest(groups)[:16]}.json", groups)
            self.untold.clear()

    def _write(self, full: list[shards.Building]) -> None:
        for building in full:
            self.tell_groups()
            # One at a time is under way: a store that is slow or gone holds the reading up, rather than memory.
            self._sent()
            self._sending = self._sender.submit(self._send, building)

    def _hold(self, full: list[shards.Building]) -> None:
        if full:
            self.tell_groups()
        self.held += [shards.put(self.store, f"{HELD}/{self.name}", building.finish()) for building in full]

    def _send(self, building: shards.Building) -> None:
        self.written.append(shards.put(self.store, f"intake/{self.name}", building.finish()))
        self.store.put_json(_journal(self.name), self.journalled + self.written)

    def _sent(self) -> None:
        """Wait for the shard under way; raises what went wrong with it."""
        if self._sending:
            self._sending.result()

    def require_nobody_forgotten(self) -> None:
        """Raises SourceConflict if a patient was forgotten meanwhile; what was written of the patient goes, as a purge that has ended did not see it."""
        if (since := forgotten(self.store)) != self.forgotten:
            self._withdraw(since)
            raise _conflict(self.name)

    def _withdraw(self, patients: set[str]) -> None:
        """Delete shards that this reading, or one it went on from, wrote, if they hold one of these patients and the source does not have them."""
        now = _current(self.store, self.name)[0]
        used = {shard["key"] for shard in [*now.get("shards", ()), *now.get("held", ())]}
        for shard in [*self.journalled, *self.written, *self.held]:
            if shard["key"] not in used and self.store.exists(shard["index_key"]) and not patients.isdisjoint(index.patients(self.store.get(shard["index_key"]))):
                for key in ("index_key", "key"):
                    self.store.delete(shard[key])

    def _bytes(self, shard: str) -> bytes:
        return self.store.get(next(s["key"] for s in self.shards if s["shard"] == shard))

    def listed(self) -> list[dict]:
        """The shards the source now consists of."""
        used = self.known.shards_in_use()
        return _each_once([*(s for s in self.shards if s["shard"] in used), *self.written])

    def stale(self) -> dict[str, list[int]]:
        """Rows that do not count, by shard; one that was written again, and came out the same, counts."""
        written = {s["shard"] for s in self.written}
        return {shard: rows for shard, rows in self.known.stale().items() if shard not in written}

    def aside(self) -> list[Rejection]:
        """What was kept aside, in the order of the source."""
        return [rejection for _, rejection in sorted(self._aside, key=itemgetter(0))]

    def counts(self) -> dict:
        records = {"seen": self.seen, "kept": self.seen - len(self._aside), "quarantined": len(self._aside)}
        return {"records": records, "questions_left_out": self.left_out}


def _each_once(found: Iterable[dict]) -> list[dict]:
    """Shards, each of them once: what is written again may come out the same, and a row of it that counted twice would be removed as its own copy."""
    return list({shard["shard"]: shard for shard in found}.values())


def _journal(name: str) -> str:
    return f"intake/{name}/journal.json"


def _journalled(store: ObjectStore, name: str) -> list[dict]:
    """Shards of a reading that did not come to its end, but for those that a purge deleted."""
    try:
        return [shard for shard in store.get_json(_journal(name)) if store.exists(shard["index_key"])]
    except MissingObject:
        return []


def _put_json(store: ObjectStore, name: str, kind: str, content: dict) -> str:
    key = f"intake/{name}/{kind}-{digest(content)[:16]}.json"
    store.put(key, json.dumps(content, separators=(",", ":")).encode())
    return key


def _origins(store: ObjectStore, name: str, told: bytes | None) -> dict:
    """Where it is kept what rows are read from by now, if their shards do not say it."""
    if told is None:
        return {}
    key = f"intake/{name}/origins-{hashlib.sha256(told).hexdigest()[:16]}.parquet"
    store.put(key, told)
    return {"origins": key}


def _put_quarantine(store: ObjectStore, name: str, aside: list[Rejection]) -> str:
    key = f"intake/{name}/quarantine-{digest([vars(r) for r in aside])[:16]}.parquet"
    store.put(key, shards.quarantine_bytes(aside))
    return key


def _current(store: ObjectStore, name: str) -> tuple[dict, str | None]:
    """The record of a source and its etag; nothing where there is none yet."""
    try:
        return store.get_json_with_etag(f"intake/{name}.json")
    except MissingObject:
        return {}, None


def _publish(store: ObjectStore, record: dict, before: dict, etag: str | None) -> dict:
    there = {k: v for k, v in before.items() if k != "added_at"}
    if there == record:
        return before | {"how": "up to date"}
    same = {**there, "origins": None} == {**record, "origins": None}
    try:
        store.put_json(f"intake/{record['name']}.json", record | {"added_at": utc_now()}, **({"if_match": etag} if etag else {"if_absent": True}))
    except (PreconditionFailed, MissingObject):
        raise _conflict(record["name"]) from None
    return record | {"how": "up to date" if same else "replaced" if before else "added"}


def _conflict(name: str) -> SourceConflict:
    return SourceConflict(f"source {name!r} was changed, or a patient forgotten, by another command while this one was under way; run this one again")


def find(name: str, store: ObjectStore) -> dict:
    """The record of a source. Raises LookupError: none of this name was added."""
    # A name with a slash would be that of something else that is kept there.
    if "/" in name or not (found := _current(store, name)[0]):
        raise LookupError(f"no source {name} was added; `unimed data list` names those that were, and sources.yaml lists those that are built in")
    return found


def remove(name: str, store: ObjectStore) -> None:
    """Delete the record that makes a source one. Its shards stay: a release under way may need them, and the source may be added again."""
    store.delete(f"intake/{name}.json")


def sources(store: ObjectStore) -> list[dict]:
    """Records of all sources taken in, by name."""
    names = [entry.key.removeprefix("intake/").removesuffix(".json") for entry in store.list("intake/") if entry.key.count("/") == 1 and entry.key.endswith(".json")]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        # One may be removed between the listing and the reading.
        return [record for record, _ in pool.map(lambda name: _current(store, name), names) if record]
