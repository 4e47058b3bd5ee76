"""Examining records on all cores of the cluster, in the order in which they were read."""

import socket
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from corpus import quality
from corpus.intake import batches
from corpus.reading import Examine, Examined
from corpus.params import CorpusParams, QualityParams
from corpus.record import Record

# Records a batch; batches that are done here, before a process elsewhere would have come up; those that wait, or are done
# before their turn, beside one a core.
BATCH, HERE, AHEAD = 128, 2, 32
CONNECT_S = 10.0


def on_cluster(params: CorpusParams, salt: bytes, workers: int) -> Examine:
    """Examine on this many cores, or as many as there are for 0. So many batches are under way that memory stays bounded.

    Raises:
        ConnectionError: the cluster does not answer.
    """
    import ray

    from infra.settings import get_settings

    if not ray.is_initialized():
        get_settings().export()
        require_answer(get_settings().ray_address)
        ray.init(address=get_settings().ray_address, log_to_driver=False)
    # They claim no core: taking in must not wait for a training to end.
    examiner = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD")(_Examiner)

    def examine(records: Iterable[Record]) -> Iterator[Examined]:
        under_way, cores, examiners = deque(), workers or _cores(), []
        waiting = batches(records, BATCH)
        for batch in islice(waiting, HERE):
            yield from quality.examine_all(batch, params.quality, salt)
        for turn, batch in enumerate(waiting):
            if len(examiners) < cores:
                examiners.append(examiner.remote(params.quality, salt))
            under_way.append(examiners[turn % cores].examine.remote(batch))
            if len(under_way) > cores + AHEAD:
                yield from ray.get(under_way.popleft())
        while under_way:
            yield from ray.get(under_way.popleft())

    return examine


def require_answer(address: str) -> None:
    """Raises ConnectionError if nobody listens at a cluster's host:port, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError:
        raise ConnectionError(f"the Ray cluster at {address} does not answer; start the stack with `unimed up`, or examine in this process alone (--workers 1)") from None


def _cores() -> int:
    """Cores of the cluster's nodes. The embedded Ray counts more CPUs than its machine has, as most of what runs on it idles."""
    import ray

    from infra.stack import RAY_CORES

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, sum(int(resources.get(RAY_CORES, resources.get("CPU", 0))) for resources in there))


class _Examiner:
    """A process that examines one batch after the other."""

    def __init__(self, params: QualityParams, salt: bytes):
        self.known = params, salt

    def examine(self, records: list[Record]) -> list[Examined]:
        return quality.examine_all(records, *self.known)
