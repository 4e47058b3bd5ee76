"""What a run tells of itself: written behind the training's back, read with each step once."""

import subprocess
import sys
import time

import pytest

from infra.store import CorruptObject
from ray_jobs import run_log, runs
from ray_jobs.run_log import RunLog, next_stamp
from tests.ray_jobs.outage import Wire

ABOUT = {"stage": {"name": "foundation", "steps": 60}, "training": {"workers": 2}, "release": "corpus/2026-11-24.1", "start": {}, "seed": 3, "workers": 2}


def row(step: int, ce: float = 1.0, **more) -> dict:
    return {"step": step, "ce": ce, "mse": 0.5, "lr": 1e-3, "mfu": None, "seconds": step / 10} | more


def keys(step: int, streams=(0, 1), prefix: str = "mini/") -> list[dict]:
    return [{"step": step, "stream": stream, "position": 2 * step + i, "sample": f"{prefix}{stream}-{2 * step + i}"} for stream in streams for i in range(2)]


def test_a_run_is_read_as_it_was_told(s3):
    log = RunLog("foundation-told")
    log.begin(ABOUT)
    for step in (20, 40):
        log.metrics(row(step, ce=1 / step))
    log.event(30, "skipped-sample", "mini/7: not a picture")
    log.scores(40, {"vqa/mini": 0.25, "vqa/other": 0.5})
    log.picture(40, "drawings", b"png")
    log.close()
    found = runs.read("foundation-told")
    assert found.about["release"] == ABOUT["release"] and found.about["attempts"][0]["workers"] == 2
    assert found.metrics["step"].tolist() == [20, 40] and found.metrics["ce"].tolist() == [1 / 20, 1 / 40]
    assert found.metrics["mfu"].isna().all() and found.metrics["at"].str.startswith("20").all()
    assert [(e["step"], e["kind"], e["detail"]) for e in found.events] == [(30, "skipped-sample", "mini/7: not a picture")]
    assert [(s["step"], s["scores"]) for s in found.scores] == [(40, {"vqa/mini": 0.25, "vqa/other": 0.5})]
    assert found.pictures == ["training/foundation-told/pictures/000000040-drawings.png"]


def test_a_step_done_again_counts_once_and_a_step_undone_not_at_all(s3):
    """Killed at 50, started again from the checkpoint at 20: what the second attempt says is what happened."""
    first = RunLog("foundation-again")
    first.begin(ABOUT)
    for step in (10, 20, 30, 40, 50):
        first.metrics(row(step, ce=1.0))
        first.scores(step, {"vqa": 1.0})
    first.event(50, "stopped", "told to")
    first.close()
    second = RunLog("foundation-again")
    second.begin(ABOUT | {"workers": 1})
    second.event(20, "resumed", "from step 20")
    for step in (30, 40):
        second.metrics(row(step, ce=2.0))
        second.scores(step, {"vqa": 2.0})
    second.close()
    found = runs.read("foundation-again")
    assert found.metrics[["step", "ce"]].values.tolist() == [[10, 1.0], [20, 1.0], [30, 2.0], [40, 2.0]]
    assert [(s["step"], s["scores"]["vqa"]) for s in found.scores] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert [e["kind"] for e in found.events] == ["stopped", "resumed"]
    assert [attempt["workers"] for attempt in found.about["attempts"]] == [2, 1]
    assert found.about["begun_at"] == found.about["attempts"][0]["begun_at"]


def test_a_clock_that_was_set_back_undoes_nothing(s3, monkeypatch):
    """The machine of the second start is an hour behind that of the first; within the second the clock goes back once more."""
    first = RunLog("foundation-clock")
    first.begin(ABOUT)
    for step in (10, 20, 30):
        first.samples(0, keys(step, prefix="old/"))
        first.metrics(row(step))
    first.close()
    real = time.time_ns
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
        second = RunLog("foundation-clock", since=next_stamp("foundation-clock"))
        second.event(20, "resumed", "on 2 workers")
        for step in (30, 40):
            second.samples(0, keys(step, prefix="new/"))
            second.metrics(row(step, ce=2.0))
            patched.setattr(time, "time_ns", lambda: real() - 7200 * 10**9)
        second.close()
    found = runs.read("foundation-clock")
    assert found.metrics[["step", "ce"]].values.tolist() == [[10, 1.0], [20, 1.0], [30, 2.0], [40, 2.0]]
    assert [runs.samples_of("foundation-clock", step)[0]["sample"].split("/")[0] for step in (20, 30, 40)] == ["old", "new", "new"]


def test_a_line_that_was_undone_does_not_count_where_lines_come_at_other_steps(s3):
    """Killed at 12 and gone on from 10 with fewer log lines: 12 is never told of again."""
    first = RunLog("foundation-sparse")
    first.begin(ABOUT)
    for step in (8, 10, 12):
        first.metrics(row(step))
    first.close()
    second = RunLog("foundation-sparse")
    second.begin(ABOUT)
    second.event(10, "resumed", "on 2 workers")
    second.flush(10)
    assert runs.read("foundation-sparse").metrics["step"].tolist() == [8, 10]
    second.metrics(row(15))
    second.close()
    assert runs.read("foundation-sparse").metrics["step"].tolist() == [8, 10, 15]


def test_a_run_that_went_back_is_listed_with_the_step_that_it_went_back_to(s3):
    """Until it has told of further steps; here nothing is left of the furthest window of steps."""
    log = RunLog("foundation-listed")
    log.begin(ABOUT)
    for step in (9_980, 9_990, 10_010):
        log.metrics(row(step))
    log.event(9_985, "rolled-back", "from step 10015 to 9985")
    log.close()
    assert next(run for run in runs.every() if run["run"] == "foundation-listed")["last"]["step"] == 9_980


def test_a_roll_back_within_an_attempt_supersedes_as_well(s3):
    log = RunLog("foundation-back")
    log.begin(ABOUT)
    for step, ce in ((10, 1.0), (20, 99.0), (30, 99.0), (20, 2.0)):
        log.metrics(row(step, ce))
    log.close()
    assert runs.read("foundation-back").metrics[["step", "ce"]].values.tolist() == [[10, 1.0], [20, 2.0]]


def test_a_step_done_again_in_one_call_is_made_of_its_new_samples(s3):
    log = RunLog("foundation-once")
    log.begin(ABOUT)
    log.samples(0, [*keys(1), *keys(2, prefix="bad/"), *keys(3, prefix="bad/"), *keys(2, prefix="new/")])
    log.close()
    assert {s["sample"].split("/")[0] for s in runs.samples_of("foundation-once", 2)} == {"new"} and len(runs.samples_of("foundation-once", 2)) == 4
    assert len(runs.samples_of("foundation-once", 1)) == 4


def test_samples_of_a_step_come_from_all_ranks_and_the_latest_attempt(s3):
    """Two workers are followed by one: the streams are the same, who reads them is not."""
    for rank in (0, 1):
        log = RunLog("foundation-which")
        log.begin(ABOUT)
        for step in (499, 500, 501):
            log.samples(rank, keys(step, [rank], "old/"))
        log.close()
    log = RunLog("foundation-which")
    log.samples(0, keys(500, prefix="new/"))
    log.close()
    assert [s["sample"] for s in runs.samples_of("foundation-which", 500)] == ["new/0-1000", "new/0-1001", "new/1-1000", "new/1-1001"]
    found = runs.samples_of("foundation-which", 499)
    assert [(s["rank"], s["stream"], s["position"], s["sample"]) for s in found] == [(0, 0, 998, "old/0-998"), (0, 0, 999, "old/0-999"), (1, 1, 998, "old/1-998"), (1, 1, 999, "old/1-999")]
    with pytest.raises(LookupError, match="no sample of step 502"):
        runs.samples_of("foundation-which", 502)


def test_a_run_that_began_anew_has_undone_all_it_did(s3):
    """There was no checkpoint yet, so no event tells it: its log lines do."""
    for prefix, steps in (("old/", (20, 40)), ("new/", (20,))):
        log = RunLog("foundation-anew")
        log.begin(ABOUT)
        for step in steps:
            log.samples(0, keys(step - 10, prefix=prefix) + keys(step, prefix=prefix))
            log.metrics(row(step))
        log.close()
    assert {s["sample"].split("/")[0] for step in (10, 20) for s in runs.samples_of("foundation-anew", step)} == {"new"}
    with pytest.raises(LookupError, match="has undone step 30, .*it has reached step 20 of 60"):
        runs.samples_of("foundation-anew", 30)


def test_parts_stay_few_however_long_it_takes(s3, monkeypatch):
    monkeypatch.setattr(run_log, "OTHERS_EVERY_S", 0.0)
    monkeypatch.setattr(run_log, "SAMPLES_EVERY_S", 0.0)
    log = RunLog("foundation-few")
    for step in range(600):
        log.samples(0, keys(step))
        log.metrics(row(step))
        if step % 100 == 0:
            log.flush(10)
    log.close()
    parts = [entry.key for entry in log.store.list("training/foundation-few/")]
    assert sum("/samples/" in key for key in parts) == 2 and sum("/metrics/" in key for key in parts) == 1


def test_what_was_flushed_survives_a_sigkill(s3):
    """The samples of steps before a checkpoint are known even if nothing of the process is left."""
    code = (
        "import os, signal; from ray_jobs.run_log import RunLog; log = RunLog('foundation-killed')\n"
        "log.begin({'stage': {'name': 'foundation', 'steps': 9}}); log.samples(0, [{'step': 1, 'stream': 0, 'position': 0, 'sample': 'a'}])\n"
        "assert log.flush(60); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert [s["sample"] for s in runs.samples_of("foundation-killed", 1)] == ["a"]


def test_a_silent_store_loses_nothing_and_stalls_nobody(s3):
    wire = Wire(s3)
    log = RunLog("foundation-silent", wire.store())
    log.begin(ABOUT)
    log.metrics(row(1))
    assert log.flush(10)
    wire.cut()
    slowest = 0.0
    for step in range(2, 42):
        begun = time.perf_counter()
        log.metrics(row(step))
        log.samples(0, keys(step))
        slowest = max(slowest, time.perf_counter() - begun)
        time.sleep(0.1)
    log.picture(41, "drawings", b"png")
    assert not log.flush(within_s=0.5)
    wire.mend()
    log.close()
    wire.cut()
    assert slowest < 0.05
    found = runs.read("foundation-silent")
    assert found.metrics["step"].tolist() == list(range(1, 42)) and found.pictures
    assert all(runs.samples_of("foundation-silent", step) for step in range(2, 42))


def test_a_store_that_stays_away_is_told_after_a_bounded_wait(s3, capsys):
    wire = Wire(s3)
    log = RunLog("foundation-away", wire.store(), capacity=5)
    wire.cut()
    log.begin(ABOUT)
    for step in range(200):
        log.metrics(row(step))
    begun = time.perf_counter()
    log.close(within_s=1)
    assert time.perf_counter() - begun < 4
    told = capsys.readouterr().out
    assert "an entry is lost" in told and "entries lost and" in told and "not written" in told


def test_an_entry_that_cannot_be_kept_costs_no_other(s3, capsys):
    log = RunLog("foundation-odd")
    log.begin(ABOUT)
    log.samples(0, [{"step": 1, "stream": 0, "position": 0, "sample": "a"}])
    log.samples(0, [{"step": 2, "stream": 0, "position": "second", "sample": "b"}])
    log.samples(0, [{"step": 3, "stream": 0, "position": 4, "sample": "c"}])
    log.metrics({"ce": 1.0})
    log.metrics(row(3, ce="much"))
    log.event(3, "checkpoint-failed", "no room for /scratch/\udcff")
    assert log.flush(10)
    log.close()
    assert log.lost == 4 and "4 entries lost" in capsys.readouterr().out
    assert [runs.samples_of("foundation-odd", step)[0]["sample"] for step in (1, 3)] == ["a", "c"]


@pytest.mark.parametrize("name, content", [("run.json", b"{"), ("run.json", b"{}"), ("run.json", b"[]"), ("metrics/000000000-000009999/1-ab.parquet", b"PAR1")])
def test_a_damaged_run_hides_no_other(s3, name, content):
    for run in ("foundation-hurt", "foundation-whole"):
        log = RunLog(run)
        log.begin(ABOUT)
        log.close()
    log.store.put(f"training/foundation-hurt/{name}", content)
    listed = {run["run"]: run["damaged"] for run in runs.every()}
    log.store.delete_dir("training/foundation-hurt/")
    assert listed["foundation-whole"] is None and listed["foundation-hurt"]


@pytest.mark.parametrize("hurt", [slice(10, -300), slice(-60, -8)], ids=["middle", "footer"])
def test_damage_within_a_part_hides_no_other_and_is_named(s3, hurt):
    for run in ("foundation-flipped", "foundation-sound"):
        log = RunLog(run)
        log.begin(ABOUT)
        for step in range(50):
            log.metrics(row(step))
        log.samples(0, keys(1))
        log.close()
    for table in ("metrics", "samples"):
        (part,) = log.store.list(f"training/foundation-flipped/{table}/")
        data = bytearray(log.store.get(part.key))
        data[hurt] = b"\xaa" * len(data[hurt])
        log.store.put(part.key, bytes(data))
    listed = {run["run"]: run["damaged"] for run in runs.every()}
    try:
        for reading in (lambda: runs.read("foundation-flipped"), lambda: runs.samples_of("foundation-flipped", 1)):
            with pytest.raises(CorruptObject, match="training/foundation-flipped"):
                reading()
    finally:
        log.store.delete_dir("training/foundation-flipped/")
    assert listed["foundation-sound"] is None and "metrics" in listed["foundation-flipped"]


def test_a_damaged_beginning_holds_nothing_up(s3):
    log = RunLog("foundation-begun")
    log.store.put("training/foundation-begun/run.json", b"{")
    log.begin(ABOUT)
    log.metrics(row(1))
    assert log.flush(10)
    log.close()
    found = runs.read("foundation-begun")
    assert len(found.about["attempts"]) == 1 and found.metrics["step"].tolist() == [1]


def test_runs_are_found_by_name_beginning_or_stage(s3):
    for run, stage in (("unified-aaa1", "unified"), ("unified-aab2", "unified"), ("instruction-ccc3", "instruction")):
        log = RunLog(run)
        log.begin(ABOUT | {"stage": {"name": stage, "steps": 60}})
        log.metrics(row(20))
        log.close()
    assert [runs.find(name) for name in ("unified-aab2", "unified-aaa", "unified", "inst")] == ["unified-aab2", "unified-aaa1", "unified-aab2", "instruction-ccc3"]
    with pytest.raises(LookupError, match="unified-aaa1, unified-aab2"):
        runs.find("unified-aa")
    with pytest.raises(LookupError, match="unimed train list"):
        runs.find("nothing")
    with pytest.raises(LookupError, match="no training run ''"):
        runs.find("")
    listed = {run["run"]: run for run in runs.every()}
    assert listed["unified-aaa1"]["last"]["step"] == 20 and listed["unified-aaa1"]["steps"] == 60 and "mfu" not in listed["unified-aaa1"]["last"]
