"""Shards of releases on this machine's disk: fetched from S3 when needed or shortly before, the least recently used given up.

A shard is kept in Arrow's own format, uncompressed: a row is read where it lies, without decoding the row group around it,
so that reading in shuffled order costs no more than reading in order. Any number of processes may share the folder: who
has a shard open holds a shared lock on its file, and nobody gives it up meanwhile. Where no room can be made, or the disk
is full, shards and indexes are read from memory.
"""

import errno
import fcntl
import hashlib
import io
import os
import queue
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.shards import content_name, content_of
from infra.outage import patiently
from infra.records import NO_ROOM, replacing, write_atomic
from infra.store import MissingObject, ObjectStore

KEPT = ".arrow"
# The column that is read row by row.
PICTURES = "images"
# Shards a process has open; threads that fetch ahead.
OPEN, FETCHERS = 32, 2


class LostShard(OSError):
    """What a release names is not in the store any more; no further try finds it. The message says how to mend it."""


class ShardCache:
    """Files of releases by content.

    Args:
        limit: bytes that shards may take, beside one that is being written; indexes are small and do not count.
        outage_minutes: how long a silent store is waited for.
    """

    def __init__(self, store: ObjectStore, folder: Path, limit: float = float("inf"), outage_minutes: float = 0.0):
        self.store, self.folder, self.limit, self.outage_minutes = store, folder, limit, outage_minutes
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._lock = threading.Lock()
        # Asked for, and neither opened nor failed since: a shard is asked for with every draw.
        self._ahead: set[str] = set()
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._fetchers: list[threading.Thread] = []

    def small(self, file: dict) -> bytes:
        """A file of a release's record ({path, key, md5}) that stays for good, such as an index.

        Raises:
            LostShard: it vanished from S3, or is not what was released.
            StoreUnavailable: the store stayed silent.
        """
        path = self.folder / f"{file['md5']}{Path(file['path']).suffix}"
        held = path.read_bytes() if path.exists() else b""
        if not _is_whole(file, held):
            held = self._fetch(file, self.outage_minutes)
            with _if_there_is_room():
                write_atomic(path, held)
        return held

    def row(self, file: dict, number: int) -> dict:
        """A row of a shard. Raises as `small` does."""
        return self._shard(file).row(number)

    def fetch_ahead(self, file: dict) -> None:
        """Have a shard fetched in the background; what goes wrong shows when it is needed."""
        with self._lock:
            if file["md5"] in self._open or file["md5"] in self._ahead:
                return
            self._ahead.add(file["md5"])
            if not self._fetchers:
                # Daemons: a process may end while the store is silent.
                self._fetchers = [threading.Thread(target=self._bring_ahead, name="shards", daemon=True) for _ in range(FETCHERS)]
                for thread in self._fetchers:
                    thread.start()
        self._asked.put(file)

    def _bring_ahead(self) -> None:
        while True:
            file = self._asked.get()
            try:
                with self._alone(file):
                    if not self._place(file).exists():
                        self._keep(file, self._fetch(file, 0))
            except OSError:
                with self._lock:
                    self._ahead.discard(file["md5"])

    def _shard(self, file: dict) -> "_Shard":
        with self._lock:
            if file["md5"] in self._open:
                self._open.move_to_end(file["md5"])
                return self._open[file["md5"]]
        shard = self._mapped(file) or self._brought(file)
        with self._lock:
            self._ahead.discard(file["md5"])
            self._open[file["md5"]] = shard
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        return shard

    def _brought(self, file: dict) -> "_Shard":
        with self._alone(file):
            if there := self._mapped(file):
                return there
            parquet = self._fetch(file, self.outage_minutes)
            self._keep(file, parquet)
            return self._mapped(file) or _in_memory(parquet)

    def _mapped(self, file: dict) -> "_Shard | None":
        """The shard as it lies in the folder, locked; None if it does not."""
        path = self._place(file)
        try:
            held = open(path, "rb")
            fcntl.flock(held, fcntl.LOCK_SH)
            if os.fstat(held.fileno()).st_ino != path.stat().st_ino:
                return None
            os.utime(path)
            return _Shard(pa.memory_map(str(path)), held)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise
            # Arrow's own: cut short, or otherwise damaged, when the machine lost power.
            path.unlink(missing_ok=True)
            return None

    def _place(self, file: dict) -> Path:
        return self.folder / f"{file['md5']}{KEPT}"

    def _fetch(self, file: dict, minutes: float) -> bytes:
        try:
            data = patiently(lambda: self.store.get(file["key"]), minutes)
        except MissingObject:
            raise LostShard(f"shard {file['path']} has vanished from S3 ({file['key']}); {_MEND}") from None
        if not _is_whole(file, data):
            raise LostShard(f"shard {file['path']} on S3 ({file['key']}) is damaged; {_MEND}")
        return data

    @contextmanager
    def _alone(self, file: dict) -> Iterator[None]:
        """One thread of one process fetches a shard; the others wait for it."""
        with _locked(self.folder / "locks" / file["md5"]):
            yield

    def _keep(self, file: dict, parquet: bytes) -> None:
        """Write a shard into the folder, if room can be made for it."""
        with _locked(self.folder / "locks" / "room"):
            for torn in self.folder.glob(f".*{KEPT}.*"):  # all writing is done under this lock: whoever wrote it was killed
                torn.unlink()
            with _if_there_is_room(), replacing(self._place(file)) as beside:
                with pa.OSFile(str(beside), "wb") as sink:
                    _write_arrow(parquet, sink)
                self._make_room(beside.stat().st_size)

    def _make_room(self, size: int) -> None:
        """Raises OSError (ENOSPC) where the limit leaves none."""
        if self._give_up(size):
            return
        with self._lock:
            self._open.clear()
        if not self._give_up(size):
            raise OSError(errno.ENOSPC, f"the shard cache may take {self.limit:,} bytes", str(self.folder))

    def _give_up(self, size: int) -> bool:
        """Delete shards that nobody has open, those asked for longest ago first, until so many bytes more are within the limit."""
        found = sorted(((path, path.stat()) for path in self.folder.glob(f"*{KEPT}")), key=lambda entry: entry[1].st_mtime_ns)
        over = sum(state.st_size for _, state in found) + size - self.limit
        for path, state in found:
            if over > 0 and _unlink_unread(path):
                over -= state.st_size
        return over <= 0


class _Shard:
    """An open shard; `held` carries its lock for as long as anybody uses it."""

    def __init__(self, source: pa.NativeFile, held: io.BufferedReader | None):
        reader = pa.ipc.open_file(source)
        self._groups = [_Group(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        self._ends = list(accumulate(len(group) for group in self._groups))
        self._held = held

    def row(self, number: int) -> dict:
        place = bisect_right(self._ends, number)
        return self._groups[place].row(number - (self._ends[place - 1] if place else 0))


class _Group:
    """A row group. What is small in it is taken out for all rows at once: row by row it would take ten times as long."""

    def __init__(self, batch: pa.RecordBatch):
        self._pictures, self._rest = batch[PICTURES], batch.drop_columns([PICTURES])

    def __len__(self) -> int:
        return len(self._pictures)

    @cached_property
    def _small(self) -> list[dict]:
        return self._rest.to_pylist()

    def row(self, number: int) -> dict:
        return self._small[number] | {PICTURES: self._pictures[number].as_py()}


# DVC sends nothing where there is something.
_MEND = "`unimed data verify` checks the release; where a good copy is, delete what is damaged on S3 and `dvc push`"


def _is_whole(file: dict, data: bytes) -> bool:
    """Whether this is the file that was released. A shard's name tells as well as its MD5, and SHA-256 takes less than half of the time."""
    if name := content_of(file["path"]):
        return content_name(data) == name
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == file["md5"]


def _write_arrow(parquet: bytes, sink: pa.NativeFile) -> None:
    """Write a shard in Arrow's file format, a record batch a row group; one of them is in memory at a time."""
    source = pq.ParquetFile(pa.BufferReader(parquet))
    with pa.ipc.new_file(sink, source.schema_arrow) as file:
        for group in range(source.num_row_groups):
            file.write_table(source.read_row_group(group, use_threads=False))


def _in_memory(parquet: bytes) -> _Shard:
    sink = pa.BufferOutputStream()
    _write_arrow(parquet, sink)
    return _Shard(pa.BufferReader(sink.getvalue()), None)


def _unlink_unread(path: Path) -> bool:
    """Delete a file unless somebody holds its lock; whether it is gone."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


@contextmanager
def _if_there_is_room() -> Iterator[None]:
    """What finds no room on the disk is not kept: it is in memory already."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that one thread of all processes of the machine gets at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
