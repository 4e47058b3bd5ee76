"""Model folders on S3 between stages: named by content, fetched once, verified on arrival."""

import shutil
import tempfile
from pathlib import Path

from infra.registry import ModelRegistry, content_hash
from infra.settings import get_settings
from infra.store import model_store


def publish_folder(folder: Path, step: str) -> dict:
    """Upload a checkpoint folder; returns its record {prefix, content_hash}."""
    digest = content_hash(folder)
    prefix = f"stages/{step}-{digest[:12]}"
    model_store().upload_dir(folder, prefix)
    return {"prefix": prefix, "content_hash": digest}


def fetch_folder(record: dict) -> Path:
    """The folder of a record on local disk, downloaded at most once. A record may also name a model version.

    Raises:
        OSError: what arrived is not what was published.
    """
    if "version" in record:
        return ModelRegistry().fetch(record["version"])
    target = get_settings().state_dir / "cache" / "stages" / record["content_hash"]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model_store().download_dir(record["prefix"], arriving)
        if content_hash(arriving) != record["content_hash"]:
            raise OSError(f"{record['prefix']} in the models bucket does not match its recorded hash; run the stage that made it again with --force")
        _place(arriving, target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return target


def _place(arriving: Path, target: Path) -> None:
    try:
        arriving.rename(target)
    except OSError:
        # Another worker brought the same folder meanwhile.
        if not target.exists():
            raise
