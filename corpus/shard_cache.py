"""Shards of releases on this machine's disk: fetched from S3 when first needed or shortly before, the least used ones given up."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from infra.outage import patiently
from infra.store import MissingObject, ObjectStore

FETCHERS = 2


class ShardCache:
    """Files of releases by content. Several processes of a machine may share the folder.

    A file that is given up while somebody reads it stays whole for that reader, as open files do.

    Args:
        limit: bytes the folder may hold; the newest file stays whatever its size.
        outage_minutes: how long a silent store is waited for.
    """

    def __init__(self, store: ObjectStore, folder: Path, limit: float = float("inf"), outage_minutes: float = 0.0):
        self.store, self.folder, self.limit, self.outage_minutes = store, folder, limit, outage_minutes
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="shards")
        self._ahead: set[str] = set()
        self._lock = threading.Lock()

    def path(self, file: dict) -> Path:
        """The file of a release's record ({path, key, md5}) on disk.

        Raises:
            OSError: it vanished from S3, or is not what was released.
            StoreUnavailable: the store stayed silent.
        """
        path = self._place(file)
        if path.exists():
            os.utime(path)
            return path
        with self._alone(path):
            if not path.exists():
                self._fetch(file, path)
                self._make_room(path)
        return path

    def fetch_ahead(self, file: dict) -> None:
        """Have the file fetched in the background, once; what goes wrong shows when it is needed."""
        with self._lock:
            if file["md5"] in self._ahead:
                return
            self._ahead.add(file["md5"])
        if not self._place(file).exists():
            self._fetchers.submit(self.path, file)

    def _place(self, file: dict) -> Path:
        return self.folder / f"{file['md5']}{Path(file['path']).suffix}"

    def _fetch(self, file: dict, path: Path) -> None:
        arriving = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            patiently(lambda: self.store.download_file(file["key"], arriving), self.outage_minutes)
            with open(arriving, "rb") as data:
                whole = hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == file["md5"]
            if not whole:
                raise OSError(f"shard {file['path']} on S3 ({file['key']}) is damaged; `unimed data verify` checks the release, `dvc push` from a good copy mends it")
            os.replace(arriving, path)
        except MissingObject:
            raise OSError(f"shard {file['path']} has vanished from S3 ({file['key']}); `unimed data verify` checks the release, `dvc push` from a good copy mends it") from None
        finally:
            arriving.unlink(missing_ok=True)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """One process fetches a file; the others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, newest: Path) -> None:
        """Give up the files that were asked for longest ago."""
        found = []
        for path in self.folder.glob("*.parquet"):
            try:
                found.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:
                continue
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self.limit:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                with self._lock:
                    self._ahead.discard(path.stem)
                held -= size
