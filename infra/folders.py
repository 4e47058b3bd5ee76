"""Folders of this machine that take long to fill: what a process that was killed has left of one goes with the next attempt."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def passing(folder: Path) -> Iterator[Path]:
    """The folder, empty, for as long as it is needed. It has a name of its own, by which it is found again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def brought(target: Path, fill: Callable[[Path], object]) -> Path:
    """`target`; where it is not there, `fill` makes it in a folder beside, by one process of the machine while the others wait."""
    if target.exists():
        return target
    with _alone(target), passing(target.parent / f".{target.name}") as beside:
        if not target.exists():
            fill(beside)
            _place(beside, target)
    return target


def _place(beside: Path, target: Path) -> None:
    # Whoever finds it need not look at all of it again: it must be whole after a loss of power, too.
    for path in (path for path in beside.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        beside.rename(target)
    except OSError:
        # Another machine with the same disk brought it meanwhile.
        if not target.exists():
            raise


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    path = target.parent / "locks" / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
