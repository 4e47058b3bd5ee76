"""The release flow: a new corpus version, if any source, parameter or reader changed."""

from prefect import flow, get_run_logger

from flows import artifacts
from infra.records import digest, source_fingerprint, utc_now


@flow(name="release-corpus", flow_run_name="release")
def release_corpus(force: bool = False) -> dict:
    """Returns the release's record with `how`: "released" or "up to date"."""
    record = make_release(force, get_run_logger().info)
    artifacts.release(record)
    return record


def make_release(force: bool, on_line) -> dict:
    """Build, check, push and tag what the sources give; the record written last makes it visible.

    Raises:
        LeaseHeld: another release is being made.
        RepositoryError: the release was refused or a command failed.
    """
    from corpus import intake, review
    from infra.corpus_repo import CorpusRepo
    from infra.lease import Lease
    from infra.settings import get_settings
    from infra.store import corpus_store
    from ray_jobs.params import load_params

    store, settings = corpus_store(), get_settings()
    sources = _sources(settings.repo_dir, intake.sources(store))
    corpus = load_params(settings.params_file).corpus.model_dump(mode="json")
    decisions = review.pinned(store)
    inputs = digest({"sources": sources, "decisions": decisions, "params": corpus, "code": source_fingerprint("corpus")})
    latest = latest_release(store)
    if latest and latest["inputs_digest"] == inputs and not force:
        return latest | {"how": "up to date"}
    with Lease("release", holder=inputs, wait_s=600, on_wait=on_line):
        repo = CorpusRepo(settings)
        repo.prepare()
        repo.write("sources.yaml", _yaml({"sources": sources} | ({"decisions": decisions} if decisions else {})))
        repo.reproduce(on_line)
        shards, card = repo.shards(), repo.read_json("data/release/card.json")
        repo.push()
        repo.check_pushed(shards)
        tag = repo.commit_and_tag(f"Release {card['samples']} samples from {len(sources)} sources")
        record = {
            "tag": tag,
            "parent": latest["tag"] if latest else None,
            "created_at": utc_now(),
            "inputs_digest": inputs,
            "corpus_commit": repo.commit(),
            "dvc_hash": repo.dvc_hash(),
            "card": card,
            "changed": _changed(latest, card),
            "quarantine_key": repo.file("quarantine.parquet")["key"],
            "doubts_key": repo.file("doubts.parquet")["key"],
            "removed": repo.file("removed.json"),
            "shards": shards,
        }
        store.put_json(f"releases/{tag.removeprefix('corpus/')}.json", record, if_absent=True)
    return record | {"how": "released"}


def latest_release(store) -> dict | None:
    """The newest release's record."""
    records = all_releases(store)
    return records[-1] if records else None


def all_releases(store) -> list[dict]:
    """All releases, oldest first."""
    records = [store.get_json(entry.key) for entry in store.list("releases/")]
    return sorted(records, key=lambda r: (r["created_at"], int(r["tag"].rsplit(".", 1)[1])))


def _sources(repo, taken_in: list[dict]) -> list:
    """The checkout's sources.yaml, and after them what was added, pinned by content."""
    import yaml

    listed = yaml.safe_load((repo / "sources.yaml").read_text())["sources"]
    return listed + [{key: source[key] for key in ("name", "shards", "held", "stale", "removed", "quarantine") if key in source} for source in taken_in]


def _yaml(content: dict) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False)


def _changed(parent: dict | None, card: dict) -> dict[str, int]:
    """Samples gained or lost by source since the parent release."""
    before, now = (parent["card"]["sources"] if parent else {}), card["sources"]
    return {s: now.get(s, 0) - before.get(s, 0) for s in sorted({*before, *now}) if now.get(s, 0) != before.get(s, 0)}
