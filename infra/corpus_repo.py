"""Releases in git and DVC: a clone of this repository under the state folder, where releases are made.

The user's checkout is only read. Each release is a commit of `dvc.lock`, a tag `corpus/<date>.<n>`, and the
shards in the DVC remote on S3.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import yaml

from infra.records import write_atomic
from infra.settings import Settings, get_settings
from infra.store import ObjectStore

OUT = "data/release"
REMOTE_PREFIX = "dvc"


class RepositoryError(RuntimeError):
    """A git or dvc command failed; carries the end of what it said."""


class CorpusRepo:
    """The clone. One writer at a time: callers hold the release lease."""

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or get_settings()
        self.path = self.settings.state_dir / "corpus-repo"

    def prepare(self) -> None:
        """Bring code, parameters and DVC remote of the clone up to date with the user's checkout."""
        if not (self.path / ".git").exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._run(["git", "clone", "--quiet", "--no-hardlinks", str(self.settings.repo_dir), str(self.path)], cwd=self.settings.repo_dir)
        for key, value in (("user.name", "UniMed Ops"), ("user.email", "unimed-ops@localhost")):
            self._git("config", key, value)
        self._git("fetch", "--quiet", "origin", "HEAD")
        # Releases live on their own branch; code follows the checkout, the release's own files stay.
        self._git("checkout", "--quiet", "-B", "corpus")
        released = {name: (self.path / name).read_bytes() for name in ("dvc.lock", "sources.yaml") if (self.path / name).exists() and self.tags()}
        self._git("reset", "--quiet", "--hard", "FETCH_HEAD")
        for name, content in released.items():
            write_atomic(self.path / name, content)
        write_atomic(self.path / "params.yaml", self.settings.params_file.read_bytes())
        remote = {"url": f"s3://{self.settings.bucket_corpus}/{REMOTE_PREFIX}", "endpointurl": self.settings.s3_endpoint}
        lines = ["['remote \"s3\"']", *(f"    {key} = {value}" for key, value in remote.items())]
        write_atomic(self.path / ".dvc" / "config.local", "\n".join([*lines, ""]).encode())

    def write(self, relative: str, text: str) -> None:
        write_atomic(self.path / relative, text.encode())

    def reproduce(self, on_line: Callable[[str], None] = print) -> None:
        """`dvc repro`: build the release, or find that it is up to date.

        Raises:
            RepositoryError: the stage refused or failed.
        """
        # Quiet: the stage's own lines and DVC's errors still come.
        self._dvc("repro", "--quiet", "release", on_line=on_line)

    def read_json(self, relative: str) -> dict:
        return json.loads((self.path / relative).read_text())

    def dvc_hash(self) -> str:
        """The hash DVC gave the release folder."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())
        return lock["stages"]["release"]["outs"][0]["md5"]

    def push(self) -> None:
        """Send what is new to S3; nothing, if nothing is."""
        self._dvc("push", "-j", "4")

    def commit_and_tag(self, message: str) -> str:
        """Commit the release's files and tag them; returns the tag."""
        self._git("add", "dvc.lock", "sources.yaml", "params.yaml")
        self._git("commit", "--quiet", "--allow-empty", "-m", message)
        tag = self._next_tag()
        self._git("tag", "-a", tag, "-m", message)
        return tag

    def commit(self) -> str:
        return self._git("rev-parse", "HEAD").strip()

    def tags(self) -> list[str]:
        """Release tags, oldest first."""
        return self._git("tag", "--list", "corpus/*", "--sort=creatordate").split()

    def shards(self) -> list[dict]:
        """{path, md5, key, size} of the shards and their indexes, where `key` is the object in the corpus bucket."""
        return [self.file(path) for path in sorted((self.path / OUT / "shards").rglob("*.parquet"))]

    def file(self, path: str | Path) -> dict:
        """{path, md5, key, size} of a file of the release."""
        whole = self.path / OUT / path
        md5 = file_md5(whole)
        return {"path": whole.relative_to(self.path / OUT).as_posix(), "md5": md5, "key": object_key(md5), "size": whole.stat().st_size}

    def discard(self, md5s: Iterable[str]) -> None:
        """Delete files of these hashes from DVC's cache in the clone."""
        for md5 in md5s:
            (self.path / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)

    def check_pushed(self, shards: list[dict]) -> None:
        """Raises RepositoryError when a shard did not reach S3."""
        store = ObjectStore(self.settings.bucket_corpus, self.settings)
        missing = [shard["path"] for shard in shards if not store.exists(shard["key"])]
        if missing:
            raise RepositoryError(f"dvc push left out {missing[0]} (and {len(missing) - 1} more); run the release again")

    def _next_tag(self) -> str:
        day = f"corpus/{datetime.now(UTC):%Y-%m-%d}"
        taken = [int(tag.rsplit(".", 1)[1]) for tag in self.tags() if tag.startswith(f"{day}.")]
        return f"{day}.{max(taken, default=0) + 1}"

    def _git(self, *arguments: str) -> str:
        return self._run(["git", *arguments])

    def _dvc(self, *arguments: str, on_line: Callable[[str], None] = lambda line: None) -> str:
        return self._run([sys.executable, "-m", "dvc", *arguments], on_line=on_line)

    def _run(self, command: list[str], cwd: Path | None = None, on_line: Callable[[str], None] = lambda line: None) -> str:
        import os

        environment = os.environ | self.settings.process_environment()
        # The clone's own code builds the release, by the interpreter that runs us.
        environment |= {"PYTHONPATH": str(cwd or self.path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        process = subprocess.Popen(command, cwd=cwd or self.path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line)
            on_line(line.rstrip())
        if process.wait(timeout=600):
            raise RepositoryError(f"`{' '.join(command[-4:])}` failed in {cwd or self.path}:\n{''.join(lines[-15:])}")
        return "".join(lines)


def file_md5(path: Path) -> str:
    """DVC's name for a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def object_key(md5: str) -> str:
    """Where DVC 3 keeps a file of this hash in its remote."""
    return f"{REMOTE_PREFIX}/files/md5/{md5[:2]}/{md5[2:]}"
