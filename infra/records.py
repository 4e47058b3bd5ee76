"""Small JSON records that name content by hash: the hand-over between any two steps."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

# The disk is full, or what a user may write on it is, or as long as one file may be.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def canonical(obj: object) -> bytes:
    """Compact JSON with sorted keys: equal objects give equal bytes."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(obj: object) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(obj)).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write beside the target, then rename over it."""
    with replacing(path, mode) as beside:
        beside.write_bytes(data)


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """An empty file beside the target to write into; it takes the target's place in the end, or goes if that is not reached.

    Raises:
        OSError: the disk is full, say; it names the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        with naming(path):
            yield Path(name)
            os.chmod(name, mode)
            os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a disk without room names the path: Python names no file that it could open but not write."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json_atomic(path: Path, obj: object) -> None:
    write_atomic(path, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def read_yaml(path: Path) -> object:
    """What a YAML file holds; read in C where PyYAML was built so, since a release names thousands of shards.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read.
    """
    import yaml

    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def to_yaml(obj: object) -> str:
    """YAML with keys in the order they come in."""
    import yaml

    return yaml.dump(obj, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def source_fingerprint(*packages: str, root: Path | None = None) -> str:
    """Hash of the Python sources of packages, of those below `root` if it is given: a changed step is not taken for the one that ran before."""
    sources = {}
    for package in packages:
        folder = root / package if root else Path(find_spec(package).submodule_search_locations[0])
        sources |= {f"{package}/{path.relative_to(folder)}": file_sha256(path) for path in sorted(folder.rglob("*.py"))}
    return digest(sources)


def utc_now() -> str:
    """Now, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
