"""The request log: one Parquet row a request on S3, written behind the request's back."""

import io
import queue
import threading
import time
import uuid
from datetime import UTC, datetime

from infra.store import ObjectStore, StoreUnavailable, log_store

PREFIX = "requests"


def schema():
    """Columns of the log. Embeddings are the model's own view of the first image."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    columns = {"request_id": text, "time": pa.timestamp("ms", tz="UTC"), "route": text, "model_version": text, "arm": text}
    columns |= {"status": whole, "error_code": text, "latency_ms": real, "ttft_ms": real, "prompt_tokens": whole, "completion_tokens": whole}
    columns |= {"n_images": whole, "image_width": whole, "image_height": whole, "embedding": pa.list_(pa.float32())}
    columns |= {"prompt_chars": whole, "prompt_words": whole, "answer_chars": whole, "answer_words": whole}
    return pa.schema(columns | {"predicted_modality": text, "confidence": real})


def to_parquet(rows: list[dict]) -> bytes:
    """Rows as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), buffer)
    return buffer.getvalue()


class RequestLogWriter:
    """Collects rows and writes them in batches from a thread of its own; a request never waits for S3.

    While S3 is away rows are kept and tried again, up to `capacity`; beyond that they are dropped and counted.
    """

    def __init__(self, store: ObjectStore | None = None, batch: int = 200, every_s: float = 3.0, capacity: int = 50_000):
        self.store, self.batch, self.every_s = store or log_store(), batch, every_s
        self.rows: queue.Queue[dict] = queue.Queue(capacity)
        self.dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="request-log")
        self._thread.start()

    def add(self, row: dict) -> None:
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is left."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        pending: list[dict] = []
        while not (self._closing.is_set() and self.rows.empty() and not pending):
            pending += self._collect(self.batch - len(pending))
            if pending and self._write(pending):
                pending = []
            elif pending and self._closing.is_set():
                return

    def _collect(self, room: int) -> list[dict]:
        """Rows that arrive until the batch is full or its time is up."""
        rows, end = [], time.monotonic() + self.every_s
        while len(rows) < room and (left := end - time.monotonic()) > 0 and not (self._closing.is_set() and self.rows.empty()):
            try:
                rows.append(self.rows.get(timeout=min(left, 0.25)))
            except queue.Empty:
                continue
        return rows

    def _write(self, rows: list[dict]) -> bool:
        now = datetime.now(UTC)
        key = f"{PREFIX}/date={now:%Y-%m-%d}/{int(now.timestamp() * 1000)}-{uuid.uuid4().hex[:8]}.parquet"
        try:
            self.store.put(key, to_parquet(rows))
        except StoreUnavailable:
            return False
        return True


def read_window(since: datetime, model_version: str | None = None, store: ObjectStore | None = None, limit: int = 5000):
    """Answered requests since a moment as a DataFrame, newest `limit` rows, oldest first."""
    import pandas as pd
    import pyarrow.parquet as pq

    store = store or log_store()
    days = {f"{PREFIX}/date={day:%Y-%m-%d}/" for day in pd.date_range(since.date(), datetime.now(UTC).date())}
    keys = [entry.key for day in sorted(days) for entry in store.list(day)]
    recent = [key for key in keys if int(key.rsplit("/", 1)[1].split("-")[0]) >= since.timestamp() * 1000]
    frames = [pq.ParquetFile(io.BytesIO(store.get(key))).read(use_threads=False).to_pandas() for key in recent]
    if not frames:
        return pd.DataFrame(columns=schema().names)
    rows = pd.concat(frames, ignore_index=True).sort_values("time", ignore_index=True)
    rows = rows[(rows["status"] == 200) & (rows["time"] >= pd.Timestamp(since))]
    if model_version:
        rows = rows[rows["model_version"] == model_version]
    return rows.tail(limit).reset_index(drop=True)
