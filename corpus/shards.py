"""Parquet shards named by their content, each with its index: the same samples in the same order give the same files."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from corpus import index
from corpus.params import ShardParams
from corpus.record import Rejection
from corpus.sample import SCHEMA, Sample
from infra.store import ObjectStore

# How the two files of a shard end.
DATA, INDEX = ".parquet", ".index.parquet"
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "where", "reason", "detail", "record")])


@dataclass(frozen=True)
class Shard:
    """A finished shard: `name` is `<folder of its source>/<hash>`; `data` and `index` are its two Parquet files."""

    name: str
    data: bytes
    index: bytes
    rows: int


class Building:
    """A shard that is being written, a row group at a time."""

    def __init__(self, source: str, params: ShardParams):
        self.source, self.bytes = source, 0
        self._row_group = params.row_group
        self._rows: list[dict] = []
        self._index: list[dict] = []
        self._buffer = io.BytesIO()
        self._file = _writer(self._buffer, SCHEMA)

    def add(self, sample: Sample, origin: int) -> None:
        """Write a sample, with its record's origin."""
        self._rows.append(sample.to_row())
        self._index.append(index.row(sample, origin))
        # A row without pictures takes room as well.
        self.bytes += 512 + sum(len(image.data) for image in sample.images)
        if len(self._rows) == self._row_group:
            self._end_group()

    def finish(self) -> Shard:
        """The shard of all that was added."""
        if self._rows:
            self._end_group()
        self._file.close()
        data = self._buffer.getvalue()
        return Shard(f"{_folder(self.source)}/{content_name(data)}", data, index.to_bytes(self._index), len(self._index))

    def _end_group(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows = []


class Gathering:
    """Samples in a shard of each source, handed out whenever these have enough bytes."""

    def __init__(self, params: ShardParams):
        self.params = params
        self._open: dict[str, Building] = {}

    def add(self, samples: Iterable[Sample], origin: int = 0) -> list[Building]:
        """Take in the samples of a record; returns the shard they completed, if any."""
        for sample in samples:
            if sample.source not in self._open:
                self._open[sample.source] = Building(sample.source, self.params)
            self._open[sample.source].add(sample, origin)
        if sum(shard.bytes for shard in self._open.values()) < self.params.target_bytes:
            return []
        return [self._open.pop(max(self._open, key=lambda source: self._open[source].bytes))]

    def finish(self) -> list[Building]:
        """What is left."""
        return [self._open.pop(source) for source in sorted(self._open)]


def write(records: Iterable[Iterable[Sample]], params: ShardParams) -> list[Shard]:
    """All shards of the samples of these records."""
    gathering = Gathering(params)
    finished = [full.finish() for samples in records for full in gathering.add(samples)]
    return finished + [left.finish() for left in gathering.finish()]


def make(source: str, samples: Iterable[tuple[Sample, int]], params: ShardParams) -> Shard:
    """A shard of these samples, each with its record's origin."""
    building = Building(source, params)
    for sample, origin in samples:
        building.add(sample, origin)
    return building.finish()


def content_name(data: bytes) -> str:
    """What a shard of this content is called within the folder of its source."""
    return hashlib.sha256(data).hexdigest()[:16]


def content_of(path: str) -> str | None:
    """The content name that the path of a shard carries; None of any other file, an index among them."""
    place = PurePosixPath(path)
    return place.stem if place.suffixes == [DATA] else None


def _folder(source: str) -> str:
    """A source's name as that of a folder: records may name any."""
    return re.sub(r"[^\w. -]+", "-", source).strip("-.")[:100] or "source"


def entry(prefix: str, shard: Shard) -> dict:
    """What names a shard that is kept under a prefix: {shard, key, index_key, rows, bytes}."""
    return {"shard": shard.name, "key": f"{prefix}/{shard.name}{DATA}", "index_key": f"{prefix}/{shard.name}{INDEX}", "rows": shard.rows, "bytes": len(shard.data)}


def put(store: ObjectStore, prefix: str, shard: Shard) -> dict:
    """Keep a shard and its index under a prefix, unless they are there; returns their entry."""
    named = entry(prefix, shard)
    if not store.exists(named["key"]):
        store.put(named["key"], shard.data)
    # No name tells an index's content: of the same samples an earlier version of this code may have told less.
    if not store.exists(named["index_key"]) or store.get(named["index_key"]) != shard.index:
        store.put(named["index_key"], shard.index)
    return named


def each_once(entries: Iterable[dict]) -> list[dict]:
    """Entries of shards, each of them once: what is written again may come out the same, and a row of it that counted twice would be removed as its own copy."""
    return list({entry["shard"]: entry for entry in entries}.values())


def _writer(buffer: io.BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet file in which only words are worth a dictionary."""
    words = [name for name in schema.names if schema.field(name).type == pa.string()]
    # Pictures are compressed already.
    codecs = {path: "NONE" if path.endswith(".data") else "ZSTD" for path in _leaves(schema)}
    return pq.ParquetWriter(buffer, schema, compression=codecs, use_dictionary=words)


@cache
def _leaves(schema: pa.Schema) -> tuple[str, ...]:
    """Paths of the schema's leaf columns, as Parquet names them."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return tuple(columns.column(i).path for i in range(len(columns)))


def unpack(data: bytes) -> Iterator[Sample]:
    """The samples of a shard."""
    for row in pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist():
        yield Sample.from_row(row)


def quarantine_bytes(rejections: Iterable[Rejection]) -> bytes:
    """What was kept aside, as Parquet."""
    buffer = io.BytesIO()
    with _writer(buffer, QUARANTINE_SCHEMA) as file:
        file.write_table(pa.Table.from_pylist([vars(rejection) for rejection in rejections], schema=QUARANTINE_SCHEMA), row_group_size=1024)
    return buffer.getvalue()


def read_quarantine(data: bytes) -> list[Rejection]:
    return [Rejection(**row) for row in pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()]
