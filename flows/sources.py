"""Sources that were added, and taken out again."""

from corpus import intake
from infra.store import corpus_store


def find_source(name: str) -> dict:
    """The record of a source that was added.

    Raises:
        LookupError: there is none.
    """
    found = next((source for source in intake.sources(corpus_store()) if source["name"] == name), None)
    if not found:
        raise LookupError(f"no source {name} was added; `unimed data list` names those that were, and sources.yaml lists those that are built in")
    return found


def remove(name: str) -> None:
    """Delete the record that makes a source one. Its shards stay: a release under way may need them, and the source may be added again."""
    corpus_store().delete(f"intake/{name}.json")
