"""`unimed train`, as a user runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import takewhile

import pytest
from PIL import Image

from infra.jobs import JobCancelled, JobSpec, run_job
from infra.registry import content_hash
from infra.store import corpus_store, model_store
from model.testing import make_tiny
from ray_jobs.checkpoints import publish_folder
from ray_jobs.place import alone
from ray_jobs.run_log import RunLog
from ray_jobs.stage_checkpoints import checkpoints_prefix, committed
from ray_jobs.stage_export import export_average
from ray_jobs.train import work_on
from tests.ray_jobs.made_release import publish, sample
from tests.ray_jobs.test_run_log import ABOUT, keys, row
from tests.ray_jobs.training_runs import STAGE, NoticeAt


@pytest.fixture(scope="module")
def told(stack):
    """Two runs of a stage of their own."""
    for run, ce in (("seen-aaa1", 2.0), ("seen-bbb2", 1.0)):
        log = RunLog(run)
        log.begin(ABOUT | {"stage": {"name": "seen", "steps": 40}})
        log.event(20, "rolled-back", "three bad steps in a row")
        for step in (20, 40):
            log.metrics(row(step, ce=ce, real_share=0.975))
            log.samples(0, keys(step))
        log.scores(40, {"vqa/mini": 0.25})
        log.picture(40, "drawings", b"png")
        log.close()


def unimed(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows.cli", "train", *arguments], capture_output=True, text=True, timeout=120)


def test_runs_are_listed(told):
    listed = [run for run in json.loads(unimed("list", "--json").stdout) if run["stage"] == "seen"]
    assert [(run["run"], run["last"]["step"], run["attempts"]) for run in listed] == [("seen-aaa1", 40, 1), ("seen-bbb2", 40, 1)]


def test_a_run_that_does_not_run_needs_no_stop(told):
    done = unimed("stop", "seen-a", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == {"run": "seen-aaa1", "how": "not running"}, done.stderr
    assert not done.stderr, "nobody is told to stop"


def test_a_run_that_waits_for_workers_says_so_and_is_stopped_at_once(stack):
    inputs = {"stage": {**STAGE.model_dump(mode="json"), "name": "waits"}, "start": {}, "training": {"workers": 99, "streams": 99}}
    lines, ended = [], []

    def run():
        try:
            run_job(JobSpec("waits", "ray_jobs.train", inputs, alone="training"), on_log=lines.append)
        except JobCancelled as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not any("waiting: 99 workers of 1 CPU" in line for line in lines):
        assert thread.is_alive()
        time.sleep(0.2)
    begun = time.monotonic()
    done = unimed("stop", "waits", "--json")
    thread.join(timeout=30)
    assert done.returncode == 0 and json.loads(done.stdout)["how"] == "stopped", done.stderr
    assert ended and time.monotonic() - begun < 60 and any("stopped while it waited" in line for line in lines)


def test_a_stage_alone_finds_the_cluster_of_its_settings(stack, tmp_path):
    """In a shell that knows of the state folder and nothing else, as no flow or job has exported any address or token to it."""
    release = publish([sample(1)], corpus_store(), tag="corpus/2000-04-04.1")
    corpus_store().put_json("releases/2000-04-04.1.json", release)
    inputs = {"release": release["tag"], "stage": {**STAGE.model_dump(mode="json"), "name": "lone"}, "start": {}, "training": {"workers": 99, "streams": 99}, "seed": 5}
    (tmp_path / "stage.json").write_text(json.dumps(inputs))
    shell = {name: value for name, value in os.environ.items() if not name.startswith(("UNIMED_", "RAY_", "AWS_", "PREFECT_"))} | {"UNIMED_STATE_DIR": os.environ["UNIMED_STATE_DIR"]}
    command = [sys.executable, "-m", "ray_jobs.train", "--inputs", str(tmp_path / "stage.json")]
    with subprocess.Popen(command, env=shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        said = list(takewhile(lambda line: "waiting: 99 workers of 1 CPU" not in line and "InvalidAuthToken" not in line, run.stdout))
        run.send_signal(signal.SIGTERM)
        said += run.stdout
    assert run.returncode == 0 and "lone-alone was stopped while it waited" in said[-1], "".join(said)


def test_a_stage_alone_that_is_told_to_end_saves_its_step_and_goes_on_to_the_weights_of_an_undisturbed_run(stack, tmp_path):
    """The undisturbed run knows nothing of Ray."""
    release = publish([sample(number) for number in range(8)], corpus_store(), tag="corpus/2000-05-05.1")
    corpus_store().put_json("releases/2000-05-05.1.json", release)
    start = make_tiny(tmp_path / "tiny")
    stage = STAGE.model_dump(mode="json") | {"name": "told", "steps": 200, "tokens_per_pack": 256}
    training = {"workers": 1, "streams": 1, "threads_per_worker": 1, "checkpoint_every": 1000, "log_every": 5}
    inputs = {"release": release["tag"], "stage": stage, "start": publish_folder(start, "start"), "training": training, "seed": 5}
    assert work_on(inputs, "undisturbed", alone(), RunLog("undisturbed"), NoticeAt(), tmp_path / "scratch", under_ray=False) == "finished"
    (tmp_path / "undisturbed").mkdir()
    export_average(start, "undisturbed", 200, model_store(), tmp_path / "undisturbed")

    (tmp_path / "stage.json").write_text(json.dumps(inputs))
    command = [sys.executable, "-m", "ray_jobs.train", "--inputs", str(tmp_path / "stage.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        said = list(takewhile(lambda line: "told step " not in line, run.stdout))
        run.send_signal(signal.SIGTERM)
        said += run.stdout
    saved = committed(model_store(), checkpoints_prefix("told-alone"))
    assert run.returncode == 0 and len(saved) == 1 and "Traceback" not in "".join(said), "".join(said)
    assert any(f"told-alone stopped at step {int(saved[0].split('-')[0])} and saved it" in line for line in said), "".join(said)

    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    result = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    assert "resumed at step" in done.stdout and result["steps"] == 200
    assert result["content_hash"] == content_hash(tmp_path / "undisturbed")
    assert result["history"] == model_store().get_json("runs/undisturbed/ending.json")["history"]


def test_a_stage_alone_that_is_told_to_end_while_it_waits_for_the_store_ends_at_once(tmp_path):
    """As at any time before it has workers, or when it has none any more."""
    (tmp_path / "stage.json").write_text(json.dumps({"release": "corpus/1999-01-01.1", "stage": STAGE.model_dump(mode="json"), "start": {}, "training": {}, "seed": 5}))
    command = [sys.executable, "-m", "ray_jobs.train", "--inputs", str(tmp_path / "stage.json")]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shell = os.environ | {"UNIMED_S3_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(command, env=shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run, silent.accept()[0]:
            run.send_signal(signal.SIGTERM)
            said = run.communicate(timeout=60)[0]
    assert run.returncode == 0 and said.startswith("stopped; the same command goes on"), said


@pytest.mark.parametrize(
    "changed, says",
    [("{", "not JSON"), ("[]", "no JSON object"), ({"release": None}, "lack release"), ({"stage": {"steps": 0}}, "steps\n"), ({"release": "corpus/1999-01-01.1"}, "releases/1999-01-01.1.json"), ({"stage": {"mixture": {"text": 1}}}, "no train sample of")],
)
def test_what_is_wrong_with_the_inputs_of_a_stage_alone_is_told_before_any_worker_starts(s3, tmp_path, changed, says):
    release = publish([sample(1)], corpus_store(), tag="corpus/2000-04-04.1")
    corpus_store().put_json("releases/2000-04-04.1.json", release)
    inputs = {"release": release["tag"], "stage": STAGE.model_dump(mode="json"), "start": {}, "training": {}, "seed": 5}
    if isinstance(changed, dict):
        inputs = {name: value for name, value in (inputs | changed).items() if value is not None}
        inputs["stage"] = STAGE.model_dump(mode="json") | changed.get("stage", {})
        changed = json.dumps(inputs)
    (tmp_path / "stage.json").write_text(changed)
    done = subprocess.run([sys.executable, "-m", "ray_jobs.train", "--inputs", tmp_path / "stage.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr and "Connect" not in done.stderr, done.stderr


def test_two_runs_are_shown_side_by_side(told, tmp_path):
    done = unimed("show", "seen-a", "seen", "-o", str(tmp_path / "curves.png"))
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert lines["seen-aaa1"] and lines["ce"] == ["2.0000", "1.0000"] and lines["real_share"] == ["97.5%", "97.5%"] and lines["vqa/mini"] == ["0.250", "0.250"]
    assert done.stdout.count("three bad steps in a row") == 2 and "s3://unimed-logs/training/seen-aaa1/pictures/000000040-drawings.png" in done.stdout
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_a_run_is_shown_to_programs(told):
    (run,) = json.loads(unimed("show", "seen", "--json").stdout)["runs"]
    assert run["run"] == "seen-bbb2" and [line["step"] for line in run["metrics"]] == [20, 40] and run["last"]["ce"] == 1.0 and "mfu" not in run["last"]
    assert run["events"][0]["kind"] == "rolled-back" and run["about"]["seed"] == 3


def test_the_samples_of_a_step_are_named(told):
    done = unimed("which", "seen-aaa1", "--step", "40")
    assert done.returncode == 0 and "4 samples" in done.stdout and "mini/1-81" in done.stdout
    assert [s["sample"] for s in json.loads(unimed("which", "seen-aaa1", "--step", "40", "--json").stdout)["samples"]] == [k["sample"] for k in keys(40)]


@pytest.mark.parametrize("arguments, says", [(["which", "seen-aaa1", "--step", "41"], "no sample of step 41"), (["show", "nothing"], "unimed train list"), (["show", "seen-"], "seen-aaa1, seen-bbb2")])
def test_what_is_not_there_is_told_in_a_line(told, arguments, says):
    done = unimed(*arguments)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
