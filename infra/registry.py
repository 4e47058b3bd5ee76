"""The model registry: immutable versions on S3, records beside them, aliases moved by compare-and-swap."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from infra.folders import brought
from infra.records import digest, file_sha256, utc_now
from infra.settings import get_settings
from infra.store import MissingObject, ObjectStore, PreconditionFailed, model_store

MANIFEST = "manifest.json"
ALIAS_FIELDS = ("name", "version", "previous", "updated_at")


class CorruptModel(OSError):
    """A file of a version is not the one its manifest names."""


class AliasConflict(RuntimeError):
    """Somebody else moved the alias first."""


@dataclass(frozen=True)
class ModelVersion:
    """A version's manifest. `files` maps relative paths to {sha256, size}."""

    id: str
    content_hash: str
    files: dict[str, dict]
    lineage: dict
    created_at: str


@dataclass(frozen=True)
class Alias:
    """Where an alias points, and the etag a move must name."""

    name: str
    version: str
    previous: str | None
    updated_at: str
    etag: str


def describe_files(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> dict[str, dict]:
    """{relative path: {sha256, size}} of a folder, the manifest excepted."""
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in paths
        if path.name != MANIFEST
    }


def content_hash(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> str:
    """One hash for a model folder: equal configs, weights and tokenizer give equal hashes."""
    return digest({path: entry["sha256"] for path, entry in describe_files(folder, sha256).items()})


class ModelRegistry:
    """Versions live under `versions/<id>/`; their manifest is written last and makes them visible."""

    def __init__(self, store: ObjectStore | None = None):
        self.store = store or model_store()

    def publish(self, folder: Path, lineage: dict) -> ModelVersion:
        """Upload a model folder as a version named by its content. Publishing it again changes nothing."""
        whole = content_hash(folder)
        version = ModelVersion(f"m-{whole[:12]}", whole, describe_files(folder), lineage, utc_now())
        try:
            return self.get(version.id)
        except MissingObject:
            pass
        for path in version.files:
            self.store.upload_file(Path(folder) / path, f"versions/{version.id}/{path}")
        try:
            self.store.put_json(f"versions/{version.id}/{MANIFEST}", asdict(version), if_absent=True)
        except PreconditionFailed:
            return self.get(version.id)
        return version

    def get(self, version: str) -> ModelVersion:
        """Raises MissingObject for an unknown version."""
        try:
            return self._manifest(f"versions/{version}/{MANIFEST}")
        except MissingObject:
            raise _unknown(version) from None

    def list(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        keys = [entry.key for entry in self.store.list("versions/") if entry.key.count("/") == 2 and entry.key.endswith(f"/{MANIFEST}")]
        return sorted(map(self._manifest, keys), key=lambda v: v.created_at)

    def _manifest(self, key: str) -> ModelVersion:
        names = [field.name for field in fields(ModelVersion)]
        found = self.store.get_json(key, names)
        return ModelVersion(**{name: found[name] for name in names})

    def fetch(self, version: str, cache_dir: Path | None = None) -> Path:
        """The version's folder on local disk, every file checked against the manifest; one that was damaged there is fetched anew.

        Raises:
            CorruptModel: naming the file in the store whose content is not the published one.
        """
        manifest = self.get(version)
        target = (cache_dir or get_settings().state_dir / "cache" / "models") / version

        def fill(folder: Path) -> None:
            for path in manifest.files:
                self.store.download_file(f"versions/{version}/{path}", folder / path)
            if damaged := _damaged(folder, manifest):
                raise CorruptModel(f"{version}: {damaged[0]} does not match its published SHA-256; put an earlier copy of versions/{version}/{damaged[0]} back into bucket {self.store.bucket!r}")

        return brought(target, fill, whole=lambda folder: not _damaged(folder, manifest))

    def add_record(self, version: str, kind: str, record: dict) -> str:
        """Keep a record (evaluation, gate, approval …) beside the version; equal records are kept once."""
        key = f"versions/{version}/records/{kind}-{digest(record)[:12]}.json"
        try:
            self.store.put_json(key, {"kind": kind, "at": utc_now(), **record}, if_absent=True)
        except PreconditionFailed:
            pass
        return key

    def records(self, version: str, kind: str = "") -> list[dict]:
        """Records of a version, oldest first."""
        found = self.store.list(f"versions/{version}/records/{kind}")
        return sorted((self.store.get_json(entry.key, ("kind", "at")) for entry in found), key=lambda r: r["at"])

    def attach(self, version: str, path: Path, name: str) -> None:
        """Keep a file beside the version, such as its reference window."""
        self.store.upload_file(path, f"versions/{version}/attachments/{name}")

    def attachment(self, version: str, name: str) -> bytes:
        return self.store.get(f"versions/{version}/attachments/{name}")

    def alias(self, name: str) -> Alias | None:
        """The alias, or None where it was never set."""
        try:
            found, etag = self.store.get_json_with_etag(f"aliases/{name}.json", ALIAS_FIELDS)
        except MissingObject:
            return None
        return Alias(etag=etag, **{field: found[field] for field in ALIAS_FIELDS})

    def aliases(self) -> dict[str, str]:
        """{name: version} of all aliases."""
        names = [entry.key.removeprefix("aliases/").removesuffix(".json") for entry in self.store.list("aliases/")]
        return {alias.name: alias.version for alias in map(self.alias, names) if alias}

    def resolve(self, name: str) -> str:
        """The version an alias points at, or the name itself where it is a version.

        Raises:
            MissingObject: it is neither.
        """
        # Not every word can be part of a key: where it holds "..", the store refuses to look at all.
        if not re.fullmatch(r"[\w-]+", name):
            raise _unknown(name)
        alias = self.alias(name)
        return alias.version if alias else self.get(name).id

    def move_alias(self, name: str, version: str, expected: str | None) -> Alias:
        """Point an alias at a version, provided it still points at `expected` (None: not set yet).

        Raises:
            AliasConflict: it points elsewhere by now; of two simultaneous moves one wins.
        """
        self.get(version)
        current = self.alias(name)
        found = current.version if current else None
        if found != expected:
            raise AliasConflict(f"alias {name!r} points at {found}, not at {expected}; look at `unimed models list` and decide again")
        record = {"name": name, "version": version, "previous": found, "updated_at": utc_now()}
        condition = {"if_match": current.etag} if current else {"if_absent": True}
        try:
            etag = self.store.put_json(f"aliases/{name}.json", record, **condition)
        except PreconditionFailed:
            winner = self.alias(name)
            raise AliasConflict(f"alias {name!r} was moved to {winner.version if winner else 'nothing'} at the same moment; look again and decide again") from None
        return Alias(etag=etag, **record)

    def promote(self, version: str) -> Alias:
        """Make a version champion; the old champion becomes `previous`."""
        champion = self.alias("champion")
        if champion is None or champion.version != version:
            champion = self.move_alias("champion", version, champion.version if champion else None)
        # Also where it is asked for again, as who promoted it may have been killed before this.
        if champion.previous:
            self._point("previous", champion.previous)
        return champion

    def rollback(self) -> Alias:
        """Make the previous champion champion again; the two change places.

        Raises:
            MissingObject: there is no earlier champion.
        """
        previous = self.alias("previous")
        if previous is None:
            raise MissingObject("there is no previous champion to go back to")
        return self.promote(previous.version)

    def _point(self, name: str, version: str) -> None:
        """Point an alias at a version, whoever else moves it. Raises AliasConflict where it is moved again and again."""
        for left in reversed(range(3)):
            current = self.alias(name)
            if current and current.version == version:
                return
            try:
                self.move_alias(name, version, current.version if current else None)
                return
            except AliasConflict:
                if not left:
                    raise

    def mark_candidate(self, version: str) -> None:
        """Point `candidate` at a version that waits for the gate."""
        self._point("candidate", version)


def _damaged(folder: Path, manifest: ModelVersion) -> list[str]:
    """Files of a version that are gone or are not what was published."""
    return [path for path, entry in manifest.files.items() if not (folder / path).exists() or file_sha256(folder / path) != entry["sha256"]]


def _unknown(version: str) -> MissingObject:
    return MissingObject(f"no model version {version!r}; `unimed models list` shows those there are")
