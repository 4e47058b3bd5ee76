"""Shards as the store has them: what is read is what was written, or the object is named that is not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from corpus import index
from corpus.shards import DATA, content_name, content_of
from infra.store import ObjectStore


class DamagedShard(ValueError):
    """A shard or index in the store is not what was once written; the message says how to mend it."""

    def __init__(self, key: str, store: ObjectStore, why: object):
        super().__init__(f"{key!r} in bucket {store.bucket!r} is damaged ({why}): put an earlier copy back, or {_mend(key)}")


def data(shard: dict, store: ObjectStore) -> bytes:
    """The bytes of a shard, by its entry (see `corpus.shards.put`). Raises DamagedShard."""
    found = store.get(shard["key"])
    if not as_named(f"{shard['shard']}{DATA}", found):
        raise DamagedShard(shard["key"], store, "its name is of other content")
    return found


def table(shard: dict, store: ObjectStore, removed: Sequence[int] = ()) -> pa.Table:
    """The index of a shard, see `corpus.index.read`. Raises DamagedShard."""
    found = store.get(shard["index_key"])
    with readable(shard["index_key"], store):
        return index.read(found, shard["shard"], removed)


@contextmanager
def readable(key: str, store: ObjectStore) -> Iterator[None]:
    """Raises DamagedShard where what was read under this key is no Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DamagedShard(key, store, error) from None


def as_named(path: str, found: bytes) -> bool:
    """Whether the bytes of a shard are those it is named by; its index is not named by its own."""
    name = content_of(path)
    return name is None or content_name(found) == name


def _mend(key: str) -> str:
    kind, name, *_ = key.split("/")
    if kind in ("intake", "held"):
        return f"delete it, `unimed data remove {name}` and add the source again"
    return f"delete all keys that begin with {key.rsplit('/', 2)[0]!r}: it is made again"
