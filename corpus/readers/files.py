"""Files of a source that are told apart without their names, as a name may be a person's."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file, the start of its SHA-256, and how it is named to the outside: by that and its place in the sorted list."""

    path: Path
    digest: str
    where: str


def listed(root: Path) -> Iterator[File]:
    """All files under a folder in sorted order (or the one file), hidden ones left out."""
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    for number, path in enumerate(paths, start=1):
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        yield File(path, digest, f"sha256:{digest} (file {number} of {len(paths)})")


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1: the middles of equal stretches."""
    most = min(count, most)
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]
