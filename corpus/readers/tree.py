"""The files of a source, in a fixed order and never outside its folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

ReadFile = Callable[[Path, Source], Iterator[Record | Rejection]]


def walk(root: Path) -> Iterator[Path]:
    """Files beneath a folder, or the file itself; hidden ones are passed over, linked folders are not entered."""
    if not root.is_dir():
        yield root
        return
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        here = Path(folder)
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def leaves(file: Path, root: Path) -> bool:
    """Whether a link leads out of the folder."""
    top = root if root.is_dir() else root.parent
    return file.is_symlink() and not file.resolve().is_relative_to(top.resolve())


def read_each(source: Source, recognises: Callable[[Path], bool], read_file: ReadFile, wanted: str) -> Iterator[Record | Rejection]:
    """The records of a file, or of each recognised file of a folder; a damaged file gives one Rejection.

    Raises:
        FileNotFoundError: the folder holds no such file; the message tells what was `wanted`.
    """
    found = False
    for file in walk(source.path):
        if not source.path.is_dir() or (file.is_file() and not leaves(file, source.path) and recognises(file)):
            found = True
            try:
                yield from read_file(file, source)
            except Unreadable as error:
                yield Rejection(source.name, source.place(file), error.reason, str(error))
    if not found:
        raise FileNotFoundError(f"{source.path} holds no {wanted}; docs/data.md describes the format")
