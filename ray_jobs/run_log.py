"""What a training run tells of itself, on S3 under `training/<run>/` in the logs bucket.

| object | holds |
| --- | --- |
| `run.json` | what the run is, and an entry for every time it was started |
| `metrics/…` | a row a log line |
| `events/…` | what happened: resumed, skipped-step, rolled-back, … |
| `scores/…` | validation scores by step |
| `samples/…` | which samples each step saw (`ray_jobs/run_parts.py` lays out all four) |
| `pictures/<step>-<name>.png` | drawings on the way |

A run at the paper's scale, 275,000 steps of 64 streams with some 30 samples each on 64 ranks, keeps 550 windows
x 64 = 35,000 parts of samples of about 15,000 rows and 150 KB, 5 GB in all; one step is found in the 64 of its
window. A log line every 20 steps makes 13,750 rows of metrics in 28 parts, 2 MB. While a part grows it is written
again at most every 60 s (samples) or 3 s (the rest) and only if something was added.
"""

import math
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate, groupby, pairwise

from infra.store import CorruptObject, MissingObject, ObjectStore, log_store
from ray_jobs import run_parts, tracker
from ray_jobs.run_parts import OpenPart

CAPACITY = 20_000
SAMPLES_EVERY_S, OTHERS_EVERY_S = 60.0, 3.0
RETRY_S, TICK_S = 1.0, 0.1
ABOUT = ("stage", "begun_at", "attempts")
RESERVED = ("step", "at", "recorded")


class RunLog:
    """The pen of one rank. A thread writes behind it: no call waits for the store or raises.

    While the store is silent, up to `capacity` entries (an entry: a call of a method) are kept and tried again.

    Args:
        since: the stamp that this start's begin with, the same for all ranks (`next_stamp`); by this machine's clock if None.
    """

    def __init__(self, run: str, store: ObjectStore | None = None, capacity: int = CAPACITY, since: int | None = None):
        self.run, self.store, self.lost = run, store or log_store(), 0
        self._tracker: tracker.Tracker | None = None
        self._entries: queue.Queue[Callable[[], None]] = queue.Queue(capacity)
        self._open: dict[str, OpenPart] = {}
        # Key -> (when it is due, how it is written); written whole each time, so trying again does no harm.
        self._todo: dict[str, tuple[float, Callable[[], None]]] = {}
        self._flushed: list[threading.Event] = []
        self._stamp, self._stamping = 0, threading.Lock()
        self._ahead = (time.time_ns() if since is None else since) - time.monotonic_ns()
        self._ends_at: float | None = None
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, daemon=True, name="run-log")
        self._thread.start()

    def begin(self, about: dict) -> None:
        """Once at every start, by one rank. `about`: stage, training, release, start, seed, workers."""
        attempt = {"begun_at": _now(), "host": socket.gethostname(), "workers": about.get("workers"), "id": self._recorded()}
        self._tracker = tracker.connect(self.run, about)
        self._write_soon(f"training/{self.run}/run.json", lambda: self._write_about(about, attempt), 0)

    def metrics(self, row: dict) -> None:
        """A log line: `step`, numbers under any names, None where there is none."""
        row = {"at": _now(), **row}
        self._add("metrics", lambda: [{"step": int(row["step"]), "at": str(row["at"]), **_numbers(row)}])
        if self._tracker:
            self._offer(lambda: self._tracker.metrics(int(row["step"]), _numbers(row)))

    def samples(self, rank: int, rows: list[dict]) -> None:
        """What steps were made of: {step, stream, position, sample} each. All samples of a step and stream come in one call."""
        rows = list(rows)
        self._add("samples", lambda: [{"rank": rank, **{key: int(row[key]) for key in ("step", "stream", "position")}, "sample": str(row["sample"])} for row in rows])

    def event(self, step: int, kind: str, detail: str) -> None:
        at = _now()
        self._add("events", lambda: [{"step": int(step), "at": at, "kind": str(kind), "detail": str(detail)}])

    def picture(self, step: int, name: str, png: bytes) -> None:
        key = f"training/{self.run}/pictures/{step:09d}-{name}.png"
        self._write_soon(key, lambda: self.store.put(key, png), 0)

    def scores(self, step: int, scores: dict[str, float]) -> None:
        at, scores = _now(), dict(scores)
        self._add("scores", lambda: [{"step": int(step), "at": at, "name": str(name), "value": float(value)} for name, value in scores.items()])
        if self._tracker:
            self._offer(lambda: self._tracker.metrics(int(step), {f"score/{name}": float(value) for name, value in scores.items()}))

    def flush(self, within_s: float) -> bool:
        """Wait until all that was said so far is on S3, for so long at most: before a checkpoint counts, so that no step before it is forgotten."""
        done = threading.Event()
        self._offer(lambda: self._flushed.append(done))
        return done.wait(within_s)

    def close(self, how: str = "finished", within_s: float = 30) -> None:
        """Write what is left; what could not be written by then is told. `how` the run ended is MLflow's to know: everybody else sees it."""
        self._ends_at = time.monotonic() + within_s
        self._thread.join(within_s + 1)
        left = self._entries.qsize() + len(self._todo)
        if left or self.lost:
            _tell(f"run log of {self.run}: {self.lost} entries lost and {left} objects not written; {self._trouble or 'the object store did not answer in time'}")
        if self._tracker:
            self._tracker.close(how)

    # -- the caller's side: into the queue, never waiting ----------------------------------------------

    def _add(self, table: str, rows: Callable[[], list[dict]]) -> None:
        """Rows of one call share a stamp, later than that of any call before. The thread makes them: what is wrong with them is its concern."""
        stamp = self._recorded()
        self._offer(lambda: self._to_parts(table, _stamped(rows(), stamp)))

    def _recorded(self) -> int:
        with self._stamping:
            self._stamp = max(self._stamp + 1, self._ahead + time.monotonic_ns())
            return self._stamp

    def _write_soon(self, key: str, write: Callable[[], object], within_s: float) -> None:
        self._offer(lambda: self._todo.update({key: (time.monotonic() + within_s, write)}))

    def _offer(self, entry: Callable[[], None]) -> None:
        try:
            if self._ends_at is not None:
                raise queue.Full
            self._entries.put_nowait(entry)
        except queue.Full:
            self._lose("nothing more is taken once it is closed" if self._ends_at else f"{self._entries.maxsize} entries wait already")

    # -- the thread's side ------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._ends_at is None or (time.monotonic() < self._ends_at and (self._todo or not self._entries.empty())):
            self._absorb()
            urgent = bool(self._flushed) or self._ends_at is not None
            if not self._write_due(urgent):
                time.sleep(RETRY_S)
            elif urgent and not self._todo:
                for event in self._flushed:
                    event.set()
                self._flushed.clear()

    def _absorb(self) -> None:
        with suppress(queue.Empty):
            entry = self._entries.get(timeout=TICK_S)
            while True:
                try:
                    entry()
                except Exception as error:
                    self._lose(f"{type(error).__name__}: {error}")
                entry = self._entries.get_nowait()

    def _to_parts(self, table: str, rows: list[dict]) -> None:
        for window, found in groupby(sorted(rows, key=lambda row: row["step"]), key=lambda row: run_parts.window_of(table, row["step"])):
            part = self._open.get(table)
            if part is None or part.window != window:
                part = self._open[table] = OpenPart(self.run, table, window)
            part.add(list(found))
            due = time.monotonic() + (SAMPLES_EVERY_S if table == "samples" else OTHERS_EVERY_S)
            self._todo.setdefault(part.key, (due, partial(part.write, self.store)))

    def _write_due(self, urgent: bool) -> bool:
        """Write what is due; False when the store does not take it."""
        for key, (due, write) in list(self._todo.items()):
            if urgent or due <= time.monotonic():
                try:
                    write()
                except Exception as error:
                    # Whatever it is, it is no reason to end a training.
                    if not self._trouble:
                        _tell(f"run log of {self.run}: {error}; what there is to write is kept and tried again")
                    self._trouble = str(error)
                    return False
                del self._todo[key]
        self._trouble = ""
        return True

    def _write_about(self, about: dict, attempt: dict) -> None:
        """Make run.json, or add this start to it. A start is added once, however often that is tried."""
        key, new = f"training/{self.run}/run.json", {**about, "run": self.run, "begun_at": attempt["begun_at"], "attempts": []}
        try:
            known, etag = self.store.get_json_with_etag(key, ABOUT)
            condition = {"if_match": etag}
        except MissingObject:
            known, condition = new, {"if_absent": True}
        except CorruptObject:
            # Nothing to add to: it begins anew, as waiting would hold up all that is written after it.
            known, condition = new, {}
        if all(earlier["id"] != attempt["id"] for earlier in known["attempts"]):
            self.store.put_json(key, {**known, "attempts": [*known["attempts"], attempt]}, **condition)

    def _lose(self, why: str) -> None:
        self.lost += 1
        if self.lost == 1:
            _tell(f"run log of {self.run}: an entry is lost, {why}; closing tells how many were")


def next_stamp(run: str, store: ObjectStore | None = None) -> int:
    """A stamp for the next start of a run: now, or later where the clock was ahead when something was recorded before."""
    store = store or log_store()
    return max(time.time_ns(), *(run_parts.newest_recorded(store, run, table) + 1 for table in ("metrics", "events")))


def _stamped(rows: list[dict], stamp: int) -> list[dict]:
    """Where the steps go back within a call, what follows counts as recorded later."""
    went_back = accumulate((after["step"] < before["step"] for before, after in pairwise(rows)), initial=0)
    return [{**row, "recorded": stamp + times} for row, times in zip(rows, went_back)]


def _numbers(row: dict) -> dict[str, float]:
    """Everything a row says beside its step and time, as floats: a column is of one kind in all parts."""
    return {name: math.nan if value is None else float(value) for name, value in row.items() if name not in RESERVED}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _tell(line: str) -> None:
    print(line, flush=True)
