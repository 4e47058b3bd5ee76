"""Parquet files row by row."""

from collections.abc import Iterator
from pathlib import Path

from corpus.readers import textfiles
from corpus.record import Unreadable

# Rows in memory at once; a row may hold several pictures.
_BATCH = 16


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


def rows(file: Path, wanted: list[str]) -> Iterator[dict]:
    """The wanted columns, row by row.

    Raises:
        MissingColumn: one is not there.
        Unreadable: the file is damaged.
    """
    import pyarrow.parquet as pq

    found = columns(file)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise MissingColumn(f"{file.name} has no column {', '.join(missing)}; its columns are {', '.join(found)}")
    try:
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
                yield from batch.to_pylist()
    except Exception as error:
        raise Unreadable("unreadable-file", f"damaged Parquet ({type(error).__name__})") from None
