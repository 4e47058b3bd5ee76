"""The tracker: used where it is asked for and installed, and never in the way."""

import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from ray_jobs import tracker
from ray_jobs.run_log import RunLog
from tests.ray_jobs.test_run_log import ABOUT, row

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra `mlflow`")


def test_nothing_is_imported_where_no_tracker_is_named(s3):
    code = "import sys; from ray_jobs import tracker; assert tracker.connect('run', {}) is None; tracker.tag_version('run', 'm-1'); print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_named_tracker_that_is_not_installed_is_told(monkeypatch, capsys):
    monkeypatch.setenv(tracker.VARIABLE, "http://127.0.0.1:5000")
    assert tracker.connect("run", {}) is None
    assert "pip install 'unimed-ops[mlflow]'" in capsys.readouterr().out


@needs_mlflow
def test_params_metrics_and_the_version_reach_mlflow(s3, monkeypatch, tmp_path):
    monkeypatch.setenv(tracker.VARIABLE, f"sqlite:///{tmp_path}/mlflow.db")
    for attempt in (1, 2):
        log = RunLog("foundation-tracked")
        log.begin(ABOUT)
        log.metrics(row(20 * attempt, ce=1 / attempt))
        log.scores(40, {"vqa/mini": 0.5})
        log.close()
    tracker.tag_version("foundation-tracked", "m-123")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name(tracker.EXPERIMENT).experiment_id])
    assert len(found) == 1, "a run that is started again goes on in the same one"
    run = found[0]
    assert run.data.params["stage.name"] == "foundation" and run.data.params["release"] == ABOUT["release"]
    assert run.data.tags[tracker.VERSION_TAG] == "m-123" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "ce")] == [(20, 1.0), (40, 0.5)]
    assert run.data.metrics["score/vqa/mini"] == 0.5 and "mfu" not in run.data.metrics


@needs_mlflow
@pytest.mark.parametrize("how, status", [("stopped", "KILLED"), ("diverged", "FAILED"), ("failed", "FAILED")])
def test_mlflow_knows_a_run_that_came_to_no_good_end(s3, monkeypatch, tmp_path, how, status):
    monkeypatch.setenv(tracker.VARIABLE, f"sqlite:///{tmp_path}/mlflow.db")
    log = RunLog(f"foundation-{how}")
    log.begin(ABOUT)
    log.metrics(row(20))
    log.close(how)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(tracker.EXPERIMENT).experiment_id])
    assert run.info.status == status


@needs_mlflow
def test_a_tracker_that_is_away_costs_a_line(s3, monkeypatch, capfd):
    monkeypatch.setenv(tracker.VARIABLE, "http://127.0.0.1:9")
    log = RunLog("foundation-untracked")
    begun = time.perf_counter()
    log.begin(ABOUT)
    for step in range(5):
        log.metrics(row(step))
    assert time.perf_counter() - begun < 1
    log.close()
    assert capfd.readouterr().out.count("does not take what this run tells it") == 1
