"""Checkpoints of a running stage: written beside training to S3, visible by a marker that is written last.

Tensors are saved by torch.distributed.checkpoint as safetensors, each worker its own shards, so nothing is
gathered and any number of workers can read them back. A checkpoint is a folder `runs/<run>/checkpoints/<step>-<attempt>/`
with shards, `state.json` and `commit.json`; the last names every file with size and SHA-256. One that is found damaged
loses its marker to the name `damaged.json`: its files stay to be looked at, and it counts no more as one to go back to. So
does one that the run has gone back behind, to the name `abandoned.json`. One whose name ends in `-interim` was saved as the
run was stopped: it is gone on from, but bad steps take no run back to it, as the undisturbed run does not have it.
"""

import hashlib
import json
import re
import secrets
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from infra.outage import patiently
from infra.records import file_sha256, utc_now
from infra.store import MissingObject, ObjectStore
from ray_jobs.place import Place, from_first, gather

COMMIT, STATE, DAMAGED, ABANDONED = "commit.json", "state.json", "damaged.json", "abandoned.json"
# Of a checkpoint's folder; before the name, of one that is fetched.
INTERIM = "-interim"
_NAME, RESUME = re.compile(rf"\d{{8}}-[0-9a-f]{{8}}({INTERIM})?"), "resume-"
# Of a file in it: what damage has made of a name may lead elsewhere, or be no file's name at all.
_FILE = re.compile(r"\w[\w.-]{0,199}", re.ASCII)

# DCP warns that HF storage keeps no extra metadata; ours lies in state.json.
warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")


class DamagedCheckpoint(RuntimeError):
    """A committed checkpoint is not what was written; the message names what of it."""


class StageCheckpoints:
    """The checkpoints of one run, as one worker sees them. All workers call every method in the same order.

    Args:
        scratch: folder on this machine for shards on their way.
        keep: newest checkpoints that stay, beside an interim one that is newer.
        outage_minutes: how long a silent store is waited for.
        on_event: told (step, kind, detail) of what went wrong.
        before_commit: called in the thread when this worker's shards are sent.
    """

    def __init__(self, run: str, store: ObjectStore, place: Place, scratch: Path, keep: int = 2, outage_minutes: float = 5.0, on_event: Callable[[int, str, str], None] = lambda *told: None, before_commit: Callable[[], object] = lambda: None):
        self.prefix, self.store, self.place, self.scratch = checkpoints_prefix(run), store, place, scratch
        self.keep, self.outage_minutes, self.on_event, self.before_commit = keep, outage_minutes, on_event, before_commit
        # A group of its own: its collectives run beside those of training.
        self._group = dist.new_group(backend="gloo") if place.workers > 1 else None
        self._sweep()
        self._attempt = from_first(secrets.token_hex(4), place.workers, self._group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self.last_error: str | None = None

    def save(self, step: int, tensors: dict[str, Tensor], state: dict, streams: dict[str, dict], interim: bool = False) -> None:
        """Copy everything and go on; a thread writes it out. An earlier one that is still being written is waited for.

        Args:
            state: JSON-able, the same on all workers.
            streams: this worker's share of the loader's state.
            interim: it is one to go on from alone.
        """
        self.wait()
        folder = self.scratch / f"{step:08d}-{self._attempt}{INTERIM * interim}"
        with suppress(OSError):  # the disk is full: the writer meets that too, and all workers together
            folder.mkdir(parents=True, exist_ok=True)
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        written = dcp.async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self.place.workers == 1)
        # As it is now: the caller goes on changing it.
        self._pending = self._thread.submit(self._publish, step, written, folder, json.dumps(state), streams)

    def wait(self) -> bool:
        """Until nothing is being written; whether the last checkpoint was committed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        return self.last_error is None

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()
        if self.place.first_here:
            with suppress(OSError):
                self.scratch.rmdir()

    def give_up_after(self, step: int) -> None:
        """Checkpoints of later steps count no more: the run goes on from this one, whatever it was gone back from."""
        if self.place.first:
            later = [name for name in self._patiently(lambda: committed(self.store, self.prefix)) if step_of(name) > step]
            for name in later:
                self._put_aside(name, ABANDONED)

    def load(self, tensors: dict[str, Tensor], before: int | None = None, interim: bool = True) -> tuple[dict, dict[str, dict]] | None:
        """Fill `tensors` from the newest checkpoint that is whole (of a step below `before`, and no interim one unless `interim`); returns (state, streams).

        One that is damaged is told, and the one before it is taken. None: there is none.

        Raises:
            OSError: a checkpoint cannot be fetched now, which says nothing against it: the store is silent, the disk is full.
        """
        self.wait()
        names = patiently(lambda: committed(self.store, self.prefix), self.outage_minutes) if self.place.first else None
        names, damaged = from_first(names, self.place.workers, self._group), 0
        for name in names:
            step = step_of(name)
            if (before is not None and step >= before) or (name.endswith(INTERIM) and not interim):
                continue
            folder, problem = self._fetched(name)
            problems = [p for p in gather(problem, self.place.workers, self._group) if p]
            # The machine's trouble or the store's, not the checkpoint's. It is everybody's, so that all end together.
            for trouble in (p for p in problems if not isinstance(p, DamagedCheckpoint)):
                self._tell(step, "checkpoint-unread", f"{_told(trouble)}; it stays, and the next attempt begins with it")
                raise trouble
            if problems:
                self._tell(step, "corrupt-checkpoint", f"{problems[0]}; going back to the one before")
                self._put_aside(name, DAMAGED)
                damaged += 1
                continue
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=self.place.workers == 1)
            saved = json.loads((folder / STATE).read_text())
            gather(None, self.place.workers, self._group)
            if self.place.first_here:
                shutil.rmtree(folder, ignore_errors=True)
            return saved["state"], saved["streams"]
        if names and damaged == len(names):
            self._tell(0, "no-checkpoint-left", f"none of the {damaged} committed ones is whole; their files stay under {self.prefix} until the run is past them")
        return None

    def _publish(self, step: int, written: Future, folder: Path, state: str, streams: dict) -> None:
        """In the thread: send this worker's shards, and on the first worker commit once all are there."""
        files, error = {}, None
        try:
            written.result()
            files = {path.name: _described(path) for path in sorted(folder.glob(f"shard-{self.place.rank + 1:05d}-*"))}
            for name in files:
                self._patiently(lambda name=name: self.store.upload_file(folder / name, self._key(folder, name)))
            self.before_commit()
        except (Exception, CheckpointException) as problem:
            error = f"worker {self.place.rank}: {_told(problem)}"
        everybody = gather((files, streams, error), self.place.workers, self._group)
        errors = [error for _, _, error in everybody if error]
        if self.place.first and not errors:
            try:
                self._commit(step, folder, state, everybody)
            except Exception as problem:
                errors = [_told(problem)]
        self.last_error = errors[0] if errors else None
        if errors:
            self._tell(step, "checkpoint-failed", errors[0])
        for name in files:
            (folder / name).unlink(missing_ok=True)
        if self.place.first_here:
            shutil.rmtree(folder, ignore_errors=True)

    def _commit(self, step: int, folder: Path, state: str, everybody: list) -> None:
        streams = {name: place for _, part, _ in everybody for name, place in part.items()}
        text = json.dumps({"state": json.loads(state), "streams": streams}).encode()
        files = {name: what for part, _, _ in everybody for name, what in part.items()}
        # Of no file: where machines share a disk, another may have cleared the folder by now.
        files[STATE] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        self._patiently(lambda: self.store.put(self._key(folder, STATE), text))
        marker = {"step": step, "files": files, "workers": self.place.workers, "at": utc_now()}
        self._patiently(lambda: self.store.put_json(self._key(folder, COMMIT), marker))
        self._patiently(self._forget_old)

    def _forget_old(self) -> None:
        """Keep the newest; of the others the marker goes first. What was never committed, or counts no more, goes once the run is past it."""
        names = committed(self.store, self.prefix)
        kept = {*names[:1], *[name for name in names if not name.endswith(INTERIM)][: self.keep]}
        oldest = min(kept)
        for key in sorted((entry.key for entry in self.store.list(self.prefix)), key=lambda key: not key.endswith(COMMIT)):
            name = key.removeprefix(self.prefix).split("/")[0]
            if name not in kept and (name in names or name < oldest):
                self.store.delete(key)

    def _sweep(self) -> None:
        """Delete what earlier attempts that were killed have left on this machine."""
        if self.place.first_here:
            for left in self.scratch.glob("*-*"):
                if _NAME.fullmatch(left.name.removeprefix(RESUME)):
                    shutil.rmtree(left, ignore_errors=True)
        gather(None, self.place.workers, self._group)

    def _put_aside(self, name: str, told: str) -> None:
        """It is committed no more, so no good one has to go for it; its files stay until the run is past its step."""
        if not self.place.first:
            return
        marker = f"{self.prefix}{name}/{COMMIT}"
        with suppress(MissingObject):
            self._patiently(lambda: self.store.put(f"{self.prefix}{name}/{told}", self.store.get(marker)))
        self._patiently(lambda: self.store.delete(marker))

    def _fetched(self, name: str) -> tuple[Path, Exception | None]:
        """The folder of a checkpoint on this machine, and what kept it from being there whole."""
        folder = self.scratch / f"{RESUME}{name}"
        if not self.place.first_here:
            return folder, None
        try:
            self._patiently(lambda: fetch(self.store, f"{self.prefix}{name}", folder))
        except (DamagedCheckpoint, OSError) as problem:
            shutil.rmtree(folder, ignore_errors=True)
            return folder, problem
        return folder, None

    def _tell(self, step: int, kind: str, detail: str) -> None:
        if self.place.first:
            print(f"checkpoint, step {step}: {kind}: {detail}", flush=True)
            self.on_event(step, kind, detail)

    def _patiently(self, work: Callable) -> object:
        return patiently(work, self.outage_minutes, lambda line: print(f"checkpoint: {line}", flush=True))

    def _key(self, folder: Path, name: str) -> str:
        return f"{self.prefix}{folder.name}/{name}"


def checkpoints_prefix(run: str) -> str:
    return f"runs/{run}/checkpoints/"


def step_of(name: str) -> int:
    """The step after which a checkpoint of this name was saved."""
    return int(name.split("-")[0])


def committed(store: ObjectStore, prefix: str) -> list[str]:
    """Names of the committed checkpoints, newest first."""
    markers = [entry.key.removeprefix(prefix) for entry in store.list(prefix) if entry.key.endswith(f"/{COMMIT}")]
    names = [name for marker in markers if _NAME.fullmatch(name := marker.split("/")[0])]
    # Two of one step: the attempt that was written later.
    written = {name: _written(store, f"{prefix}{name}") for name in names} if len({step_of(name) for name in names}) < len(names) else {}
    return sorted(names, key=lambda name: (step_of(name), written.get(name, "")), reverse=True)


def fetch(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Download a committed checkpoint.

    Raises:
        DamagedCheckpoint: its marker cannot be read, or a file is gone or not what the marker says.
        OSError: it cannot be fetched now, whatever it is worth.
    """
    for name, wanted in _marker(store, prefix)["files"].items():
        path = folder / name
        try:
            store.download_file(f"{prefix}/{name}", path)
        except MissingObject as error:
            raise DamagedCheckpoint(str(error)) from None
        if _described(path) != wanted:
            path.unlink()
            raise DamagedCheckpoint(f"{prefix}/{name} is damaged: its size or SHA-256 is not what {COMMIT} says")


def _marker(store: ObjectStore, prefix: str) -> dict:
    """What was written last of a checkpoint. Raises DamagedCheckpoint where that is no such marker."""
    try:
        marker = store.get_json(f"{prefix}/{COMMIT}")
    except MissingObject as error:
        raise DamagedCheckpoint(str(error)) from None
    except ValueError:
        marker = None
    files = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(files, dict) or STATE not in files or len(files) < 2 or not all(map(_FILE.fullmatch, files)) or not isinstance(marker.get("at"), str):
        raise DamagedCheckpoint(f"{prefix}/{COMMIT} is damaged: it does not name the checkpoint's files")
    return marker


def _written(store: ObjectStore, prefix: str) -> str:
    """When a checkpoint was committed; before all others where its marker does not say."""
    try:
        return _marker(store, prefix)["at"]
    except DamagedCheckpoint:
        return ""


def _described(path: Path) -> dict:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _told(problem: BaseException) -> str:
    """One line; the cause inside DCP's exception, which prints traces of all workers."""
    if isinstance(problem, CheckpointException):
        rank, (cause, _) = next(iter(problem.failures.items()))
        return f"worker {rank}: {type(cause).__name__}: {cause}"
    return f"{type(problem).__name__}: {problem}"
