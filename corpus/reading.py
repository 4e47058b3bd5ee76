"""One reading of a source: what was seen, set aside and written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter

from corpus import forgotten, index, shards, taken_in
from corpus.fingerprint import fingerprint, origin, with_pictures
from corpus.known import Known
from corpus.params import CorpusParams
from corpus.patients import patient_key
from corpus.record import HeldBack, Record, Rejection
from corpus.sample import Sample
from corpus.taken_in import HELD, INTAKE, SourceConflict
from infra.records import digest, source_fingerprint
from infra.store import MissingObject, ObjectStore

Examined = list[Sample] | Rejection
# How records become samples: one after the other, or on many cores; in order either way.
Examine = Callable[[Iterable[Record]], Iterator[Examined]]
OnProgress = Callable[[int], None]


class Reading:
    """Goes on with the shards of a reading of the source that did not come to its end, and keeps a journal of its own."""

    def __init__(self, name: str, before: dict, params: CorpusParams, store: ObjectStore, salt: bytes):
        self.name, self.params, self.store, self.salt = name, params, store, salt
        self.groups: dict[tuple[str, ...], frozenset[str]] = {}
        self.untold: set[frozenset[str]] = set()
        self.forgotten = forgotten.patients(store)
        self.written: list[dict] = []
        self.held: list[dict] = []
        self.journalled = _journalled(store, name)
        if self.forgotten:
            # One that was killed while a patient was forgotten could not take back what it wrote.
            self._withdraw(self.forgotten)
        self.journalled = [shard for shard in self.journalled if store.exists(shard["index_key"])]
        self.shards = shards.each_once([*before.get("shards", ()), *(s for s in self.journalled if s["key"].startswith(f"{INTAKE}/"))])
        # Keys of who is kept aside as one with a forgotten patient: shards from before they were linked hold them.
        self.kept_out: set[str] = set()
        self.known = Known(self.shards, store, self.forgotten, store.get(before["origins"]) if "origins" in before else None)
        # The outcome for a record depends on these too: change one, and everything is looked at again.
        self.key = digest({"quality": params.quality.model_dump(mode="json"), "salt": salt.hex(), "code": source_fingerprint("corpus")}).encode()
        self.seen = self.left_out = 0
        # With the place in the source: what is examined is told later than what readers reject, by how many is at once.
        self._aside: list[tuple[int, Rejection]] = []
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
                self._write(holding.add(samples), HELD)
            else:
                told = origin(read, len(outcome))
                self._write(gathering.add([sample for sample in outcome if not self.known.has(sample, told)], told))
        for shard in self.known.to_write_anew(self.kept_out):
            for sample, told in self.known.take(shard, self._bytes(shard)):
                self._write(gathering.add([sample], told))
        self._write(gathering.finish())
        self._write(holding.finish(), HELD)

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
            self.store.put_json(f"{forgotten.LINKED}/{self.name}-{digest(groups)[:16]}.json", groups)
            self.untold.clear()

    def _write(self, full: list[shards.Building], to: str = INTAKE) -> None:
        for building in full:
            self.tell_groups()
            # One at a time is under way: a store that is slow or gone holds the reading up, rather than memory.
            self._sent()
            self._sending = self._sender.submit(self._send, building, to)

    def _send(self, building: shards.Building, to: str) -> None:
        """Keep a shard. The journal names it before it is there: what a killed reading leaves is known to the next."""
        shard, prefix = building.finish(), f"{to}/{self.name}"
        (self.held if to == HELD else self.written).append(shards.entry(prefix, shard))
        self.store.put_json(_journal(self.name), self.journalled + self.written + self.held)
        shards.put(self.store, prefix, shard)

    def _sent(self) -> None:
        """Wait for the shard under way; raises what went wrong with it."""
        if self._sending:
            self._sending.result()

    def require_nobody_forgotten(self) -> None:
        """Raises SourceConflict if a patient was forgotten meanwhile; what was written of the patient goes, as a purge that has ended did not see it."""
        if (since := forgotten.patients(self.store)) != self.forgotten:
            self._withdraw(since)
            raise SourceConflict(self.name)

    def _withdraw(self, patients: set[str]) -> None:
        """Delete shards that this reading, or one it went on from, wrote, if they hold one of these patients and the source does not have them."""
        now = taken_in.current(self.store, self.name)[0]
        used = {shard["key"] for shard in [*now.get("shards", ()), *now.get("held", ())]}
        for shard in [*self.journalled, *self.written, *self.held]:
            # Killed between the two, a reading left the shard without its index.
            there = [key for key in (shard["index_key"], shard["key"]) if self.store.exists(key)]
            if shard["key"] not in used and there and not patients.isdisjoint(index.patients(self.store.get(there[0]))):
                for key in there:
                    self.store.delete(key)

    def _bytes(self, shard: str) -> bytes:
        return self.store.get(next(s["key"] for s in self.shards if s["shard"] == shard))

    def listed(self) -> list[dict]:
        """The shards the source now consists of."""
        used = self.known.shards_in_use()
        return shards.each_once([*(s for s in self.shards if s["shard"] in used), *self.written])

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

    def end(self) -> None:
        """The source's record names what was written: the journal has nothing to add."""
        self.store.delete(_journal(self.name))


def _journal(name: str) -> str:
    return f"{INTAKE}/{name}/journal.json"


def _journalled(store: ObjectStore, name: str) -> list[dict]:
    """Shards of a reading that did not come to its end; a purge may have deleted some, or they were not written yet."""
    try:
        return store.get_json(_journal(name))
    except MissingObject:
        return []
