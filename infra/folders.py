"""Folders of this machine that take long to fill: what a process that was killed has left of one goes with the next attempt."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.records import naming


@contextmanager
def passing(folder: Path) -> Iterator[Path]:
    """The folder, empty, for as long as it is needed, by one process of the machine while others wait. It has a name of its own, by which it is found again.

    Raises:
        OSError: the disk is full, say; it names the folder.
    """
    with _alone(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            with naming(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def brought(target: Path, fill: Callable[[Path], object], whole: Callable[[Path], bool] = Path.exists) -> Path:
    """`target`; where it is not there, or not `whole` any more, `fill` makes it in a folder beside."""
    if target.exists() and whole(target):
        return target
    with passing(target.parent / f".{target.name}") as beside:
        if not (target.exists() and whole(target)):
            fill(beside)
            if target.exists():
                shutil.rmtree(target)
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
def _alone(folder: Path) -> Iterator[None]:
    path = folder.parent / "locks" / folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
