"""The retraining that the tests of the loop share."""

import threading
import time

import pytest


@pytest.fixture(scope="session")
def first(stack):
    """A retraining from nothing, disturbed: a training worker and then the training job are killed on the way."""
    from flows.retrain import retrain

    killer = threading.Thread(target=kill_on_the_way, daemon=True)
    killer.start()
    try:
        result = retrain(reason="test")
    except Exception:
        # The killed job fails its flow, as it must; the same call goes on where it stopped.
        result = retrain(reason="test")
    killer.join(timeout=5)
    return result


def kill_on_the_way() -> None:
    """SIGKILL a training worker after its first checkpoint, and the job's own process some steps later."""
    from infra.store import model_store

    def processes(words: str):
        import psutil

        return [p for p in psutil.process_iter(["cmdline"]) if words in " ".join(p.info["cmdline"] or [])]

    def commits() -> int:
        return sum(entry.key.endswith("commit.json") for entry in model_store().list("runs/foundation"))

    for words in ("RayTrainWorker", "ray_jobs.train --job foundation"):
        before, end = commits(), time.monotonic() + 180
        while time.monotonic() < end and commits() <= before:
            time.sleep(0.2)
        for process in processes(words)[:1]:
            process.kill()
        time.sleep(2)
