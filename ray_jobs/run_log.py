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
from dataclasses import dataclass
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
# Events of going on from the step that they name.
WENT_BACK = ("resumed", "rolled-back", "no-checkpoint-left")


class RunLog:
    """The pen of one rank. A thread writes behind it: no call waits for the store or raises.

    While the store is silent, up to `capacity` entries (an entry: a call of a method) are kept and tried again.
    """

    def __init__(self, run: str, store: ObjectStore | None = None, capacity: int = CAPACITY):
        self.run, self.store, self.lost = run, store or log_store(), 0
        self._tracker: tracker.Tracker | None = None
        self._entries: queue.Queue[Callable[[], None]] = queue.Queue(capacity)
        self._open: dict[str, OpenPart] = {}
        # Key -> (when it is due, how it is written); written whole each time, so trying again does no harm.
        self._todo: dict[str, tuple[float, Callable[[], None]]] = {}
        self._flushed: list[threading.Event] = []
        self._stamp, self._stamping = 0, threading.Lock()
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

    def flush(self, within_s: float = 10) -> bool:
        """Wait until all that was said so far is on S3: before a checkpoint counts, so that no step before it is forgotten."""
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
            self._stamp = max(self._stamp + 1, time.time_ns())
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


@dataclass(frozen=True)
class Run:
    """A run as it is known on S3, each table in step order and each step once: that of the latest attempt.

    `metrics` is a DataFrame. Events are all that happened, in the order of time, also at steps that were done again.
    """

    run: str
    about: dict
    metrics: object
    events: list[dict]
    scores: list[dict]
    pictures: list[str]


def read(run: str, store: ObjectStore | None = None) -> Run:
    """A run as it is known by now.

    Raises:
        LookupError: there is no such run.
        CorruptObject: what it told is damaged.
    """
    store = store or log_store()
    events = run_parts.read_table(store, run, "events").sort_values("recorded", kind="stable")
    return Run(
        run=run,
        about=_about(run, store),
        metrics=run_parts.current(run_parts.read_table(store, run, "metrics")).drop(columns="recorded"),
        events=events.drop(columns="recorded").to_dict("records"),
        scores=_scores(run_parts.current(run_parts.read_table(store, run, "scores"))),
        pictures=[entry.key for entry in store.list(f"training/{run}/pictures/")],
    )


def samples_of(run: str, step: int, store: ObjectStore | None = None) -> list[dict]:
    """What step `step` was made of, by stream and position: {step, stream, position, sample, rank}. What was undone does not count.

    Raises:
        LookupError: there is no such run, or the step never ran, or it was undone and has not been done again.
        CorruptObject: what it told is damaged.
    """
    store = store or log_store()
    about, rows = _about(run, store), run_parts.read_step(store, run, "samples", step)
    if rows.empty:
        last = _last(run, store)
        raise LookupError(f"{run} knows no sample of step {step}: it has reached step {last.get('step', 0)} of {_steps(about)}")
    rows = rows[rows["recorded"] > _undone_until(run, step, store)]
    if rows.empty:
        raise LookupError(f"{run} has undone step {step}, as it went back to an earlier one, and has not done it again: it has reached step {_last(run, store).get('step', 0)} of {_steps(about)}")
    latest = rows[rows["recorded"] == rows.groupby("stream")["recorded"].transform("max")]
    return latest.drop(columns="recorded").drop_duplicates(["stream", "position"]).sort_values(["stream", "position"]).to_dict("records")


def _undone_until(run: str, step: int, store: ObjectStore) -> int:
    """When the run last went back to before a step: told by events, or by a log line of a step that had one already."""
    events = run_parts.read_table(store, run, "events").to_dict("records")
    times, furthest = [event["recorded"] for event in events if event["kind"] in WENT_BACK and event["step"] < step], 0
    for line in run_parts.read_table(store, run, "metrics").to_dict("records"):
        if line["step"] <= furthest and line["step"] < step:
            times.append(line["recorded"])
        furthest = max(furthest, line["step"])
    return max(times, default=0)


def runs(store: ObjectStore | None = None) -> list[dict]:
    """Every run, the one started last at the end: {run, stage, start, steps, begun_at, started_at, attempts, release, last, damaged}.

    `last` is its last log line; of a run that cannot be read `damaged` tells why, and little else is known.
    """
    store, found = store or log_store(), []
    for folder in store.folders("training/"):
        # No run.json yet: it has not begun.
        with suppress(LookupError):
            found.append(_summary(folder.split("/")[1], store))
    return sorted(found, key=lambda run: run["started_at"])


def _summary(run: str, store: ObjectStore) -> dict:
    unknown = {"run": run, "stage": "", "start": "", "steps": 0, "release": None, "begun_at": "", "started_at": "", "attempts": 0, "last": {}}
    try:
        about, last = _about(run, store), _last(run, store)
    except ValueError as error:
        return unknown | {"damaged": str(error)}
    started = [attempt["begun_at"] for attempt in about["attempts"]]
    known = {"stage": about["stage"]["name"], "start": began_with(about), "steps": _steps(about), "release": about.get("release"), "begun_at": about["begun_at"]}
    return unknown | known | {"started_at": started[-1], "attempts": len(started), "last": last, "damaged": None}


def find(name: str, store: ObjectStore | None = None) -> str:
    """The run that a name, the beginning of one, or a stage (its newest run) means.

    Raises:
        LookupError: none, or several.
    """
    # Every run's name begins with no name at all, which means none of them.
    known = runs(store) if name else []
    of_stage = [run["run"] for run in known if run["stage"] == name]
    matching = [run["run"] for run in known if run["run"].startswith(name)]
    chosen = [name] if name in matching else of_stage[-1:] or matching
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise LookupError(f"no training run {name!r}; `unimed train list` shows what there is")
    raise LookupError(f"{name!r} may be any of {', '.join(matching)}")


def began_with(about: dict) -> str:
    """What a run's weights were before it: a model version, where published ones lay, or another stage's checkpoint."""
    start = about.get("start") or {}
    return start.get("origin") or start.get("version") or start.get("prefix", "").removeprefix("stages/")


def _steps(about: dict) -> int:
    return about["stage"]["steps"]


def _about(run: str, store: ObjectStore) -> dict:
    try:
        return store.get_json(f"training/{run}/run.json", ABOUT)
    except MissingObject:
        raise LookupError(f"no training run {run!r}; `unimed train list` shows what there is") from None


def _last(run: str, store: ObjectStore) -> dict:
    rows = run_parts.current(run_parts.read_newest(store, run, "metrics")).drop(columns="recorded").tail(1).to_dict("records")
    return {name: value for row in rows for name, value in row.items() if value == value}


def _scores(frame) -> list[dict]:
    found: dict[int, dict] = {}
    for row in frame.to_dict("records"):
        found.setdefault(row["step"], {"step": row["step"], "at": row["at"], "scores": {}})["scores"][row["name"]] = row["value"]
    return list(found.values())


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
