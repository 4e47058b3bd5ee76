"""Releases in git and DVC: a clone of this repository under the state folder, where releases are made.

The user's checkout is only read. Each release is a commit of `dvc.lock`, a tag `corpus/<date>.<n>`, and the
shards in the DVC remote on S3.
"""

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from infra.lease import LeaseHeld
from infra.records import read_yaml, source_fingerprint, write_atomic
from infra.settings import Settings, get_settings
from infra.store import MissingObject, ObjectStore, PreconditionFailed

OUT, CACHE = "data/release", ".dvc/cache"
REMOTE_PREFIX = "dvc"
# Settings of the user's that would sign what nobody is there to sign for, or run what is meant for other repositories.
PLAIN = ("commit.gpgsign=false", "tag.gpgsign=false", "core.hooksPath=/dev/null")
# What of git's environment is the user's and not that of the repository the user is in.
OF_THE_USER = ("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")


class RepositoryError(RuntimeError):
    """A git or dvc command failed; carries the end of what it said."""


class CorpusRepo:
    """The clone. One writer at a time: callers hold it, and the release lease."""

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or get_settings()
        self.path = self.settings.state_dir / "corpus-repo"
        self._lock: list[int] = []

    @contextmanager
    def held(self, wait_s: float = 0) -> Iterator[None]:
        """The clone for this process alone; the operating system frees it when the process and those it started are dead.

        Raises:
            LeaseHeld: another process still has it after `wait_s` seconds.
        """
        end = time.monotonic() + wait_s
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise LeaseHeld("another release is being made on this machine; run this one again when that is done") from None
                    time.sleep(0.5)
            # Processes that are started meanwhile hold it as well.
            self._lock = [file.fileno()]
            try:
                yield
            finally:
                self._lock = []

    def prepare(self, released: Iterable[str]) -> None:
        """Bring code, parameters and DVC remote of the clone up to date with the user's checkout, and clear up after a crash.

        Args:
            released: tags of all releases; other release tags are of releases that did not come to their end, and go.
        """
        if not (self.path / ".git").exists():
            self._clone()
        for lock in (".git/index.lock", ".git/HEAD.lock", ".git/refs/heads/corpus.lock"):
            (self.path / lock).unlink(missing_ok=True)
        self.drop(set(self.tags()) - set(released))
        self._git("fetch", "--quiet", "origin", "HEAD")
        # Releases live on their own branch; code follows the checkout, the release's own files stay.
        self._git("checkout", "--quiet", "--force", "-B", "corpus")
        made = {name: (self.path / name).read_bytes() for name in ("dvc.lock", "sources.yaml") if (self.path / name).exists() and self.tags()}
        self._git("reset", "--quiet", "--hard", "FETCH_HEAD")
        for name, content in made.items():
            write_atomic(self.path / name, content)
        write_atomic(self.path / "params.yaml", self.settings.params_file.read_bytes())
        remote = {"url": f"s3://{self.settings.bucket_corpus}/{REMOTE_PREFIX}", "endpointurl": self.settings.s3_endpoint}
        # The user's own settings of DVC may name another cache, or have the release's files be links into it.
        cache = {"dir": "cache", "type": '"reflink,copy"'}
        lines: list[str] = []
        for section, values in (("'remote \"s3\"'", remote), ("cache", cache)):
            lines += [f"[{section}]", *(f"    {key} = {value}" for key, value in values.items())]
        write_atomic(self.path / ".dvc" / "config.local", "\n".join([*lines, ""]).encode())

    def _clone(self) -> None:
        """Clone beside the place, then rename: there is no half clone."""
        beside = self.path.with_suffix(".new")
        shutil.rmtree(beside, ignore_errors=True)
        self._git("clone", "--quiet", "--no-hardlinks", str(self.settings.repo_dir), str(beside), cwd=self.settings.repo_dir)
        for key, value in (("user.name", "UniMed Ops"), ("user.email", "unimed-ops@localhost")):
            self._git("config", key, value, cwd=beside)
        os.rename(beside, self.path)

    def runs_our_code(self, *packages: str) -> bool:
        """True if these packages of the clone are, file by file, those of this process."""
        return source_fingerprint(*packages) == source_fingerprint(*packages, root=self.path)

    def write(self, relative: str, text: str) -> None:
        write_atomic(self.path / relative, text.encode())

    def reproduce(self, on_line: Callable[[str], None] = print) -> None:
        """`dvc repro`: build the release, or find that it is up to date.

        Raises:
            RepositoryError: the stage refused or failed.
        """
        # Quiet: the stage's own lines and DVC's errors still come.
        self._dvc("repro", "--quiet", "release", on_line=on_line)

    def take_up(self) -> None:
        """`dvc commit`: what was built in the release folder becomes the stage's outcome, as after `dvc repro`. Only new files are hashed.

        Raises:
            RepositoryError: DVC failed.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.ERROR)
        try:
            with Repo(str(self.path)) as repo:
                repo.commit(f"{self.path / 'dvc.yaml'}:release", force=True)
        except DvcException as error:
            raise RepositoryError(f"`dvc commit` failed in {self.path}: {error}") from error

    def push(self, files: Iterable[dict], there: set[str], origins: dict[str, str]) -> None:
        """Bring what is new to S3 under the names that `dvc pull` looks for; the list of the folder's files goes last.

        Args:
            files: of the release, see `files`.
            there: keys of objects known to be on S3.
            origins: by path, keys of the objects that files came from.
        """
        store = ObjectStore(self.settings.bucket_corpus, self.settings)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda file: self._send(file["md5"], store, origins.get(file["path"])), [file for file in files if file["key"] not in there]))
        self._send(self.dvc_hash(), store)

    def _send(self, md5: str, store: ObjectStore, origin: str | None = None) -> None:
        if not store.exists(object_key(md5)) and not (origin and self._copied(md5, store, origin)):
            store.upload_file(self._taken_up(md5), object_key(md5))

    def _copied(self, md5: str, store: ObjectStore, origin: str) -> bool:
        """Whether the store could copy the file from where it has it already. Written in one piece, an object has its hash as its etag; if not, it is sent."""
        try:
            store.copy(origin, object_key(md5), etag=f'"{md5}"')
        except (MissingObject, PreconditionFailed):
            return False
        return True

    def read_json(self, relative: str) -> dict:
        return json.loads((self.path / relative).read_text())

    def dvc_hash(self) -> str:
        """The hash DVC gave the release folder."""
        lock = read_yaml(self.path / "dvc.lock")
        return lock["stages"]["release"]["outs"][0]["md5"]

    def commit_and_tag(self, message: str, tag: str) -> None:
        """Commit the release's files and tag them."""
        self._git("add", "dvc.lock", "sources.yaml", "params.yaml")
        self._git("commit", "--quiet", "--allow-empty", "-m", message)
        self._git("tag", "-a", tag, "-m", message)

    def drop(self, tags: Iterable[str]) -> None:
        """Delete tags of releases that came to nothing."""
        if names := sorted(tags):
            self._git("tag", "-d", *names)

    def commit(self) -> str:
        return self._git("rev-parse", "HEAD").strip()

    def tags(self) -> list[str]:
        """Release tags, oldest first."""
        return self._git("tag", "--list", "corpus/*", "--sort=creatordate").split()

    def files(self) -> dict[str, dict]:
        """{path: {path, md5, key, size}} of the release's files as DVC took them up; `key` is the object in the corpus bucket.

        Raises:
            RepositoryError: DVC did not write its cache, which it does not tell where the disk is full.
        """
        listed = json.loads(self._taken_up(self.dvc_hash()).read_text())
        return {entry["relpath"]: self._file(entry["relpath"], entry["md5"]) for entry in sorted(listed, key=lambda e: e["relpath"])}

    def _file(self, path: str, md5: str) -> dict:
        return {"path": path, "md5": md5, "key": object_key(md5), "size": (self.path / OUT / path).stat().st_size}

    def _cached(self, md5: str) -> Path:
        return self.path / CACHE / "files" / "md5" / md5[:2] / md5[2:]

    def _taken_up(self, md5: str) -> Path:
        if not (path := self._cached(md5)).exists():
            raise RepositoryError(f"DVC's cache {self.path / CACHE} lacks what it should have taken up; is the disk full? Run this one again when there is room")
        return path

    def discard(self, md5s: Iterable[str]) -> None:
        """Delete files of these hashes from DVC's cache in the clone."""
        for md5 in md5s:
            self._cached(md5).unlink(missing_ok=True)

    def parquet(self) -> Iterator[Path]:
        """Parquet files of the release folder and of DVC's cache, whichever release they were built for."""
        for path in (path for folder in (OUT, CACHE) for path in (self.path / folder).rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                if file.read(4) == b"PAR1":
                    yield path

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        return self._run(["git", *(part for setting in PLAIN for part in ("-c", setting)), *arguments], cwd)

    def _dvc(self, *arguments: str, on_line: Callable[[str], None] = lambda line: None) -> str:
        return self._run([sys.executable, "-m", "dvc", *arguments], on_line=on_line)

    def _run(self, command: list[str], cwd: Path | None = None, on_line: Callable[[str], None] = lambda line: None) -> str:
        environment = _without_git(os.environ) | self.settings.process_environment()
        # The clone's own code builds the release, by the interpreter that runs us.
        environment |= {"PYTHONPATH": str(cwd or self.path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=cwd or self.path, env=environment, pass_fds=self._lock, **pipes)
        lines = []
        for line in process.stdout:
            lines.append(line)
            on_line(line.rstrip())
        if process.wait(timeout=600):
            raise RepositoryError(f"`{' '.join(command[-4:])}` failed in {cwd or self.path}:\n{''.join(lines[-15:])}")
        return "".join(lines)


def _without_git(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment that leads git to no repository but the one it is run in."""
    return {name: value for name, value in environment.items() if not name.startswith("GIT_") or name.startswith(OF_THE_USER)}


def object_key(md5: str) -> str:
    """Where DVC 3 keeps a file of this hash in its remote."""
    return f"{REMOTE_PREFIX}/files/md5/{md5[:2]}/{md5[2:]}"
