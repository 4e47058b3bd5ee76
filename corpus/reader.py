"""Random access to the samples of a release, for training and evaluation."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus import index
from corpus.sample import Sample
from infra.records import write_atomic
from infra.store import ObjectStore

DATA, INDEX = ".parquet", ".index.parquet"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a sample lies and what it is, without its pictures."""

    shard: int
    row: int
    id: str
    task: str
    modality: str
    source: str
    split: str


class ReleaseReader:
    """Shards come from S3 once, are checked against their recorded hash, and stay in the cache folder."""

    def __init__(self, release: dict, store: ObjectStore, cache_dir: Path):
        self.tag = release["tag"]
        files = {file["path"]: _cached(file, store, cache_dir) for file in release["shards"]}
        removed = json.loads(_cached(release["removed"], store, cache_dir).read_text())
        shards = [path for path in files if not path.endswith(INDEX)]
        self._paths = [files[shard] for shard in shards]
        self.index = [
            entry
            for number, shard in enumerate(shards)
            for entry in _entries(number, _name(shard, DATA), files[shard.removesuffix(DATA) + INDEX], removed)
        ]
        self._group: Callable = lru_cache(maxsize=256)(self._load_group)

    def load(self, position: int) -> Sample:
        """The sample at a position of `index`."""
        entry = self.index[position]
        group, row = self._place(entry)
        return self._group(entry.shard, group)[row]

    def select(self, split: str, task: str) -> list[int]:
        """Positions of a split and task."""
        return [i for i, entry in enumerate(self.index) if entry.split == split and entry.task == task]

    def _place(self, entry: Entry) -> tuple[int, int]:
        row = entry.row
        metadata = _metadata(self._paths[entry.shard])
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            if row < count:
                return group, row
            row -= count
        raise IndexError(entry.row)

    def _load_group(self, shard: int, group: int) -> list[Sample]:
        rows = pq.ParquetFile(self._paths[shard]).read_row_group(group, use_threads=False).to_pylist()
        return [Sample.from_row(row) for row in rows]


def release_index(release: dict, store: ObjectStore, cache_dir: Path) -> pa.Table:
    """The index of a whole release, without its pictures ever being fetched."""
    removed = json.loads(_cached(release["removed"], store, cache_dir).read_text())
    tables = []
    for file in release["shards"]:
        if file["path"].endswith(INDEX):
            shard = _name(file["path"], INDEX)
            tables.append(index.read(_cached(file, store, cache_dir).read_bytes(), shard, removed.get(shard, ())))
    return index.join(tables)


def _name(path: str, suffix: str) -> str:
    """A shard's name from its path in the release."""
    return path.removeprefix("shards/").removesuffix(suffix)


@lru_cache(maxsize=4096)
def _metadata(path: Path):
    return pq.ParquetFile(path).metadata


def _entries(number: int, shard: str, path: Path, removed: dict[str, list[int]]) -> Iterator[Entry]:
    table = index.read(path.read_bytes(), shard, removed.get(shard, ()))
    for fields in table.select(["row", "id", "task", "modality", "source", "split"]).to_pylist():
        yield Entry(number, **fields)


def _cached(shard: dict, store: ObjectStore, cache_dir: Path) -> Path:
    path = cache_dir / f"{shard['md5']}{Path(shard['path']).suffix}"
    if not path.exists():
        data = store.get(shard["key"])
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != shard["md5"]:
            raise OSError(f"shard {shard['path']} on S3 ({shard['key']}) is damaged; `unimed data verify` checks the release, `dvc push` from a good copy mends it")
        write_atomic(path, data)
    return path


