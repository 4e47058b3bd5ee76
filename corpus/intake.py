"""Sources from outside: read, examined and kept on S3 as shards, ready for any release.

Taking a source in again writes only what is new or changed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from corpus import forgotten, quality, taken_in
from corpus.params import CorpusParams
from corpus.reading import Examine, OnProgress, Reading
from corpus.record import Record, Rejection
from infra.store import MissingObject, ObjectStore

# Of encoded pictures in memory.
BATCH, BATCH_BYTES = 32, 4 * 2**20


def add(
    name: str, records: Iterable[Record | Rejection], params: CorpusParams, store: ObjectStore, salt: bytes, examine: Examine | None = None, on_progress: OnProgress = lambda seen: None, place: str = ""
) -> dict:
    """Take a source in. Returns its record; an unchanged source gives the record that is there.

    Run again after it was interrupted, it goes on with the shards that are written already. `place` tells where the source lies.

    Raises:
        SourceConflict: the source was changed meanwhile, or a patient forgotten. Nothing was; run again, it goes on.
    """
    before, etag = taken_in.current(store, name)
    reading = Reading(name, before, params, store, salt)
    try:
        reading.run(records, examine or in_this_process(params, salt), on_progress)
        counts = reading.counts() | taken_in.keep_origins(store, name, reading.known.origins()) | ({"place": place} if place else {})
        reading.tell_groups()
        settled = taken_in.settled(store, params, name, reading.listed(), reading.stale(), reading.aside(), counts, reading.held)
    except MissingObject:
        # A purge may have deleted shards that were there when this began.
        reading.require_nobody_forgotten()
        raise
    reading.require_nobody_forgotten()
    record = taken_in.publish(store, settled, before, etag)
    # Who forgets a patient says so before reading the sources' records: whatever was published since the last look is seen there or here.
    if reading.forgotten != forgotten.patients(store):
        taken_in.put_back(store, record, before)
    reading.require_nobody_forgotten()
    reading.end()
    return record


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
