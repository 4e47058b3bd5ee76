"""A stage that is disturbed: its worker, its job, its cluster are killed, the store goes away, its node is drained, somebody stops it."""

import json
import subprocess
import threading
import time
from contextlib import suppress

import psutil
import pytest

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
        prefix, end = checkpoints_prefix(self.spec.submission_id), time.monotonic() + 120
        while time.monotonic() < end and self.is_alive():
            try:
                if any(int(name.split("-")[0]) >= step for name in committed(model_store(), prefix)):
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


def newest(spec: JobSpec) -> int:
    return max(int(name.split("-")[0]) for name in committed(model_store(), checkpoints_prefix(spec.submission_id)))


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
    left = newest(spec)
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
        self.process = psutil.Popen(command, env=stack._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (new := self._all() - before):
            assert time.monotonic() < end, "the node did not come up"
        (self.id,) = new

    def drain(self, seconds: int) -> None:
        """What a cloud does before it takes a node back."""
        about = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        _ray(self.stack, "drain-node", f"--node-id={self.id}", f"--address={self.stack.settings.ray_address}", *about)

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
def test_a_drained_node_costs_no_saved_step(inputs, stack, full):
    changed = {"stage": inputs["stage"] | {"steps": 200, "evaluate_every": None}, "training": inputs["training"] | {"checkpoint_every": 10_000, "log_every": 5}}
    spec = JobSpec("drained", "ray_jobs.train", inputs | changed)
    nodes = []
    try:
        nodes.append(Node(stack))
        running = Running(spec)
        running.until_told("step 5/200")
        nodes.append(Node(stack))
        nodes[0].drain(DRAIN_S)
        deadline = time.monotonic() + DRAIN_S
        running.until_committed(1)
        saved = newest(spec)
        time.sleep(max(0.0, deadline - time.monotonic()))
        kill_tree(nodes[0].process)
        result = running.ended()
        assert not isinstance(result, Exception), result
        assert result["steps"] == 200
        assert [event["step"] for event in runs.read(result["run"]).events if event["kind"] == "resumed"] == [saved]
    finally:
        for node in nodes:
            kill_tree(node.process)
