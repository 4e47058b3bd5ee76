"""Notice that a stage is to end: it then saves, commits and ends well.

It comes as SIGTERM to the job's own process (`ray job stop`, a scheduler), which rings a bell that the workers hear; or as a
node that Ray is draining, where Ray starts the run again elsewhere. SIGTERM to a worker itself is taken by Ray, which ends it.
"""

import math
import threading
import time

POLL_S = 1.0
# Workers that have not asked for so long are gone.
SILENT_S = 30.0
_told = threading.Event()


class Bell:
    """Rung by the job's own process, heard by the workers; a Ray actor."""

    def __init__(self):
        self.rung, self.asked = False, -math.inf

    def ring(self) -> bool:
        """Whether there are workers to hear it."""
        self.rung = True
        return time.monotonic() - self.asked < SILENT_S

    def is_rung(self) -> bool:
        self.asked = time.monotonic()
        return self.rung


class Notice:
    """What a worker has been told so far. The bell is asked from a thread, a drain now and then: neither holds a step up."""

    def __init__(self, bell=None):
        self.bell = bell
        if bell is not None:
            threading.Thread(target=self._ask, daemon=True, name="notice").start()

    def given(self) -> bool:
        """Whether this worker is to end."""
        return _told.is_set()

    def _ask(self) -> None:
        import ray

        while not _told.is_set():
            try:
                if ray.get(self.bell.is_rung.remote(), timeout=10):
                    _told.set()
            except ray.exceptions.GetTimeoutError:
                # A busy machine: whoever gave up asking would never be told, and what it has done since its checkpoint be lost.
                continue
            except ray.exceptions.RayError:
                # The job's process is gone, and with it soon this worker.
                return
            time.sleep(POLL_S)


def draining() -> bool:
    """Whether Ray is draining the node of one of the workers. All workers must ask together."""
    import ray.train

    return ray.train.get_preemption_info() is not None
