"""The review queue: what a person should look at, one record a case, and the person's word on it."""

import getpass
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus import index, release, review, shards, stored, taken_in
from corpus.reader import release_index
from corpus.sample import Sample
from corpus.settle import record_of
from flows.history import whole
from flows.report import find_release
from infra.settings import get_settings
from infra.store import corpus_store

AUDIT = "audit"


@dataclass(frozen=True)
class Case:
    """A record to decide on: whether the release has it, why it is a case, its patient's key, its samples as they are (contents by id), and the shards they lie in."""

    record: str
    source: str
    modality: str
    kept: bool
    reason: str
    detail: str
    patient: str
    samples: dict[str, int]
    shards: tuple[str, ...]

    def to_json(self) -> dict:
        return {name: getattr(self, name) for name in ("record", "source", "modality", "kept", "reason", "detail")} | {"samples": sorted(self.samples)}


class Review:
    """The cases of a release and of what its sources hold back."""

    def __init__(self, tag: str | None = None):
        self.store, self.release = corpus_store(), whole(find_release(tag))
        self._keys: dict[str, str] = {}
        self.table = self._everything()
        self._records = index.column(self.table, "record")
        self._order = np.argsort(self._records, kind="stable")
        self._kept = index.column(release_index(self.release, self.store, _cache()), "record")

    def queue(self, size: int) -> list[Case]:
        """At most `size` undecided cases, as many of each source, modality and reason as of any other; the same for a release each time."""
        strata: dict[tuple, list[Case]] = defaultdict(list)
        decided = review.decided(self.store)

        def waits(case: Case) -> bool:
            return review.decision_key(case.record, case.samples) not in decided

        for case in chain(filter(waits, self._uncertain()), *(islice(filter(waits, group), size) for group in self._audit())):
            strata[case.source, case.modality, case.reason].append(case)
        # Judgements before the audit, and where there are more groups than cases no source first each time.
        groups = [strata[group] for group in sorted(strata, key=lambda group: (group[2] == AUDIT, index.hash64(f"{self.release['tag']} {group}")))]
        drawn, depth = [], 0
        while len(drawn) < size and (layer := [cases[depth] for cases in groups if depth < len(cases)]):
            drawn, depth = drawn + layer, depth + 1
        return drawn[:size]

    def case(self, name: str) -> Case:
        """The case of a record, by its id or a sample's, whether it is in the queue or not.

        Raises:
            LookupError: no source holds it, or there is nothing a person may decide.
        """
        for record in (name, name.rpartition("#")[0]):
            found = next((case for case in self._uncertain() if case.record == record), None) or self._found(record, AUDIT, "")
            if found and (found.kept or found.reason != AUDIT):
                return found
        raise LookupError(f"{name} is neither kept nor held back for a person; `unimed data review --list` names those that are")

    def samples(self, case: Case) -> list[Sample]:
        """What the record shows and says."""
        found = (sample for name in case.shards for sample in shards.unpack(self.store.get(self._keys[name])))
        return [*{sample.id: sample for sample in found if case.samples.get(sample.id) == index.content(sample)}.values()]

    def decide(self, case: Case, accept: bool, who: str | None, note: str, overrule: bool) -> dict:
        """Keep a decision; raises `corpus.review.AlreadyDecided`."""
        return review.decide(self.store, case.record, case.samples, case.patient, accept, who or getpass.getuser(), note, overrule)

    def _everything(self) -> pa.Table:
        """The index of what sources keep, hold back or keep aside now, and of what the release has of the built-in ones; rows that were edited away are left out."""
        tables = []
        for source in taken_in.sources(self.store):
            stale, listed = self.store.get_json(source["stale"]), [*source["shards"], *source.get("held", ())]
            tables += [stored.table(s, self.store, stale.get(s["shard"], ())) for s in listed]
            self._keys |= {s["shard"]: s["key"] for s in listed}
        built_in, released = release.built_in_shards(self.store), release_index(self.release, self.store, _cache())
        own = [name for name in released["shard"].unique().to_pylist() if name in built_in]
        self._keys |= {name: built_in[name] for name in own}
        return index.join([*tables, released.filter(pc.is_in(released["shard"], pa.array(own, pa.string())))])

    def _uncertain(self) -> Iterator[Case]:
        """What was kept aside by a judgement, in this release or since, and what was kept in doubt."""
        keys = [self.release[name] for name in ("doubts_key", "quarantine_key") if name in self.release]
        keys += [source["quarantine"] for source in taken_in.sources(self.store)]
        seen = set()
        for rejection in (r for key in keys for r in shards.read_quarantine(self.store.get(key)) if r.record):
            if rejection.record not in seen and (case := self._found(rejection.record, rejection.reason, rejection.detail)):
                yield case
            seen.add(rejection.record)

    def _audit(self) -> Iterator[Iterator[Case]]:
        """Kept records of each source and modality, in an order drawn by the release's name."""
        kept = self.table.filter(pa.array(np.isin(self._records, self._kept)))
        record, first = np.unique(index.column(kept, "record"), return_index=True)
        group = index.column(kept, "source")[first].astype(np.int64) * 64 + index.column(kept, "modality")[first]
        drawn = np.random.default_rng(index.hash64(self.release["tag"])).permutation(len(record))
        for which in np.unique(group):
            yield self._drawn(kept["id"], first[drawn[group[drawn] == which]])

    def _drawn(self, ids: pa.ChunkedArray, rows: np.ndarray) -> Iterator[Case]:
        for row in rows.tolist():
            yield self._found(record_of(ids[row].as_py()), AUDIT, "drawn from what is kept")

    def _found(self, record: str, reason: str, detail: str) -> Case | None:
        value = np.uint64(index.hash64(record))
        first, last = (np.searchsorted(self._records, value, side, sorter=self._order) for side in ("left", "right"))
        rows = self.table.take(pa.array(self._order[first:last]))
        if not len(rows):
            return None
        one = rows.slice(0, 1).to_pylist()[0]
        samples = dict(zip(rows["id"].to_pylist(), index.column(rows, "content").tolist()))
        return Case(record, one["source"], one["modality"], bool(np.isin(value, self._kept)), reason, detail, one["patient"], samples, tuple(dict.fromkeys(rows["shard"].to_pylist())))


def save_picture(samples: list[Sample], folder: Path) -> Path | None:
    """Write the record's last picture for a person to look at; None for a record of words."""
    shown = next((sample for sample in samples if sample.images), None)
    if shown is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{index.hash64(shown.id):016x}.png"
    shown.images[-1].open().save(path)
    return path


def words(samples: list[Sample]) -> str:
    """What the record says, as plain lines."""
    lines = [f"{turn.question} {turn.answer}" for sample in samples for turn in sample.turns]
    lines += [part.text for sample in samples if sample.task != "understanding" for part in sample.parts if part.text]
    return "\n".join("".join(c for c in line if c.isprintable()) for line in lines)


def _cache() -> Path:
    return get_settings().state_dir / "cache" / "shards"
