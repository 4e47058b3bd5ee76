"""Patients who are forgotten: who counts as one, what holds one, and sources without one."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from corpus import index, review, shards, taken_in
from corpus.params import CorpusParams
from corpus.shards import DATA, INDEX
from corpus.taken_in import HELD, INTAKE
from infra.store import READ_AT_ONCE, MissingObject, ObjectStore, PreconditionFailed

FORGOTTEN, LINKED = "privacy/forgotten.json", "privacy/linked"


def patients(store: ObjectStore) -> set[str]:
    """Keys of patients that no source may bring back."""
    try:
        return set(store.get_json(FORGOTTEN))
    except MissingObject:
        return set()


def remember(patient: set[str], store: ObjectStore) -> None:
    """From now on no source takes this patient in."""
    while not patient <= patients(store):
        try:
            current, etag = store.get_with_etag(FORGOTTEN)
            store.put_json(FORGOTTEN, sorted({*json.loads(current), *patient}), if_match=etag)
        except MissingObject:
            with suppress(PreconditionFailed):
                store.put_json(FORGOTTEN, sorted(patient), if_absent=True)
        except PreconditionFailed:
            continue


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

    A source without the patient stays as it is, and one that was removed meanwhile is none.

    Raises:
        SourceConflict: it was changed meanwhile.
    """
    record, etag = taken_in.current(store, name)
    if not record:
        return record, 0
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

    listed, held = shards.each_once(without(record["shards"], INTAKE)), shards.each_once(without(record.get("held", []), HELD))
    if not old:
        return record, 0
    aside = shards.read_quarantine(store.get(record["rejected"]))
    kept = {key: record[key] for key in ("records", "questions_left_out", "place") if key in record}
    return taken_in.publish(store, taken_in.settled(store, params, name, listed, stale, aside, kept, held), record, etag), old


def holding(patient: set[str], store: ObjectStore) -> list[str]:
    """Keys of all that was ever taken in and holds a patient, whether a source still uses it or not: shards and their indexes."""
    there = {entry.key for prefix in (f"{INTAKE}/", f"{HELD}/", f"{review.ADMITTED}/") for entry in store.list(prefix) if entry.key.endswith(DATA)}
    # Where a process died between a shard and its index, the shard itself tells.
    tells = {key: beside if (beside := key.removesuffix(DATA) + INDEX) in there else key for key in there if not key.endswith(INDEX)}
    return sorted({name for key, teller in tells.items() if not patient.isdisjoint(index.patients(store.get(teller))) for name in (key, teller)})


def records_of(patient: set[str], store: ObjectStore) -> set[int]:
    """Hashes of the records that were ever taken in of a patient and are nobody else's by now. No source may hold the patient any more."""

    def told(key: str) -> pa.Table:
        return index.read(store.get(key), "", columns=["patient", "record"])

    current = [shard["index_key"] for source in taken_in.sources(store) for shard in [*source["shards"], *source.get("held", ())]]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        old = [table.filter(pc.is_in(table["patient"], pa.array(sorted(patient)))) for table in pool.map(told, [key for key in holding(patient, store) if key.endswith(INDEX)])]
        found = {record for table in old for record in table["record"].to_pylist()}
        return found.difference(*(table["record"].to_pylist() for table in pool.map(told, current)))
