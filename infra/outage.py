"""Waiting for an object store that is away for a while: long work should not end because of a short silence."""

import time
from collections.abc import Callable
from typing import TypeVar

from infra.store import StoreUnavailable

T = TypeVar("T")
PAUSE_S, TELL_S = 1.0, 10.0


def patiently(work: Callable[[], T], minutes: float, on_wait: Callable[[str], None] = print) -> T:
    """The result of `work`, tried again while the store does not answer.

    Raises:
        StoreUnavailable: it has not answered for so many minutes.
    """
    begun = time.monotonic()
    told = begun - TELL_S
    while True:
        try:
            return work()
        except StoreUnavailable as error:
            now = time.monotonic()
            if now - begun > 60 * minutes:
                raise
            if now - told >= TELL_S:
                told = now
                on_wait(f"{error}; waiting, {minutes - (now - begun) / 60:.1f} minutes left")
            time.sleep(PAUSE_S)
