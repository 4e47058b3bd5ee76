"""Jobs on a real Ray cluster: named by their inputs, run once, taken up again after a kill."""

import threading
import time

import psutil
import pytest

from infra import jobs, outage
from infra.jobs import JobCancelled, JobFailed, JobSpec, find_result, readable, run_job, stop_jobs_of
from infra.store import ObjectStore, StoreUnavailable, log_store

MODULE = "tests.infra.sleepy_job"


def starts(trace) -> int:
    return len(trace.read_text().splitlines()) if trace.exists() else 0


def test_lines_of_other_nodes_are_read_as_those_of_the_jobs_own():
    """Ray names the node of whoever printed a line, unless it is the one that the job's process is on."""
    who = "\x1b[36m(RayTrainWorker pid=812{})\x1b[0m "
    log = who.format("") + "- (ip=10.0.0.2, pid=812) world_rank=0\n" + who.format("") + "one step 20/40 ce 1.5\n" + who.format(", ip=10.0.0.2") + "one step 40/40 ce 1.2\n"
    assert readable(log) == ["one step 20/40 ce 1.5", "one step 40/40 ce 1.2"]


def test_lines_that_are_printed_twice_are_told_once_wherever_the_log_is_cut():
    """One, and two of the same moment."""
    once = ["one step 20/40 ce 1.5", "one step 20: validation loss 2.5", "one step 40/40 ce 1.2"]
    lines = [*once[:2], "- (ip=10.0.0.2, pid=812) world_rank=0", "", *once[:2], once[2], once[2]]
    for cut in range(len(lines) + 1):
        first = readable("\n".join(lines[:cut]))
        assert first + readable("\n".join(lines[cut:]), first) == once


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
    log_store().put(f"jobs/{spec.submission_id}/result.json", b"{")
    assert run_job(spec, on_log=lambda line: None).how == "ran" and starts(tmp_path / "t") == 2


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


def test_of_jobs_that_run_alone_one_waits_for_the_other(stack, tmp_path):
    first = JobSpec("sleepy", MODULE, {"trace": str(tmp_path / "first"), "seconds": 4}, alone="training")
    second = JobSpec("sleepy", MODULE, {"trace": str(tmp_path / "second"), "seconds": 0}, alone="training")
    ended = []
    thread = threading.Thread(target=lambda: (run_job(first, on_log=lambda line: None), ended.append("first")))
    thread.start()
    while not starts(tmp_path / "first"):
        time.sleep(0.1)
    lines = []
    run_job(second, on_log=lines.append)
    thread.join()
    assert any(line.startswith("waiting") and first.submission_id in line for line in lines)
    assert (tmp_path / "second").stat().st_mtime > (tmp_path / "first").stat().st_mtime + 4


def test_how_a_job_runs_is_no_part_of_its_name_and_its_owner_may_stop_it(stack, tmp_path):
    inputs = {"trace": str(tmp_path / "t"), "seconds": 60, "how": {"a": 1}}
    spec = JobSpec("sleepy", MODULE, inputs, running={"how": {"workers": 4}})
    assert spec.submission_id == JobSpec("sleepy", MODULE, inputs).submission_id
    told = []

    def run():
        try:
            run_job(spec, on_log=lambda line: None, owner="somebody")
        except JobCancelled as error:
            told.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not starts(tmp_path / "t"):
        time.sleep(0.1)
    assert log_store().get_json(f"jobs/{spec.submission_id}/inputs.json")["how"] == {"a": 1, "workers": 4}
    assert not stop_jobs_of("nobody") and stop_jobs_of("somebody")
    thread.join(timeout=30)
    assert told and "go on" in told[0]


def test_what_a_step_would_go_on_from_stays_until_its_result_is_recorded(s3, monkeypatch):
    """A store that is silent for a moment is waited for; one that stays silent leaves everything for the next attempt."""
    spec, there, answers = JobSpec("kept", MODULE, {}), [], []
    log_store().put_json(f"jobs/{spec.submission_id}/inputs.json", spec.inputs)
    monkeypatch.setenv(jobs.JOB_VARIABLE, "")
    monkeypatch.setattr(outage, "PAUSE_S", 0.01)
    put = ObjectStore.put_json

    def silent(self, key, obj, **condition):
        if answers and not answers.pop():
            raise StoreUnavailable("the object store does not answer")
        return put(self, key, obj, **condition)

    monkeypatch.setattr(ObjectStore, "put_json", silent)

    def run():
        jobs._run(lambda inputs: {"made": 1}, spec.submission_id, None, lambda result: there.append((result, find_result(spec))))

    answers[:] = [False] * 100
    monkeypatch.setattr(jobs, "OUTAGE_MINUTES", 0.001)
    with pytest.raises(StoreUnavailable):
        run()
    assert not there and find_result(spec) is None
    answers[:] = [True, False, False]
    run()
    assert there == [({"made": 1}, {"made": 1})]


def test_the_result_of_a_job_that_has_ended_is_waited_for(s3, monkeypatch):
    """What took days is not told as failed because the store is silent when the job ends."""
    spec, asked = JobSpec("ended", MODULE, {}), []
    log_store().put_json(f"jobs/{spec.submission_id}/result.json", {"result": {"made": 1}})
    monkeypatch.setattr(outage, "PAUSE_S", 0.01)
    get = ObjectStore.get_json

    def silent(self, key, fields=()):
        asked.append(key)
        if len(asked) < 3:
            raise StoreUnavailable("the object store does not answer")
        return get(self, key, fields)

    monkeypatch.setattr(ObjectStore, "get_json", silent)
    assert jobs._collect(None, spec, spec.submission_id, print) == {"made": 1} and len(asked) == 3
