"""The tables of a run log as Parquet parts on S3, one folder a window of steps.

`training/<run>/<table>/<first step>-<last step>/<writer>.parquet`: a part grows in place until its window is full,
so that objects stay few while what was said last is there to read. Whoever starts a run again, or goes back to an
earlier step, opens a part of its own: nothing that was written is touched, and reading lets what was recorded
later supersede.
"""

import io
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from infra.store import CorruptObject, ObjectStore

# Steps a part spans. Samples are many a step and are asked for by step; the others are few and read whole.
WINDOWS = {"metrics": 10_000, "events": 10_000, "scores": 10_000, "samples": 500}


class OpenPart:
    """The part of a table that one writer is at."""

    def __init__(self, run: str, table: str, window: int):
        self.window, self._rows, self._new = window, None, []
        self.key = f"{_folder(run, table, window)}/{time.time_ns()}-{os.urandom(2).hex()}.parquet"

    def add(self, rows: list[dict]) -> None:
        """A column is of one kind in all rows. What no part can hold is refused here, so that it keeps no other row from being written."""
        import pyarrow as pa

        self._new.append(pa.Table.from_pylist(rows))

    def write(self, store: ObjectStore) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._new:
            tables = self._new if self._rows is None else [self._rows, *self._new]
            self._rows, self._new = pa.concat_tables(tables, promote_options="permissive").combine_chunks(), []
        buffer = io.BytesIO()
        pq.write_table(self._rows, buffer, compression="zstd")
        store.put(self.key, buffer.getvalue())


def window_of(table: str, step: int) -> int:
    return step // WINDOWS[table]


def read_table(store: ObjectStore, run: str, table: str):
    """All rows of a table as a DataFrame, in the order they were recorded; empty where there are none."""
    return _read(store, [f"training/{run}/{table}/"])


def read_windows(store: ObjectStore, run: str, table: str) -> Iterator:
    """Rows of each window of steps, the furthest first."""
    return (_read(store, [folder]) for folder in reversed(store.folders(f"training/{run}/{table}/")))


def read_step(store: ObjectStore, run: str, table: str, step: int):
    """Rows of one step."""
    return _read(store, [f"{_folder(run, table, window_of(table, step))}/"], step)


def newest_recorded(store: ObjectStore, run: str, table: str) -> int:
    """The latest stamp in a table's parts, 0 where there is none; one that is damaged says nothing."""
    newest = 0
    for entry in store.list(f"training/{run}/{table}/"):
        with suppress(CorruptObject):
            newest = max([newest, *_part(store, entry.key, None)["recorded"].to_pylist()])
    return newest


def current(frame, went_back: list[tuple[int, int]] = ()):
    """Each step once: a row is superseded by any that was recorded later for its step or an earlier one.

    That is how a run that went back to its checkpoint says that it does the steps since then again. Where it has said no more
    than that it `went_back`, (when, to which step), all later steps are undone as well.
    """
    if frame.empty:
        return frame
    from pandas import Series, concat

    again = Series({recorded: step + 1 for recorded, step in went_back}, dtype="int64")
    first = concat([frame.set_index("recorded")["step"], again]).groupby(level=0).min()
    later = first[::-1].cummin()[::-1].shift(-1, fill_value=first.max() + 1)
    kept = frame[frame["step"] < frame["recorded"].map(later)]
    return kept.sort_values(["step", "recorded"], kind="stable", ignore_index=True)


def _folder(run: str, table: str, window: int) -> str:
    size = WINDOWS[table]
    return f"training/{run}/{table}/{window * size:09d}-{(window + 1) * size - 1:09d}"


def _read(store: ObjectStore, prefixes: list[str], step: int | None = None):
    import pyarrow as pa

    chosen = None if step is None else [("step", "==", step)]
    keys = [entry.key for prefix in prefixes for entry in store.list(prefix)]
    parts = [_part(store, key, chosen) for key in keys]
    if not parts:
        return pa.table({"step": pa.array([], pa.int64()), "recorded": pa.array([], pa.int64())}).to_pandas()
    return pa.concat_tables(parts, promote_options="permissive").to_pandas().sort_values("recorded", kind="stable", ignore_index=True)


def _part(store: ObjectStore, key: str, chosen: list | None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = store.get(key)
    try:
        part = pq.read_table(io.BytesIO(data), filters=chosen, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CorruptObject(store.bucket, key, error) from None
    if not {"step", "recorded"} <= set(part.column_names):
        raise CorruptObject(store.bucket, key, "no steps in it")
    return part
