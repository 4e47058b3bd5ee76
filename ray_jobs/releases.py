"""Open a corpus release by its tag."""

from corpus.reader import ReleaseReader
from corpus.sample import Sample
from corpus.shard_cache import LostShard, ShardCache
from infra.outage import patiently
from infra.settings import get_settings
from infra.store import corpus_store


class PurgedRelease(ReleaseReader):
    """A release some of whose shards are gone for a patient's sake; the others are read as ever."""

    def load(self, position: int) -> Sample:
        """The sample at a position of `index`. Raises LostShard if it was purged."""
        purged, path = self._release["purged"], self._files[self.index.shard[position]]["path"]
        if path in purged["files"]:
            raise LostShard(f"{self.tag} was purged on {purged['at']} and {path} is gone with it: the release cannot be read as a whole again; take a later one (`unimed data list`)")
        return super().load(position)


def release_record(tag: str, outage_minutes: float = 0.0) -> dict:
    """The record that makes a release visible; a silent store is waited for so long.

    Raises:
        MissingObject: there is no such release.
    """
    return patiently(lambda: corpus_store().get_json(f"releases/{tag.removeprefix('corpus/')}.json"), outage_minutes)


def open_release(tag: str, cache_gib: float = float("inf"), outage_minutes: float = 0.0) -> ReleaseReader:
    """Samples of a release, read from S3 through a local cache of its shards."""
    cache = ShardCache(corpus_store(), get_settings().state_dir / "cache" / "shards", cache_gib * 2**30, outage_minutes)
    record = release_record(tag, outage_minutes)
    return PurgedRelease(record, cache) if "purged" in record else ReleaseReader(record, cache)
