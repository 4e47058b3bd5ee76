"""Notice that a stage is to end, as a worker hears of it."""

import threading
import time
from types import SimpleNamespace

import ray

from ray_jobs import notice
from ray_jobs.notice import Notice


def test_a_bell_that_is_slow_to_answer_is_asked_again(monkeypatch):
    """As on a machine that has too much to do; else the worker would never be told."""
    asked = []

    def get(answer, timeout):
        asked.append(answer)
        if len(asked) == 1:
            raise ray.exceptions.GetTimeoutError
        return True

    monkeypatch.setattr(notice, "_told", threading.Event())
    monkeypatch.setattr(ray, "get", get)
    told, end = Notice(SimpleNamespace(is_rung=SimpleNamespace(remote=lambda: None))), time.monotonic() + 10
    while not told.given() and time.monotonic() < end:
        time.sleep(0.01)
    assert told.given() and len(asked) == 2
