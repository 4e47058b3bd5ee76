"""`python -m tests.corpus.dying_release POINT HOW`: a release whose process dies, or whose store goes away, at a point of it.

HOW is `kill` or `stop-s3`.
"""

import os
import signal
import sys
from collections.abc import Callable

import psutil

from corpus import release
from flows.releases import make_release
from infra.corpus_repo import CorpusRepo
from infra.stack import Stack

# A function that has just done its work.
POINTS = {
    "half-built": (release, "_lay_out"),
    "half-pushed": (CorpusRepo, "_send"),
    "tagged": (CorpusRepo, "commit_and_tag"),
}


def strike_at(point: str, strike: Callable[[], None]) -> None:
    owner, name = POINTS[point]
    plain = getattr(owner, name)

    def stricken(*arguments, **named):
        result = plain(*arguments, **named)
        strike()
        return result

    setattr(owner, name, stricken)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_s3() -> None:
    pid = next(service.pid for service in Stack().status() if service.name == "s3")
    if pid:
        store = psutil.Process(pid)
        store.kill()
        psutil.wait_procs([store], timeout=10)


if __name__ == "__main__":
    strike_at(sys.argv[1], {"kill": kill, "stop-s3": stop_s3}[sys.argv[2]])
    make_release(force=False, on_line=print, wait_s=0)
