"""What a source holds already: found again by what a record was read from, or by what a sample says and shows."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus import index, shards
from corpus.fingerprint import COUNT
from corpus.sample import Sample
from infra.store import READ_AT_ONCE, ObjectStore


class Known:
    """The rows a source has already: what is there is neither examined nor written again.

    A shard that holds a forgotten patient is not known, so that whoever lies beside the patient is written anew.
    """

    def __init__(self, shards: list[dict], store: ObjectStore, forgotten: set[str], origins: bytes | None):
        """`origins` is what an earlier reading had to say of them (see `origins`)."""
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            tables = list(pool.map(lambda s: index.read(store.get(s["index_key"]), s["shard"]), shards))
        self.table = index.join([table for table in tables if forgotten.isdisjoint(table["patient"].unique().to_pylist())])
        self.used = np.zeros(len(self.table), dtype=bool)
        self.origin = _told_since(self.table, origins) if origins else index.column(self.table, "origin").copy()
        self.content = index.column(self.table, "content").copy()
        # Of these an index from before it told their words is to be written anew.
        wordless = index.of_task(self.table, "text") & (index.column(self.table, "caption") == 0)
        self.origin[wordless] = self.content[wordless] = 0
        self._by = {"origin": _Lookup(self.origin), "content": _Lookup(self.content)}

    def has_read(self, read: int) -> bool:
        """True, and its rows count from now on, if what this record was read from is known, and every sample that it gave is there.

        They may lie in shards of which one is gone: one with a forgotten patient, or that was not written yet when a reading ended early.
        """
        rows = self._free(self._by["origin"].rows(read, read | COUNT)) if read else []
        if not len(rows):
            return False
        # The same may have been written twice.
        of_each = dict(zip(self.content[rows].tolist(), rows.tolist()))
        if len(of_each) != int(self.origin[rows[0]]) & COUNT:
            return False
        self.used[[*of_each.values()]] = True
        return True

    def has(self, sample: Sample, origin: int) -> bool:
        """True, and its row counts from now on as read from this record, if this very sample is there."""
        if not len(self.table):
            return False
        content = index.content(sample)
        free = self._free(self._by["content"].rows(content, content))
        self.used[free[:1]] = True
        self.origin[free[:1]] = origin
        return bool(len(free))

    def _free(self, rows: np.ndarray) -> np.ndarray:
        return rows[~self.used[rows]]

    def stale(self) -> dict[str, list[int]]:
        """Rows no record has asked for, by shard."""
        gone = self.table.filter(pa.array(~self.used))
        stale: dict[str, list[int]] = {}
        for shard, row in zip(gone["shard"].to_pylist(), gone["row"].to_pylist()):
            stale.setdefault(shard, []).append(row)
        return stale

    def to_write_anew(self, patients: set[str]) -> list[str]:
        """Shards of which less than half still counts, and those with rows of these patients that do not: their rest belongs into others."""
        shards, of_them = self.table["shard"].combine_chunks(), pc.is_in(self.table["patient"], pa.array(sorted(patients), pa.string())).to_numpy()
        rows, live, gone = (np.bincount(shards.indices, weights=mask) for mask in (np.ones_like(self.used), self.used, of_them & ~self.used))
        return [name for name, count, used, bad in zip(shards.dictionary.to_pylist(), rows, live, gone) if used and (bad or used < count / 2)]

    def take(self, shard: str, data: bytes) -> Iterator[tuple[Sample, int]]:
        """The samples of a shard that count, with their origins; from now on they do not count there."""
        place = index.column(self.table, "shard") == self.table["shard"].combine_chunks().dictionary.to_pylist().index(shard)
        wanted = np.flatnonzero(place & self.used)
        self.used[wanted] = False
        samples = list(shards.unpack(data))
        for row in wanted:
            yield samples[index.column(self.table, "row")[row]], int(self.origin[row])

    def origins(self) -> bytes | None:
        """What rows that count are read from now, where it is not what their shard says, as Parquet; None where it is.

        Parameters or code have changed then, and what they make of the record has not: it need not be looked at again.
        """
        told = self.used & (self.origin != index.column(self.table, "origin"))
        if not told.any():
            return None
        found = self.table.select(["shard", "row"]).append_column("origin", pa.array(self.origin)).filter(pa.array(told))
        buffer = io.BytesIO()
        pq.write_table(found, buffer, compression="zstd")
        return buffer.getvalue()

    def shards_in_use(self) -> set[str]:
        return set(self.table.filter(pa.array(self.used))["shard"].unique().to_pylist())


def _told_since(table: pa.Table, origins: bytes) -> np.ndarray:
    """The origins of an index's rows, after what was said of them since."""
    told = pq.ParquetFile(pa.BufferReader(origins)).read(use_threads=False)
    joined = table.select(["shard", "row", "origin"]).set_column(0, "shard", table["shard"].cast(pa.string()))
    told = told.set_column(0, "shard", told["shard"].cast(pa.string()))
    joined = joined.append_column("place", pa.array(np.arange(len(table)))).join(told, ["shard", "row"], right_suffix="_since", use_threads=False).sort_by("place")
    return pc.coalesce(joined["origin_since"], joined["origin"]).to_numpy().copy()


class _Lookup:
    """Rows by a 64-bit value."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        self.values = values[self.order]

    def rows(self, least: int, most: int) -> np.ndarray:
        return self.order[self.values.searchsorted(np.uint64(least)) : self.values.searchsorted(np.uint64(most), "right")]
