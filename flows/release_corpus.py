"""The release flow: a new corpus version, if any source, parameter or reader changed."""

from prefect import flow, get_run_logger

from flows import artifacts
from flows.releases import make_release


@flow(name="release-corpus", flow_run_name="release")
def release_corpus(force: bool = False) -> dict:
    """Returns the release's record with `how`: "released" or "up to date"."""
    record = make_release(force, get_run_logger().info, wait_s=0)
    artifacts.release(record)
    return record
