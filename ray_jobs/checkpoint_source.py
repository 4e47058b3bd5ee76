"""Where published weights lie: a folder that this machine sees, or a prefix in the object store."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.checksums import kept_sha256
from infra.folders import passing
from infra.progress import ByteProgress
from infra.records import digest
from infra.registry import MANIFEST
from infra.settings import get_settings
from infra.store import ObjectInfo, ObjectStore
from model.checkpoint import files_of
from model.config import ModelConfig
from model.published_start import start_config
from model.weights import CheckpointError

Told = Callable[[str], None]
MEND = "`bootstrap.checkpoint` of the profile says where published weights lie; without it the curriculum begins with a tokenizer and a VAE of its own"


def refuse_early(address: str, wanted: ModelConfig) -> None:
    """See at little cost that there is something to begin with: a folder's headers are checked, of a prefix only that something lies there.

    Raises:
        CheckpointError: there is not.
    """
    if _is_prefix(address):
        _objects(address)
    else:
        _folder_files(address)
        start_config(Path(address), wanted)


def identify(address: str, on_line: Told = print) -> dict[str, str]:
    """The files of the checkpoint by name, each with what tells its content: SHA-256 in a folder, the entity tag in the store.

    Raises:
        CheckpointError: nothing is there.
    """
    if _is_prefix(address):
        return {name: entry.etag for name, entry in _prefix_files(address).items()}
    return {name: kept_sha256(Path(address) / name, on_line) for name in _folder_files(address)}


@contextmanager
def at_hand(address: str, on_line: Told = print) -> Iterator[Path]:
    """The checkpoint as a folder of this machine: where it lies, or brought here from the store for as long as it is needed.

    Raises:
        CheckpointError: nothing is there.
    """
    if not _is_prefix(address):
        yield Path(address)
        return
    with passing(get_settings().state_dir / "cache" / "published" / digest(address)) as folder:
        for name, entry in _prefix_files(address).items():
            _store(address).download_file(entry.key, folder / name, ByteProgress(f"fetching {name}", entry.size, on_line))
        yield folder


def _is_prefix(address: str) -> bool:
    return address.startswith("s3://")


def _folder_files(address: str) -> list[str]:
    folder = Path(address)
    if not folder.is_dir():
        raise CheckpointError(f"{address} is no folder on {socket.gethostname()}: {MEND}")
    return files_of({path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}, lambda name: (folder / name).read_bytes())


def _prefix_files(address: str) -> dict[str, ObjectInfo]:
    there = _objects(address)
    return {name: there[name] for name in files_of(there, lambda name: _store(address).get(there[name].key))}


def _objects(address: str) -> dict[str, ObjectInfo]:
    """What lies directly under the prefix, by name, but for the manifest of a model version: it is of that version alone."""
    prefix = address.removeprefix("s3://").partition("/")[2].rstrip("/") + "/"
    named = {entry.key.removeprefix(prefix): entry for entry in _store(address).list(prefix)}
    there = {name: entry for name, entry in named.items() if name and "/" not in name and name != MANIFEST}
    if not there:
        raise CheckpointError(f"nothing lies under {address}: copy the published folder there (`aws s3 cp --recursive FOLDER {address}`). {MEND}")
    return there


def _store(address: str) -> ObjectStore:
    return ObjectStore(address.removeprefix("s3://").partition("/")[0])
