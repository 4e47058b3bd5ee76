"""Random access to the samples of a release, for training and evaluation."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus import index
from corpus.sample import Sample
from corpus.shard_cache import ShardCache
from corpus.shards import DATA, INDEX
from infra.store import READ_AT_ONCE, ObjectStore


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


class Index:
    """The samples of a release as columns; an `Entry` is made when it is asked for. Millions of rows take some tens of bytes each."""

    WORDS = ("task", "modality", "source", "split")
    COLUMNS = ["id", *WORDS]

    def __init__(self, table: pa.Table, shards: list[str]):
        numbers = {name: number for number, name in enumerate(shards)}
        held = table["shard"].combine_chunks()
        self.shard = np.array([numbers[name] for name in held.dictionary.to_pylist()] or [0], dtype=np.int32)[held.indices.to_numpy(zero_copy_only=False)]
        self.row = table["row"].to_numpy().astype(np.int32)
        self._ids = table["id"].combine_chunks()
        self.words = {name: table[name].combine_chunks().dictionary.to_pylist() for name in self.WORDS}
        self.codes = {name: index.column(table, name).astype(np.int16) for name in self.WORDS}

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, position: int) -> Entry:
        words = {name: self.words[name][self.codes[name][position]] for name in self.WORDS}
        return Entry(int(self.shard[position]), int(self.row[position]), self.id(position), **words)

    def id(self, position: int) -> str:
        return self._ids[int(position)].as_py()

    def __iter__(self) -> Iterator[Entry]:
        return (self[position] for position in range(len(self)))

    def where(self, **words: str) -> np.ndarray:
        """Positions of the samples of this task, modality, source and split, in release order."""
        fits = np.ones(len(self), dtype=bool)
        for name, word in words.items():
            known = self.words[name]
            fits &= self.codes[name] == (known.index(word) if word in known else -1)
        return np.flatnonzero(fits)

    def values(self, name: str, positions: np.ndarray) -> list[str]:
        """The different words of a column at these positions, sorted."""
        return sorted(self.words[name][code] for code in np.unique(self.codes[name][positions]))


class ReleaseReader:
    """Opening a release brings its indexes; shards come when they are needed, and stay in the cache."""

    def __init__(self, release: dict, cache: ShardCache):
        self.tag, self.cache = release["tag"], cache
        files = {file["path"]: file for file in release["shards"]}
        self._release, self._files = release, [file for path, file in files.items() if not path.endswith(INDEX)]
        self.shards = [_name(file["path"], DATA) for file in self._files]
        self.index = Index(_columns(release, self.shards, cache, Index.COLUMNS), self.shards)

    def load(self, position: int) -> Sample:
        """The sample at a position of `index`."""
        shard, row = int(self.index.shard[position]), int(self.index.row[position])
        return Sample.from_row(self.cache.row(self._files[shard], row))

    def held_by(self, earlier: dict) -> np.ndarray:
        """Which samples an earlier release (its record) held as they are now, bool [samples].

        Where a shard was written anew since, as one with a forgotten patient is, what its samples are tells.
        """
        before = {_name(file["path"], DATA) for file in earlier["shards"] if not file["path"].endswith(INDEX)}
        known = np.array([name in before for name in self.shards] or [False])[self.index.shard]
        anew, gone = [name for name in self.shards if name not in before], sorted(before.difference(self.shards))
        if anew and gone:
            now, then = (_columns(release, names, self.cache, ["content"])["content"] for release, names in ((self._release, anew), (earlier, gone)))
            known[~known] = pc.is_in(now, value_set=then.combine_chunks()).to_numpy()
        return known

    def turns(self) -> np.ndarray:
        """How many questions each sample asks, int [samples]; no sample is loaded."""
        asked = _columns(self._release, self.shards, self.cache, ["asked"])["asked"]
        return pc.list_value_length(asked.combine_chunks()).to_numpy()

    def select(self, split: str, task: str) -> list[int]:
        """Positions of a split and task."""
        return self.index.where(split=split, task=task).tolist()

    def fetch_ahead(self, position: int) -> None:
        """Have the shard of a sample that is soon needed fetched in the background."""
        self.cache.fetch_ahead(self._files[self.index.shard[position]])


def release_index(release: dict, store: ObjectStore, cache_dir: Path, uncounted: bool = False) -> pa.Table:
    """The index of a whole release, without its pictures ever being fetched; if asked, with the rows of its shards that do not count."""
    cache = ShardCache(store, cache_dir)
    removed = {} if uncounted else json.loads(cache.small(release["removed"]))
    return index.join(_tables(cache, [file for file in release["shards"] if file["path"].endswith(INDEX)], removed))


def _columns(release: dict, shards: list[str], cache: ShardCache, columns: list[str]) -> pa.Table:
    """Columns of the indexes of these shards of a release, of the rows that count."""
    files = {file["path"]: file for file in release["shards"]}
    return index.join(_tables(cache, [files[f"shards/{name}{INDEX}"] for name in shards], json.loads(cache.small(release["removed"])), columns))


def _tables(cache: ShardCache, files: list[dict], removed: dict[str, list[int]], columns: list[str] | None = None) -> list[pa.Table]:
    def table(file: dict) -> pa.Table:
        shard = _name(file["path"], INDEX)
        rows = index.read(cache.small(file), shard, removed.get(shard, ()), columns)
        # Of who was purged a row is left that says nothing, so that the others keep their places.
        return rows.filter(pc.is_valid(rows.column(0))) if rows.column(0).null_count else rows

    # Workers of one machine that open a release at the same time would in one order each fetch every file.
    order = random.sample(range(len(files)), len(files))
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = dict(zip(order, pool.map(lambda number: table(files[number]), order)))
    return [found[number] for number in range(len(files))]


def _name(path: str, suffix: str) -> str:
    """A shard's name from its path in the release."""
    return path.removeprefix("shards/").removesuffix(suffix)
