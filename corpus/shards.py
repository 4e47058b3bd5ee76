"""Parquet shards named by their content: the same samples give the same files."""

import hashlib
import io
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.params import ShardParams
from corpus.record import Rejection
from corpus.sample import SCHEMA, Sample

QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "where", "reason", "detail")])


def pack(samples: Iterable[Sample], params: ShardParams) -> Iterator[tuple[str, bytes, int]]:
    """(name, content, rows) of each shard; samples are ordered by id, so only content decides."""
    rows, size = [], 0
    for sample in sorted(samples, key=lambda s: s.id):
        rows.append(sample.to_row())
        size += sum(len(image.data) for image in sample.images)
        if size >= params.target_bytes:
            yield _shard(rows, params)
            rows, size = [], 0
    if rows:
        yield _shard(rows, params)


def _shard(rows: list[dict], params: ShardParams) -> tuple[str, bytes, int]:
    data = to_parquet(rows, SCHEMA, params.row_group)
    return f"{hashlib.sha256(data).hexdigest()[:16]}.parquet", data, len(rows)


def to_parquet(rows: list[dict], schema: pa.Schema, row_group: int = 1024) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=row_group, compression="zstd")
    return buffer.getvalue()


def unpack(data: bytes) -> Iterator[Sample]:
    """The samples of a shard."""
    for row in pq.read_table(io.BytesIO(data)).to_pylist():
        yield Sample.from_row(row)


def quarantine_bytes(rejections: Iterable[Rejection]) -> bytes:
    """What was kept aside, as Parquet."""
    return to_parquet([vars(rejection) for rejection in rejections], QUARANTINE_SCHEMA)


def read_quarantine(data: bytes) -> list[Rejection]:
    return [Rejection(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


