"""SHA-256 of large files, each read once: kept by place, size and time of change, in the state folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from infra.progress import ByteProgress
from infra.records import digest, write_atomic
from infra.settings import get_settings

CHUNK = 2**24


def kept_sha256(path: Path, on_line: Callable[[str], None] = print) -> str:
    """SHA-256 (hex) of a file; one that has not changed since is not read again."""
    path, status = path.resolve(), path.stat()
    place = digest([str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    kept = get_settings().state_dir / "cache" / "checksums" / place
    if kept.exists():
        return kept.read_text()
    found = _sha256(path, ByteProgress(f"checksum of {path.name}", status.st_size, on_line))
    write_atomic(kept, found.encode())
    return found


def _sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            on_bytes(len(chunk))
    return whole.hexdigest()
