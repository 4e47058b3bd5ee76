"""Open a corpus release by its tag."""

from corpus.reader import ReleaseReader
from corpus.shard_cache import ShardCache
from infra.settings import get_settings
from infra.store import corpus_store


def release_record(tag: str) -> dict:
    """The record that makes a release visible.

    Raises:
        MissingObject: there is no such release.
    """
    return corpus_store().get_json(f"releases/{tag.removeprefix('corpus/')}.json")


def open_release(tag: str, cache_gib: float = float("inf"), outage_minutes: float = 0.0) -> ReleaseReader:
    """Samples of a release, read from S3 through a local cache of its shards."""
    cache = ShardCache(corpus_store(), get_settings().state_dir / "cache" / "shards", cache_gib * 2**30, outage_minutes)
    return ReleaseReader(release_record(tag), cache)
