"""Training runs as they are known on S3 (what lies there: `ray_jobs/run_log.py`)."""

from contextlib import suppress
from dataclasses import dataclass

from infra.store import MissingObject, ObjectStore, log_store
from ray_jobs import run_parts
from ray_jobs.run_log import ABOUT

# Events of going on from the step that they name.
WENT_BACK = ("resumed", "rolled-back", "no-checkpoint-left")


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
    back = _went_back(events)
    return Run(
        run=run,
        about=_about(run, store),
        metrics=run_parts.current(run_parts.read_table(store, run, "metrics"), back).drop(columns="recorded"),
        events=events.drop(columns="recorded").to_dict("records"),
        scores=_scores(run_parts.current(run_parts.read_table(store, run, "scores"), back)),
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
    times, furthest = [recorded for recorded, to in _went_back(run_parts.read_table(store, run, "events")) if to < step], 0
    for line in run_parts.read_table(store, run, "metrics").to_dict("records"):
        if line["step"] <= furthest and line["step"] < step:
            times.append(line["recorded"])
        furthest = max(furthest, line["step"])
    return max(times, default=0)


def _went_back(events) -> list[tuple[int, int]]:
    """When the run went back, and to which step, as its events tell."""
    return [(event["recorded"], event["step"]) for event in events.to_dict("records") if event["kind"] in WENT_BACK]


def every(store: ObjectStore | None = None) -> list[dict]:
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
    known = every(store) if name else []
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
    """The last log line that counts. Where the run has gone back, the furthest steps may have none."""
    back = _went_back(run_parts.read_table(store, run, "events"))
    for window in run_parts.read_windows(store, run, "metrics"):
        for row in run_parts.current(window, back).drop(columns="recorded").tail(1).to_dict("records"):
            return {name: value for name, value in row.items() if value == value}
    return {}


def _scores(frame) -> list[dict]:
    found: dict[int, dict] = {}
    for row in frame.to_dict("records"):
        found.setdefault(row["step"], {"step": row["step"], "at": row["at"], "scores": {}})["scores"][row["name"]] = row["value"]
    return list(found.values())
