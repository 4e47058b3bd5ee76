"""Open a corpus release by its tag."""

from corpus.reader import ReleaseReader
from infra.settings import get_settings
from infra.store import corpus_store


def release_record(tag: str) -> dict:
    """The record that makes a release visible.

    Raises:
        MissingObject: there is no such release.
    """
    return corpus_store().get_json(f"releases/{tag.removeprefix('corpus/')}.json")


def open_release(tag: str) -> ReleaseReader:
    """Samples of a release, read from S3 through a local cache of its shards."""
    return ReleaseReader(release_record(tag), corpus_store(), get_settings().state_dir / "cache" / "shards")
