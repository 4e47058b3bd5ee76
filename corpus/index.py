"""The columns that checks and readers look at: one row a sample, without its pictures.

Every shard has an index beside it. Releases are decided on indexes alone, so their cost does not depend on pixels.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.sample import Image, Sample

# Bytes that corpus.features measures of a picture.
FEATURES = 97
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [("id", pa.string()), ("patient", pa.string())]
    + [(name, _DICTIONARY) for name in ("task", "modality", "source", "license", "split")]
    # 64-bit hashes: of the whole row, the record it came from, its last picture's pixels, and what was read for it.
    + [(name, pa.uint64()) for name in ("content", "record", "picture", "origin")]
    # Of each turn: picture with question, and answer.
    + [(name, pa.list_(pa.uint64())) for name in ("asked", "answered")]
    # pHash and dHash of the last picture; 0 and 0 where it was not measured.
    + [("phash", pa.uint64()), ("dhash", pa.uint64())]
    # What corpus.features saw of it, null where it was not measured, and a hash of the caption, or of all words where there is no picture; 0 for none.
    + [("features", pa.binary(FEATURES)), ("caption", pa.uint64())]
    + [("side", pa.int32()), ("text_length", pa.int32()), ("aspect", pa.float32()), ("entropy", pa.float32()), ("bytes", pa.int64())]
    # Hashes of its pictures before the last, as `picture`.
    + [("others", pa.list_(pa.uint64()))]
)


def row(sample: Sample, origin: int = 0) -> dict:
    """A sample's row of `SCHEMA`; `origin` is `corpus.fingerprint.origin` of its record, 0 if it has none."""
    last = sample.images[-1] if sample.images else None
    texts = [part.text for part in sample.parts if part.text]
    turns = sample.turns if sample.task == "understanding" else []
    look = str(sample.quality.get("look", "0" * 32))
    sides = [min(image.width, image.height) for image in sample.images]
    return {name: getattr(sample, name) for name in ("id", "patient", "task", "modality", "source", "license", "split")} | {
        "content": content(sample),
        "origin": origin,
        "record": hash64(sample.record),
        "picture": _picture(last) if last else 0,
        "others": [_picture(image) for image in sample.images[:-1]],
        "asked": [hash64(sample.images[0].sha256 + turn.question.casefold()) for turn in turns],
        "answered": [hash64(turn.answer.casefold()) for turn in turns],
        "phash": int(look[:16], 16),
        "dhash": int(look[16:], 16),
        "features": bytes.fromhex(str(sample.quality["features"])) if "features" in sample.quality else None,
        "caption": _caption(sample, texts),
        "side": min(sides, default=None),
        "text_length": sum(map(len, texts)) + max(0, len(texts) - 1),
        "aspect": last.width / last.height if last else None,
        "entropy": sample.quality.get("entropy"),
        "bytes": sum(len(image.data) for image in sample.images),
    }


def _caption(sample: Sample, texts: list[str]) -> int:
    if sample.task == "generation":
        return hash64(texts[0].casefold())
    return 0 if sample.images else hash64("\n".join(texts).casefold())


def _picture(image: Image) -> int:
    return int(image.sha256[:16], 16)


def content(sample: Sample) -> int:
    """64-bit hash of everything a sample says and shows: what tells an edited sample from an unchanged one."""
    known = (sample.id, sample.task, sample.modality, sample.source, sample.license, sample.attribution, sample.split, sample.patient)
    return hash64(repr((known, sample.parts, [image.sha256 for image in sample.images], sorted(sample.stored_labels.items()))))


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def to_bytes(rows: list[dict]) -> bytes:
    """Rows as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def read(data: bytes, shard: str, removed: Sequence[int] = (), columns: list[str] | None = None) -> pa.Table:
    """The index of a shard with the place of each row, less the rows that were removed; of its columns all, or these."""
    # Without threads: one that still starts up while Python ends aborts the process.
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
    rows = np.arange(len(table), dtype=np.int32)
    if columns is None and "others" not in table.column_names:  # of a shard that was written before there was this column
        table = table.append_column("others", pa.nulls(len(table), SCHEMA.field("others").type))
    table = table.append_column("shard", pa.repeat(pa.scalar(shard), len(table)).dictionary_encode())
    table = table.append_column("row", pa.array(rows))
    return table.filter(pa.array(~np.isin(rows, removed))) if len(removed) else table


def patients(data: bytes | Path) -> set[str]:
    """The patients of a shard or of its index; of any other Parquet file, none."""
    with pq.ParquetFile(data if isinstance(data, Path) else pa.BufferReader(data)) as file:
        table = file.read(columns=["patient"], use_threads=False)
    return {*table["patient"].unique().to_pylist()} if table.num_columns else set()


def without_patient(data: bytes, patient: set[str]) -> bytes:
    """An index that tells nothing of a patient, by all the patient's keys; the other rows keep their places."""
    rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
    return to_bytes([{} if row["patient"] in patient else row for row in rows])


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Several indexes as one."""
    if not tables:
        return read(to_bytes([]), "")
    return pa.concat_tables(tables).unify_dictionaries()


def of_task(table: pa.Table, name: str) -> np.ndarray:
    """A mask of the samples of a task."""
    task = table["task"].combine_chunks()
    names = task.dictionary.to_pylist()
    return column(table, "task") == (names.index(name) if name in names else -1)


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column as numbers; words become codes of an order of their own."""
    values = table[name].combine_chunks()
    if pa.types.is_dictionary(values.type):
        return values.indices.to_numpy(zero_copy_only=False)
    return values.to_numpy(zero_copy_only=False)
