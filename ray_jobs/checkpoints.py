"""Model folders on S3 between stages: named by content, fetched once, verified on arrival."""

from collections.abc import Callable, Mapping
from pathlib import Path

from infra.checksums import kept_sha256
from infra.folders import brought
from infra.progress import ByteProgress
from infra.records import digest
from infra.registry import ModelRegistry, content_hash, describe_files
from infra.settings import get_settings
from infra.store import model_store


def publish_folder(folder: Path, step: str) -> dict:
    """Upload a checkpoint folder; returns its record {prefix, content_hash}."""
    described = describe_files(folder)
    return publish_files({name: folder / name for name in described}, {name: entry["sha256"] for name, entry in described.items()}, step)


def publish_files(files: Mapping[str, Path], sha256: Mapping[str, str], step: str, again: bool = True, on_line: Callable[[str], None] = print) -> dict:
    """Upload files, of these hashes, as one checkpoint folder; returns its record {prefix, content_hash}.

    The folder is named by its content, so what an earlier attempt has sent need not be sent `again`.
    """
    whole, store = digest(dict(sha256)), model_store()
    prefix = f"stages/{step}-{whole[:12]}"
    sent = {} if again else {entry.key: entry.size for entry in store.list(f"{prefix}/")}
    for name, path in sorted(files.items()):
        key, size = f"{prefix}/{name}", path.stat().st_size
        if sent.get(key) != size:
            store.upload_file(path, key, ByteProgress(f"sending {name}", size, on_line))
    return {"prefix": prefix, "content_hash": whole}


def fetch_folder(record: dict) -> Path:
    """The folder of a record on local disk, downloaded once, and again where it was damaged there. A record may also name a model version.

    Raises:
        OSError: what arrived is not what was published.
    """
    if "version" in record:
        return ModelRegistry().fetch(record["version"])

    def fill(folder: Path) -> None:
        model_store().download_dir(record["prefix"], folder)
        if content_hash(folder) != record["content_hash"]:
            raise OSError(f"{record['prefix']} in the models bucket does not match its recorded hash; run the stage that made it again with --force")

    def whole(folder: Path) -> bool:
        # Every worker and every flow asks, and one may begin with many gigabytes.
        return content_hash(folder, kept_sha256) == record["content_hash"]

    return brought(get_settings().state_dir / "cache" / "stages" / record["content_hash"], fill, whole)
