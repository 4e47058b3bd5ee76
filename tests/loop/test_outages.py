"""A stage that is disturbed: its worker, its job, its cluster are killed, the store goes away, its node is drained, somebody stops it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest
from ray.cluster_utils import Cluster

from infra.jobs import JobCancelled, JobFailed, JobSpec, run_job, stop_job
from infra.stack import BIN, RAY_CPUS
from infra.store import StoreUnavailable, log_store, model_store
from ray_jobs import runs
from ray_jobs.stage_checkpoints import checkpoints_prefix, committed

pytestmark = pytest.mark.slow
OUTAGE_S, DRAIN_S = 30, 20


@pytest.fixture(scope="module")
def foundation(first) -> str:
    """The job of the shared retraining's foundation stage."""
    return next(e.key.split("/")[1] for e in log_store().list("jobs/foundation") if e.key.endswith("result.json"))


@pytest.fixture(scope="module")
def inputs(foundation) -> dict:
    return log_store().get_json(f"jobs/{foundation}/inputs.json")


@pytest.fixture(scope="module")
def undisturbed(foundation) -> dict:
    """What the stage gave when nothing happened."""
    return log_store().get_json(f"jobs/{foundation}/result.json")["result"]


@pytest.fixture(autouse=True)
def mended(stack):
    """However a test ends, the next one finds the stack up."""
    yield
    stack.up()


class Running(threading.Thread):
    """The job in the background; `outcome` is its result or error."""

    def __init__(self, spec: JobSpec):
        super().__init__(daemon=True)
        self.spec, self.lines, self.outcome = spec, [], None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = run_job(self.spec, on_log=self.lines.append).result
        except Exception as error:
            self.outcome = error

    def until_committed(self, step: int) -> None:
        """Wait for a checkpoint of at least this step."""
        end = time.monotonic() + 120
        while time.monotonic() < end and self.is_alive():
            try:
                if newest(self.spec.submission_id) >= step:
                    return
            except StoreUnavailable:
                pass
            time.sleep(0.1)
        raise AssertionError(f"no checkpoint of step {step}: {self.outcome or self.lines[-5:]}")

    def until_told(self, words: str) -> None:
        """Wait for a line of the job."""
        end = time.monotonic() + 120
        while not any(words in line for line in self.lines):
            assert time.monotonic() < end and self.is_alive(), (words, self.outcome, self.lines[-5:])
            time.sleep(0.1)

    def ended(self):
        self.join(timeout=180)
        assert not self.is_alive(), self.lines[-10:]
        return self.outcome


def newest(run: str) -> int:
    return max((int(name.split("-")[0]) for name in committed(model_store(), checkpoints_prefix(run))), default=0)


def processes(words: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if words in " ".join(p.info["cmdline"] or [])]


def kill(members: list[psutil.Process]) -> None:
    for member in members:
        # Whoever has lost its parent may be gone by itself.
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=30)


def kill_tree(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        kill([*process.children(recursive=True), process])


@pytest.mark.timeout(900, func_only=True)
def test_killed_processes_and_a_silent_store_leave_no_trace_in_the_weights(inputs, undisturbed, stack):
    spec = JobSpec("storm", "ray_jobs.train", inputs)
    running = Running(spec)
    running.until_committed(10)
    assert (workers := processes("RayTrainWorker"))
    kill(workers[:1])
    running.until_committed(20)
    kill(processes("ray_jobs.train --job storm"))
    assert isinstance(running.ended(), JobFailed), "the killed job is told; the same command goes on"

    running = Running(spec)
    running.until_committed(30)
    kill_tree(stack._process("s3"))
    time.sleep(OUTAGE_S)
    stack.up(services=["s3"])
    result = running.ended()
    assert not isinstance(result, Exception), result
    assert (result["content_hash"], result["history"]) == (undisturbed["content_hash"], undisturbed["history"])
    assert not list(model_store().list(f"runs/{spec.submission_id}")), "checkpoints of a published stage are gone"


@pytest.mark.timeout(900, func_only=True)
def test_a_store_that_is_away_as_a_stage_begins_is_waited_for(inputs, undisturbed, stack):
    running = Running(JobSpec("early", "ray_jobs.train", inputs))
    while not processes("TrainController"):
        assert running.is_alive(), running.outcome
        time.sleep(0.05)
    kill_tree(stack._process("s3"))
    time.sleep(OUTAGE_S)
    stack.up(services=["s3"])
    result = running.ended()
    assert not isinstance(result, Exception), result
    assert (result["content_hash"], result["history"]) == (undisturbed["content_hash"], undisturbed["history"])


@pytest.mark.timeout(900, func_only=True)
def test_a_worker_that_is_told_to_end_is_started_again(inputs, undisturbed):
    spec = JobSpec("ended-worker", "ray_jobs.train", inputs)
    running = Running(spec)
    running.until_committed(10)
    before = processes("RayTrainWorker")
    before[0].terminate()
    assert before[0] in psutil.wait_procs(before[:1], timeout=30)[0]
    result = running.ended()
    assert not isinstance(result, Exception), result
    assert (result["content_hash"], result["history"]) == (undisturbed["content_hash"], undisturbed["history"])
    assert any(event["kind"] == "resumed" for event in runs.read(spec.submission_id).events)


@pytest.mark.timeout(900, func_only=True)
def test_a_run_that_was_stopped_and_lost_its_cluster_ends_with_the_same_weights(inputs, undisturbed, stack):
    spec = JobSpec("told", "ray_jobs.train", inputs)
    running = Running(spec)
    running.until_committed(10)
    assert stop_job(spec.submission_id)
    assert isinstance(running.ended(), JobCancelled)
    left = newest(spec.submission_id)
    assert any(f"stopped at step {left} and saved it" in line for line in running.lines), running.lines[-5:]

    running = Running(spec)
    running.until_committed(left + 1)
    kill_tree(stack._process("ray"))
    assert isinstance(running.ended(), Exception)
    stack.up()
    result = run_job(spec, on_log=lambda line: None).result
    assert (result["content_hash"], result["history"]) == (undisturbed["content_hash"], undisturbed["history"])


def _ray(stack, *words: str) -> str:
    return subprocess.run([BIN / "ray", *words], env=stack._environment(), capture_output=True, text=True, check=True, timeout=60).stdout


class Node:
    """One more node of the stack's cluster, on this machine; two workers have room on it."""

    def __init__(self, stack):
        self.stack = stack
        before = self._all()
        limits = ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
        command = [BIN / "ray", "start", f"--address={stack.settings.ray_address}", "--node-ip-address=127.0.0.1", "--block", *limits]
        environment = stack._environment() | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)}
        self.process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while self._all() <= before:
            assert time.monotonic() < end, "the node did not come up"

    def _all(self) -> set[str]:
        nodes = json.loads(_ray(self.stack, "list", "nodes", "--format=json", "--filter=state=ALIVE", f"--address={self.stack.settings.ray_dashboard_url}"))
        return {node["node_id"] for node in nodes}


@pytest.fixture
def full(stack):
    """The stack's own node has no room for a stage."""
    hold = _ray(stack, "job", "submit", "--no-wait", "--submission-id=hold", f"--entrypoint-num-cpus={RAY_CPUS - 1}", f"--address={stack.settings.ray_dashboard_url}", "--", "sleep", "600")
    yield hold
    _ray(stack, "job", "stop", f"--address={stack.settings.ray_dashboard_url}", "hold")


@pytest.mark.timeout(600, func_only=True)
def test_a_node_that_is_told_to_end_costs_no_saved_step(inputs, stack, full):
    changed = {"stage": inputs["stage"] | {"steps": 200, "evaluate_every": None}, "training": inputs["training"] | {"checkpoint_every": 10_000, "log_every": 5}}
    spec, undisturbed = JobSpec("drained", "ray_jobs.train", inputs | changed), JobSpec("undrained", "ray_jobs.train", inputs | changed)
    nodes = []
    try:
        nodes.append(Node(stack))
        running = Running(spec)
        running.until_told("step 5/200")
        nodes.append(Node(stack))
        # As Kubernetes does with a pod that it evicts: Ray drains the node, and then ends it.
        nodes[0].process.terminate()
        running.until_committed(1)
        saved = newest(spec.submission_id)
        result = running.ended()
        assert not isinstance(result, Exception), result
        assert [event["step"] for event in runs.read(result["run"]).events if event["kind"] == "resumed"] == [saved]
        expected = run_job(undisturbed, on_log=lambda line: None).result
        assert (result["steps"], result["content_hash"], result["history"]) == (200, expected["content_hash"], expected["history"])
    finally:
        for node in nodes:
            kill_tree(node.process)


@pytest.fixture
def two_nodes(stack, monkeypatch):
    """A cluster whose head takes no workers, and two nodes with room for one each; of a node that is silent it knows in seconds."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    limits = {"num_gpus": 0, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **limits})
    left = cluster.head_node.get_session_dir_path()
    yield cluster, [cluster.add_node(num_cpus=1, **limits) for _ in range(2)]
    cluster.shutdown()
    shutil.rmtree(left)


@pytest.mark.timeout(600, func_only=True)
def test_a_node_that_is_lost_costs_an_elastic_run_a_worker_and_no_sample(foundation, inputs, two_nodes, tmp_path):
    """It counts as there for a while after it has died."""
    cluster, nodes = two_nodes
    run = f"{inputs['stage']['name']}-alone"
    (tmp_path / "stage.json").write_text(json.dumps(inputs | {"training": inputs["training"] | {"workers": 2, "min_workers": 1}}))
    command = [sys.executable, "-m", "ray_jobs.train", "--inputs", str(tmp_path / "stage.json")]
    with subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}, stdout=subprocess.DEVNULL) as running:
        try:
            while newest(run) < 10:
                assert running.poll() is None
                time.sleep(0.1)
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert running.wait(timeout=240) == 0
        finally:
            running.kill()
    assert [(event["kind"], event["detail"]) for event in runs.read(run).events] == [("resumed", "on 1 workers")]
    steps = range(1, inputs["stage"]["steps"] + 1)
    assert [order(run, step) for step in steps] == [order(foundation, step) for step in steps]


def order(run: str, step: int) -> list[tuple]:
    """What a step was made of, whoever read it."""
    return [(sample["stream"], sample["position"], sample["sample"]) for sample in runs.samples_of(run, step)]
