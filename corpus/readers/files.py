"""Files of a source that are told apart without their names, as a name may be a person's."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from corpus.readers import tree
from corpus.readers.source import Source
from corpus.record import Rejection


class File(NamedTuple):
    """A file, the start of its SHA-256, and how it is named to the outside: by that, and of a folder its place in the sorted list."""

    path: Path
    digest: str
    where: str


def listed(source: Source) -> Iterator[File | Rejection]:
    """All files of a source in sorted order, hidden ones left out; a rejection for what cannot be read or lies elsewhere."""
    paths = sorted(path for path in tree.walk(source.path) if os.path.isfile(path) or tree.unread(path, source))
    for number, path in enumerate(paths, start=1):
        place = f"file {number} of {len(paths)}"
        if closed := tree.unread(path, source):
            yield replace(closed, where=place if source.path.is_dir() else "the file")
            continue
        try:
            digest = _digest(path)
        except OSError as error:
            yield Rejection(source.name, place if source.path.is_dir() else "the file", "unreadable-file", f"cannot be read ({type(error).__name__})")
            continue
        yield File(path, digest, f"sha256:{digest} ({place})" if source.path.is_dir() else f"sha256:{digest}")


def unnamed(path: Path) -> str:
    """How a file is named to the outside where its name may be a person's."""
    try:
        return f"sha256:{_digest(path)}" if os.path.isfile(path) else "no regular file"
    except OSError:
        return "a file that cannot be read"


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1: the middles of equal stretches."""
    most = min(count, most)
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]
