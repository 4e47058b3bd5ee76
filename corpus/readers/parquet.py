"""Parquet files row by row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from corpus.readers import textfiles
from corpus.record import Unreadable

# Rows in memory at once; a row may hold several pictures.
_BATCH = 16
_MAGIC = b"PAR1"


class MissingColumn(LookupError):
    """A column that a reader needs is not there; the message lists those that are."""


def columns(file: Path) -> list[str]:
    """Names of the columns.

    Raises:
        Unreadable: it is not a whole Parquet file.
    """
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except Exception as error:  # damaged files raise anything that Arrow has
        raise Unreadable("unreadable-file", f"not a whole Parquet file ({type(error).__name__})") from None


def has_columns(file: Path, *wanted: str) -> bool:
    """Whether it is a Parquet file with these columns."""
    try:
        return textfiles.named(file, ".parquet") and set(wanted) <= set(columns(file))
    except Unreadable:
        return False


def has_lost_its_end(file: Path) -> bool:
    """Whether it begins as a Parquet file and does not tell its columns, which are at the end."""
    with open(file, "rb") as stream:
        begun = stream.read(len(_MAGIC)) == _MAGIC
    try:
        return begun and not columns(file)
    except Unreadable:
        return True


def rows(file: Path, wanted: list[str]) -> Iterator[dict]:
    """The wanted columns, row by row; bytes of a text that are not UTF-8 become U+FFFD.

    Raises:
        MissingColumn: one is not there.
        Unreadable: the file is damaged, or has one of them twice.
    """
    import pyarrow.parquet as pq

    found = columns(file)
    if twice := [name for name in wanted if found.count(name) > 1]:
        raise Unreadable("unreadable-file", f"its column {', '.join(twice)} is there more than once")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise MissingColumn(f"{file.name} has no column {', '.join(missing)}; its columns are {', '.join(found)}")
    try:
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
                yield from _rows_of(batch)
    except Exception as error:
        raise Unreadable("unreadable-file", f"damaged Parquet ({type(error).__name__})") from None


def _rows_of(batch: pa.RecordBatch) -> list[dict]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [{name: _plain(column[row]) for name, column in zip(batch.schema.names, batch.columns)} for row in range(batch.num_rows)]


def _plain(cell: pa.Scalar) -> object:
    """The value of a cell that may have bytes in its texts that are not UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, pa.StructScalar):
            return {name: _plain(inner) for name, inner in cell.items()}
        if isinstance(cell, pa.ListScalar):
            return [_plain(inner) for inner in cell.values]
        return (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer().to_pybytes().decode(errors="replace")
