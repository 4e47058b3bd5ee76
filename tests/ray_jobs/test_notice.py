"""Notice that a stage is to end, as a worker hears of it."""

import threading
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
    monkeypatch.setattr(notice, "POLL_S", 0)
    monkeypatch.setattr(ray, "get", get)
    told = Notice(SimpleNamespace(is_rung=SimpleNamespace(remote=lambda: None)))
    for asking in (thread for thread in threading.enumerate() if thread.name == "notice"):
        asking.join(10)
    assert told.given() and len(asked) == 2
