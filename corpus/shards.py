"""Parquet shards named by their content, each with its index: the same samples in the same order give the same files."""

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq

from corpus import index
from corpus.params import ShardParams
from corpus.record import Rejection
from corpus.sample import SCHEMA, Sample
from infra.store import ObjectStore

# A source, and samples of it, each with its record's origin.
Gathered = tuple[str, list[tuple[Sample, int]]]
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


class Gathering:
    """Samples by source, handed out as those of a shard (see `make`) whenever enough bytes wait."""

    def __init__(self, params: ShardParams):
        self.params = params
        self._waiting: dict[str, list[tuple[Sample, int]]] = defaultdict(list)
        self._bytes: dict[str, int] = defaultdict(int)

    def add(self, samples: Iterable[Sample], origin: int = 0) -> list[Gathered]:
        """Take in the samples of a record; returns those of the shard they completed, if any."""
        for sample in samples:
            self._waiting[sample.source].append((sample, origin))
            # A row without pictures takes room as well.
            self._bytes[sample.source] += 512 + sum(len(image.data) for image in sample.images)
        full = sum(self._bytes.values()) >= self.params.target_bytes
        return [self._take(max(self._bytes, key=self._bytes.get))] if full else []

    def finish(self) -> list[Gathered]:
        """What is left."""
        return [self._take(source) for source in sorted(self._waiting)]

    def _take(self, source: str) -> Gathered:
        self._bytes.pop(source)
        return source, self._waiting.pop(source)


def write(records: Iterable[Iterable[Sample]], params: ShardParams) -> list[Shard]:
    """All shards of the samples of these records."""
    gathering = Gathering(params)
    finished = [make(*gathered, params) for samples in records for gathered in gathering.add(samples)]
    return finished + [make(*gathered, params) for gathered in gathering.finish()]


def make(source: str, samples: list[tuple[Sample, int]], params: ShardParams) -> Shard:
    """A shard of these samples, each with its record's origin."""
    data = to_parquet([sample.to_row() for sample, _ in samples], SCHEMA, params.row_group)
    name = f"{_folder(source)}/{hashlib.sha256(data).hexdigest()[:16]}"
    return Shard(name, data, index.to_bytes([index.row(*sample) for sample in samples]), len(samples))


def _folder(source: str) -> str:
    """A source's name as that of a folder: records may name any."""
    return re.sub(r"[^\w. -]+", "-", source).strip("-.")[:100] or "source"


def put(store: ObjectStore, prefix: str, shard: Shard) -> dict:
    """Keep a shard and its index under a prefix, unless they are there; returns their entry {shard, key, index_key, rows, bytes}."""
    keys = {"key": f"{prefix}/{shard.name}{DATA}", "index_key": f"{prefix}/{shard.name}{INDEX}"}
    for key, data in zip(keys.values(), (shard.data, shard.index)):
        if not store.exists(key):
            store.put(key, data)
    return {"shard": shard.name, **keys, "rows": shard.rows, "bytes": len(shard.data)}


def to_parquet(rows: list[dict], schema: pa.Schema, row_group: int = 1024) -> bytes:
    """Rows as a Parquet file; only words are worth a dictionary."""
    buffer = io.BytesIO()
    words = [name for name in schema.names if schema.field(name).type == pa.string()]
    # Pictures are compressed already.
    codecs = {path: "NONE" if path.endswith(".data") else "ZSTD" for path in _leaves(schema)}
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=row_group, compression=codecs, use_dictionary=words)
    return buffer.getvalue()


@cache
def _leaves(schema: pa.Schema) -> tuple[str, ...]:
    """Paths of the schema's leaf columns, as Parquet names them."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(buffer).schema
    return tuple(columns.column(i).path for i in range(len(columns)))


def unpack(data: bytes) -> Iterator[Sample]:
    """The samples of a shard."""
    for row in pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).to_pylist():
        yield Sample.from_row(row)


def quarantine_bytes(rejections: Iterable[Rejection]) -> bytes:
    """What was kept aside, as Parquet."""
    return to_parquet([vars(rejection) for rejection in rejections], QUARANTINE_SCHEMA)


def read_quarantine(data: bytes) -> list[Rejection]:
    return [Rejection(**row) for row in pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).to_pylist()]
