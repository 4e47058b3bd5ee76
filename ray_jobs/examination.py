"""Examining records on all cores of the cluster, in the order in which they were read."""

from collections import deque
from collections.abc import Iterable, Iterator

from corpus import quality
from corpus.intake import Examine, Examined, batches
from corpus.params import CorpusParams
from corpus.record import Record

BATCH = 128


def on_cluster(params: CorpusParams, salt: bytes, workers: int) -> Examine:
    """Examine on this many cores, or as many as there are for 0. A batch a core and one more are under way, so memory stays bounded."""
    import ray

    from infra.settings import get_settings

    if not ray.is_initialized():
        get_settings().export()
        ray.init(address=get_settings().ray_address, log_to_driver=False)
    # It claims no core: taking in must not wait for a training to end.
    task = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")(_examine_batch)
    known = ray.put((params.quality, salt))

    def examine(records: Iterable[Record]) -> Iterator[Examined]:
        under_way, cores = deque(), workers or _cores()
        for batch in batches(records, BATCH):
            under_way.append(task.remote(batch, known))
            if len(under_way) > cores:
                yield from ray.get(under_way.popleft())
        while under_way:
            yield from ray.get(under_way.popleft())

    return examine


def _cores() -> int:
    """Cores of the cluster's nodes. The embedded Ray counts more CPUs than its machine has, as most of what runs on it idles."""
    import ray

    from infra.stack import RAY_CORES

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, sum(int(resources.get(RAY_CORES, resources.get("CPU", 0))) for resources in there))


def _examine_batch(records: list[Record], known: tuple) -> list[Examined]:
    return quality.examine_all(records, *known)
