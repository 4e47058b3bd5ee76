"""Examining records on all cores of the cluster, in the order in which they were read."""

from collections import deque
from collections.abc import Iterable, Iterator

from corpus import quality
from corpus.intake import Examine, Examined
from corpus.params import CorpusParams
from corpus.readers.pictures import PictureBytes
from corpus.record import Record

# A batch is this many records, or fewer where their pictures are large.
BATCH, BATCH_BYTES = 128, 4 * 2**20


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
        for batch in _batches(records):
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


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        # Those that are no bytes yet are decoded one at a time.
        size += sum(len(picture.data) for picture in (*record.images, record.target) if isinstance(picture, PictureBytes))
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _examine_batch(records: list[Record], known: tuple) -> list[Examined]:
    return [quality.examine(record, *known) for record in records]
