"""Heavy steps as Ray jobs named by their step and inputs.

The same step on the same inputs is the same job: run again, it attaches to the running job or returns the
finished result. Results are small JSON records on S3, written last, so they outlive the cluster.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from infra.outage import patiently
from infra.records import digest, utc_now
from infra.settings import get_settings
from infra.store import CorruptObject, MissingObject, PreconditionFailed, log_store

JOB_VARIABLE = "UNIMED_JOB_ID"
POLL_S = 0.5
# A silent store is waited for so long with what a step has done.
OUTAGE_MINUTES = 5.0
# Ray prints what a worker says twice: all lines of a moment, and then all of them again. There are fewer than this.
TOGETHER = 10
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Who printed a line; on another node than the job's own process, with its address.
_PREFIX = re.compile(r"^\([\w.:]+ pid=\d+(, ip=\S+)?\) ")
_REPEATED = re.compile(r" \[repeated \d+x across cluster\].*$")
_CHATTER = re.compile(r"INFO (job_manager|worker)\.py|Reporting training result|process group|PreemptionWatcher|Checkpoint successfully|\(ip=|worker group|Requesting resources|Running entrypoint")


class JobFailed(RuntimeError):
    """A job ended without a result; carries the end of its log."""

    def __init__(self, submission_id: str, message: str, log_tail: str):
        super().__init__(f"job {submission_id} failed: {message}\n{log_tail}")
        self.submission_id, self.log_tail = submission_id, log_tail


class JobCancelled(RuntimeError):
    """Somebody stopped the job; run again, it goes on from where it was."""


@dataclass(frozen=True)
class JobSpec:
    """What to run: a `ray_jobs` module and its JSON inputs.

    `running` fills up the sections of the inputs with what changes how the job runs and not what comes of it, so it is no
    part of the name. Of the jobs with the same word for `alone`, one runs at a time.
    """

    step: str
    module: str
    inputs: dict
    running: dict[str, dict] = field(default_factory=dict)
    alone: str = ""

    @cached_property
    def submission_id(self) -> str:
        return f"{self.step}-{digest({'module': self.module, 'inputs': self.inputs})[:12]}"

    @property
    def all_inputs(self) -> dict:
        return self.inputs | {name: self.inputs[name] | values for name, values in self.running.items()}


@dataclass(frozen=True)
class JobOutcome:
    """A job's result, and how it was come by: "up to date", "attached" or "ran"."""

    result: dict
    how: str
    submission_id: str
    seconds: float


def find_result(spec: JobSpec) -> dict | None:
    """The stored result of this step on these inputs, or None. One that is damaged is deleted: it can be made again."""
    key = f"jobs/{spec.submission_id}/result.json"
    try:
        return log_store().get_json(key, ("result",))["result"]
    except MissingObject:
        return None
    except CorruptObject:
        log_store().delete(key)
        return None


def run_job(spec: JobSpec, on_log: Callable[[str], None] = print, force: bool = False, owner: str = "") -> JobOutcome:
    """Return the step's result: the stored one, a running job's, or a new job's, which `owner` may stop (`stop_jobs_of`).

    Raises:
        JobFailed: the job ended without a result.
        JobCancelled: it was stopped.
    """
    begun = time.perf_counter()
    if force:
        log_store().delete(f"jobs/{spec.submission_id}/result.json")
    elif (result := find_result(spec)) is not None:
        return JobOutcome(result, "up to date", spec.submission_id, 0.0)
    client = _client()
    _wait_for_others(client, spec, on_log)
    attempt, how = _submit_or_attach(client, spec, owner)
    _follow(client, attempt, on_log)
    return JobOutcome(_collect(client, spec, attempt, on_log), how, attempt, time.perf_counter() - begun)


def stop_job(job: str, timeout_s: float = 180, on_told: Callable[[], None] = lambda: None) -> bool:
    """Tell a job's running attempt to stop (SIGTERM), and wait until it has ended; whether one was running. `on_told` is called before the wait.

    Raises:
        TimeoutError: it was told, and had not ended in time.
    """
    return _stop(_client(), {"job": job}, timeout_s, on_told)


def running_jobs(alone: str) -> list[str]:
    """Names of the jobs with this word for `alone` that have been started and have not ended."""
    return sorted({attempt.metadata["job"] for attempt in _running(_client(), {"alone": alone})})


def stop_jobs_of(owner: str, timeout_s: float = 180) -> bool:
    """Stop what was started for an owner, as `stop_job` does."""
    return _stop(_client(), {"owner": owner}, timeout_s)


def _stop(client, metadata: dict, timeout_s: float, on_told: Callable[[], None] = lambda: None) -> bool:
    end = time.monotonic() + timeout_s
    running = [attempt.submission_id for attempt in _running(client, metadata)]
    for attempt in running:
        client.stop_job(attempt)
        on_told()
        while not client.get_job_status(attempt).is_terminal():
            if time.monotonic() > end:
                raise TimeoutError(f"job {attempt} was told to stop and still runs after {timeout_s:.0f} s; its log: `ray job logs {attempt}`")
            time.sleep(POLL_S)
    return bool(running)


def _attempts(client, metadata: dict) -> list:
    """Attempts at jobs of this description, ended ones as well."""
    return [attempt for attempt in client.list_jobs() if metadata.items() <= (attempt.metadata or {}).items()]


def _running(client, metadata: dict) -> list:
    return [attempt for attempt in _attempts(client, metadata) if not attempt.status.is_terminal()]


def _wait_for_others(client, spec: JobSpec, on_log: Callable[[str], None]) -> None:
    """A flow that was ended may have left a job behind, which goes on: two would share the cluster, and get half as far each."""
    told = -math.inf
    while spec.alone:
        others = {attempt.metadata["job"] for attempt in _running(client, {"alone": spec.alone})} - {spec.submission_id}
        if not others:
            return
        if time.monotonic() - told > 30:
            on_log(f"waiting: {', '.join(sorted(others))} still runs; `unimed train stop` ends it, and it can go on later")
            told = time.monotonic()
        time.sleep(POLL_S)


def _client():
    settings = get_settings()
    settings.export()
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(settings.ray_dashboard_url)
    except ConnectionError:
        raise ConnectionError(f"the Ray cluster at {settings.ray_dashboard_url} does not answer; start the stack with `unimed up`") from None


def _submit_or_attach(client, spec: JobSpec, owner: str) -> tuple[str, str]:
    """The submission id of the running or the new attempt, and how it was come by.

    Ray may still be writing the end of an attempt that was killed, so its id is not used again: the first
    attempt carries the step's own id, later ones a number behind it.
    """
    attempts = _attempts(client, {"job": spec.submission_id})
    for job in attempts:
        if not job.status.is_terminal():
            return job.submission_id, "attached"
    attempt = f"{spec.submission_id}-{len(attempts) + 1}" if attempts else spec.submission_id
    log_store().put_json(f"jobs/{spec.submission_id}/inputs.json", spec.all_inputs)
    try:
        client.submit_job(
            entrypoint=f"{shlex.quote(sys.executable)} -m {spec.module} --job {spec.submission_id}",
            submission_id=attempt,
            metadata={"step": spec.step, "job": spec.submission_id, "alone": spec.alone, "owner": owner},
        )
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise
        return attempt, "attached"
    return attempt, "ran"


def _follow(client, attempt: str, on_log: Callable[[str], None]) -> None:
    shown, lately = 0, deque(maxlen=TOGETHER)
    while True:
        ended = client.get_job_status(attempt).is_terminal()
        text = client.get_job_logs(attempt)
        complete = len(text) if ended else text.rfind("\n") + 1
        for line in readable(text[shown:complete], lately):
            on_log(line)
            lately.append(line)
        shown = max(shown, complete)
        if ended:
            return
        time.sleep(POLL_S)


def readable(log: str, before: Iterable[str] = ()) -> list[str]:
    """Lines of a job's log without colours, process prefixes, the framework's chatter and repetitions; `before` are those that were told last."""
    plain = (_REPEATED.sub("", _PREFIX.sub("", _COLOUR.sub("", line))).rstrip() for line in log.splitlines())
    lately, told = deque(before, TOGETHER), []
    for line in plain:
        if line and not _CHATTER.search(line) and line not in lately:
            lately.append(line)
            told.append(line)
    return told


def _collect(client, spec: JobSpec, attempt: str, on_log: Callable[[str], None]) -> dict:
    result = patiently(lambda: find_result(spec), OUTAGE_MINUTES, on_log)
    if result is not None:
        return result
    info = client.get_job_info(attempt)
    # A job that ends well without a result was given notice, and saved what it had.
    if str(info.status.value) in ("STOPPED", "SUCCEEDED"):
        raise JobCancelled(f"job {attempt} was stopped; run the command again to go on")
    tail = "\n".join(client.get_job_logs(attempt).splitlines()[-20:])
    raise JobFailed(attempt, info.message or str(info.status.value), tail)


def job_id() -> str | None:
    """The submission id inside a job, None where a step runs alone."""
    return os.environ.get(JOB_VARIABLE)


def entrypoint(step: Callable[[dict], dict], afterwards: Callable[[dict], object] = lambda result: None) -> None:
    """Command line of a `ray_jobs` module: `--job ID` inside the cluster, `--inputs FILE` alone.

    `afterwards` is given the result once it is recorded, and may delete what the step would have gone on from.
    """
    parser = argparse.ArgumentParser(description=sys.modules[step.__module__].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--job", help="submission id; inputs and result are kept on S3")
    source.add_argument("--inputs", type=Path, help="JSON file of inputs; the result is printed")
    arguments = parser.parse_args()
    try:
        _run(step, arguments.job, arguments.inputs, afterwards)
    except JobCancelled as notice:
        print(notice, flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what it has saved", flush=True)
    except (ValueError, OSError, MissingObject) as error:
        if arguments.job:
            raise
        # Whoever runs a step alone is told what is wrong with its inputs; a trace would hide it.
        parser.exit(1, f"{error}\n")


def _read(inputs: Path) -> dict:
    try:
        found = json.loads(inputs.read_bytes())
    except ValueError as error:
        raise ValueError(f"{inputs} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{inputs} holds no JSON object of inputs")
    return found


def _run(step: Callable[[dict], dict], job: str | None, inputs: Path | None, afterwards: Callable[[dict], object]) -> None:
    if inputs:
        # Inside the cluster they are there already.
        get_settings().export()
        result = step(_read(inputs))
        print(json.dumps(result, indent=1), flush=True)
    else:
        os.environ[JOB_VARIABLE] = job
        store, begun = log_store(), utc_now()
        result = step(patiently(lambda: store.get_json(f"jobs/{job}/inputs.json"), OUTAGE_MINUTES))
        record = {"result": result, "started_at": begun, "finished_at": utc_now()}
        with suppress(PreconditionFailed):
            patiently(lambda: store.put_json(f"jobs/{job}/result.json", record, if_absent=True), OUTAGE_MINUTES)
    patiently(lambda: afterwards(result), OUTAGE_MINUTES)
