"""Jobs on a real Ray cluster: named by their inputs, run once, taken up again after a kill."""

import threading
import time

import psutil
import pytest

from infra.jobs import JobFailed, JobSpec, run_job

MODULE = "tests.infra.sleepy_job"


def starts(trace) -> int:
    return len(trace.read_text().splitlines()) if trace.exists() else 0


def test_a_job_runs_once_and_its_result_stays(stack, tmp_path):
    spec = JobSpec("sleepy", MODULE, {"trace": str(tmp_path / "t"), "seconds": 2})
    outcomes = []
    both = [threading.Thread(target=lambda: outcomes.append(run_job(spec, on_log=lambda line: None))) for _ in range(2)]
    both[0].start()
    time.sleep(1.5)
    both[1].start()
    [thread.join() for thread in both]
    assert sorted(o.how for o in outcomes) == ["attached", "ran"]
    assert run_job(spec).how == "up to date" and starts(tmp_path / "t") == 1


def test_a_killed_job_is_started_again_by_the_same_call(stack, tmp_path):
    spec = JobSpec("sleepy", MODULE, {"trace": str(tmp_path / "t"), "seconds": 5})
    failures = []

    def first():
        try:
            run_job(spec, on_log=lambda line: None)
        except JobFailed as error:
            failures.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while not starts(tmp_path / "t"):
        time.sleep(0.1)
    for process in psutil.process_iter(["cmdline"]):
        if spec.submission_id in " ".join(process.info["cmdline"] or []) and MODULE in process.info["cmdline"]:
            process.kill()
    thread.join(timeout=60)
    assert len(failures) == 1
    assert run_job(spec, on_log=lambda line: None).result == {"starts": 2}


def test_a_failure_carries_the_end_of_the_log(stack, tmp_path):
    with pytest.raises(JobFailed, match="told to fail"):
        run_job(JobSpec("sleepy", MODULE, {"trace": str(tmp_path / "t"), "seconds": 0, "fail": True}), on_log=lambda line: None)
