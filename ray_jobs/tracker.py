"""MLflow beside the run log, for people who have one: used where MLFLOW_TRACKING_URI is set, never needed.

An MLflow run carries the tag `unimed.run`; a run that is started again goes on in the same one. Nothing that
MLflow does or fails to do reaches the training: a thread talks to it, and trouble is told once.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

VARIABLE, EXPERIMENT, RUN_TAG, VERSION_TAG = "MLFLOW_TRACKING_URI", "unimed", "unimed.run", "unimed.model_version"
# Its own defaults are seven tries of two minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
PARAM_LENGTH, CAPACITY = 500, 5_000
# MLflow's word for how a run ended.
STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


class Tracker:
    """One run in MLflow."""

    def __init__(self, run: str, about: dict):
        self.run = run
        self._told, self._status = False, "FAILED"
        self._calls: queue.Queue[Callable | None] = queue.Queue(CAPACITY)
        self._thread = threading.Thread(target=self._work, args=(about,), daemon=True, name="mlflow")
        self._thread.start()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        self._offer(lambda client, run_id: _log_metrics(client, run_id, step, known))

    def close(self, how: str, within_s: float = 10) -> None:
        """The run has "finished", was "stopped", or came to no good end."""
        self._status = STATUS.get(how, "FAILED")
        self._offer(None)
        self._thread.join(within_s)

    def _offer(self, call: Callable | None) -> None:
        with suppress(queue.Full):
            self._calls.put_nowait(call)

    def _work(self, about: dict) -> None:
        client = run_id = None
        while call := self._calls.get():
            try:
                if run_id is None:
                    client = _client()
                    run_id = _find(client, self.run) or _create(client, self.run, about)
                    client.update_run(run_id, status="RUNNING")
                call(client, run_id)
            except Exception as error:
                self._tell(error)
        if run_id:
            with suppress(Exception):
                client.set_terminated(run_id, self._status)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            print(f"MLflow at {os.environ.get(VARIABLE)} does not take what this run tells it ({type(error).__name__}: {error}); training goes on without", flush=True)
        self._told = True


def connect(run: str, about: dict) -> Tracker | None:
    """A tracker where the environment names one and its package is there."""
    return Tracker(run, about) if wanted() else None


def wanted() -> bool:
    """Whether MLflow is asked for and installed; says how to mend it where it is only asked for."""
    if not os.environ.get(VARIABLE):
        return False
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        print(f"{VARIABLE} is set, but MLflow is not installed: `pip install 'unimed-ops[mlflow]'` where training runs, or unset it", flush=True)
        return False
    return True


def tag_version(run: str, version: str) -> None:
    """Tell MLflow which model version a run's weights became; does nothing where it is not used or does not answer."""
    if not wanted():
        return
    try:
        client = _client()
        if run_id := _find(client, run):
            client.set_tag(run_id, VERSION_TAG, version)
    except Exception as error:
        print(f"MLflow was not told that {run} became {version} ({type(error).__name__}: {error})", flush=True)


def _client():
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ[VARIABLE])


def _find(client, run: str) -> str | None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run}'", max_results=1) if experiment else []
    return found[0].info.run_id if found else None


def _create(client, run: str, about: dict) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run_id = client.create_run(experiment_id, run_name=run, tags={RUN_TAG: run}).info.run_id
    for name, value in _flat(about).items():
        client.log_param(run_id, name, str(value)[:PARAM_LENGTH])
    return run_id


def _log_metrics(client, run_id: str, step: int, values: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


def _flat(about: dict, prefix: str = "") -> dict[str, object]:
    """{"stage": {"steps": 3}} as {"stage.steps": 3}: MLflow's parameters are flat."""
    flat: dict[str, object] = {}
    for name, value in about.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat
