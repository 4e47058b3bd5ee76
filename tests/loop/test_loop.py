"""The whole loop on one running stack, through the front doors: flows, command line and the `openai` client."""

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import httpx
import numpy as np
import openai
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def client(first, stack):
    from infra.settings import get_settings

    settings = get_settings()
    return openai.OpenAI(base_url=f"{settings.serve_url}/v1", api_key=settings.api_key.get_secret_value(), max_retries=0)


@pytest.fixture(scope="module")
def picture() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def asked(url: str, question: str = "Which imaging modality is this?") -> list:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]}]


def unimed(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], capture_output=True, text=True, timeout=240)


def test_a_retraining_ends_with_a_served_champion(first):
    assert first["promoted"] and first["endpoint"]["version"] == first["candidate"]
    assert [s["stage"] for s in first["stages"]] == ["bootstrap", "foundation", "unified"]


def prefect_log(flow_run_name: str) -> list[str]:
    """What a flow run has told its log, as Prefect's API has it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, LogFilter, LogFilterFlowRunId

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name])))
        lines, of_run = [], LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        while page := client.read_logs(log_filter=of_run, limit=200, offset=len(lines)):
            lines += [entry.message for entry in page]
    return lines


def test_a_stages_log_lines_are_in_prefect(first):
    """Step, both losses, rate, gradient norm, speed, real tokens, MFU, data wait and time to go; both stages had targets of both kinds."""
    number = r"\d[\d,.]*"
    line = re.compile(rf"(\w+) step (\d+/\d+) ce {number} mse {number} lr {number}e-\d+ norm {number} {number} tokens/s real {number}% mfu {number}% wait {number}% eta \d+ s")
    wanted, told, end = {("foundation", "20/40"), ("foundation", "40/40"), ("unified", "20/20")}, set(), time.monotonic() + 20
    # They are sent a few at a time.
    while told != wanted and time.monotonic() < end:
        time.sleep(0.5)
        told = {found.groups() for found in map(line.search, prefect_log("retrain (test)")) if found}
    assert told == wanted


def test_a_second_retraining_finds_everything_up_to_date(first):
    begun = time.monotonic()
    done = unimed("retrain", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    again = json.loads(done.stdout)
    assert {s["how"] for s in again["stages"]} == {"up to date"} and again["release"]["how"] == "up to date"
    assert again["endpoint"]["how"] == "up to date" and again["content_hash"] == first["content_hash"]
    assert time.monotonic() - begun < 60


def test_the_endpoint_speaks_openai(client, picture):
    whole = client.chat.completions.create(model="unimedvl", messages=asked(picture), max_tokens=8)
    streamed = client.chat.completions.create(model="unimedvl", messages=asked(picture), max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
    assert whole.usage.total_tokens > 8
    drawn = client.images.generate(model="unimedvl", prompt="CT image of the abdomen")
    assert Image.open(io.BytesIO(base64.b64decode(drawn.data[0].b64_json))).size == (64, 64)


@pytest.mark.parametrize(
    "change, status, code",
    [
        ({"messages": asked("data:image/png;base64,aGVsbG8=")}, 400, "invalid_image"),
        ({"messages": asked("data:image/png;base64,???")}, 400, "invalid_image"),
        ({"messages": asked("http://127.0.0.1/secret.png")}, 400, "invalid_image_url"),
        ({"messages": [{"role": "user", "content": "x" * 9_000_000}]}, 413, "request_too_large"),
        ({"model": "gpt-17"}, 404, "model_not_found"),
        ({"temperature": 9}, 400, "invalid_value"),
        ({"messages": []}, 400, "invalid_value"),
    ],
)
def test_refusals_have_openais_body(client, picture, change, status, code):
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(**{"model": "unimedvl", "messages": asked(picture)} | change)
    assert (told.value.status_code, told.value.body["code"]) == (status, code)


def test_a_wrong_key_is_refused(client, picture):
    with pytest.raises(openai.AuthenticationError) as told:
        client.with_options(api_key="sk-wrong").chat.completions.create(model="unimedvl", messages=asked(picture))
    assert told.value.body["code"] == "invalid_api_key"


def test_a_switch_of_models_loses_no_request(first, client, picture, tmp_path):
    from infra.registry import ModelRegistry
    from model.testing import make_tiny
    from ray_jobs.serve.deploy import DeployFailed, deploy
    from ray_jobs.serve.params import ServingParams

    other = ModelRegistry().publish(make_tiny(tmp_path / "other", seed=9), {"reason": "test"}).id
    answered, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            answered.append(client.chat.completions.create(model="unimedvl", messages=asked(picture), max_tokens=4).model)

    threads = [threading.Thread(target=load) for _ in range(2)]
    [t.start() for t in threads]
    deploy(other, ServingParams(), on_step=lambda line: None)
    time.sleep(1)
    with pytest.raises(DeployFailed):
        deploy("m-000000000000", ServingParams(), on_step=lambda line: None)
    stop.set()
    [t.join() for t in threads]
    assert set(answered) == {first["candidate"], other}
    assert client.chat.completions.create(model="unimedvl", messages=asked(picture), max_tokens=4).model == other
    deploy(first["candidate"], ServingParams(), on_step=lambda line: None)


def test_the_log_holds_no_words_and_no_pixels(client, picture):
    from monitoring.request_log import read_window, schema

    since = datetime.now(UTC)
    client.chat.completions.create(model="unimedvl", messages=asked(picture, "zebra crossing"), max_tokens=4)
    end = time.monotonic() + 20
    while time.monotonic() < end and not len(rows := read_window(since)):
        time.sleep(0.5)
    assert list(rows.columns) == schema().names
    assert len(rows.iloc[-1]["embedding"]) == 192 and rows.iloc[-1]["prompt_words"] == 2
    assert "zebra" not in rows.to_json(default_handler=str)


def test_prometheus_counts_each_request_by_its_outcome(first, client, picture):
    from prometheus_client.parser import text_string_to_metric_families as parsed

    def counted(status: int) -> float:
        text = httpx.get(str(client.base_url).removesuffix("/v1/") + "/metrics", timeout=10).text
        of_chat = [s for family in parsed(text) for s in family.samples if s.name == "unimed_requests_total" and s.labels["route"] == "chat"]
        return sum(s.value for s in of_chat if s.labels["status"] == str(status))

    before = counted(200), counted(404)
    client.chat.completions.create(model="unimedvl", messages=asked(picture), max_tokens=4)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="m-000000000000", messages=asked(picture))
    assert (counted(200), counted(404)) == (before[0] + 1, before[1] + 1)


def test_drift_is_found_and_starts_a_retraining(first, stack):
    from flows.demo import _watch

    watched = _watch(first, lambda line: None)
    assert watched["after"]["verdict"] == "drift" and watched["after"]["retraining"] == "started"
    assert "/runs/flow-run/" in watched["retraining"]
    assert _watch.__module__ == "flows.demo" and watched["before"]["rows"] >= 20


def test_a_second_drift_waits_for_the_cooldown(first, stack):
    done = unimed("drift", "--json", "--hours", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["retraining"] in ("in cooldown", "no")


@pytest.mark.parametrize("arguments", [["status"], ["data", "list"], ["data", "show"], ["data", "verify"], ["models", "list"], ["models", "show"]])
def test_verbs_answer_in_json(first, arguments):
    done = unimed(*arguments, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)


def test_what_cannot_be_is_told_in_a_line(first):
    done = unimed("models", "show", "m-nothing")
    assert done.returncode == 1 and "no model version" in done.stderr and "Traceback" not in done.stderr
    assert unimed("retrain", "--frobnicate").returncode == 2


def test_everything_listens_on_loopback_only(stack):
    """Ray's own gRPC and metrics ports are the documented exceptions."""
    import psutil

    for name in ("s3", "prefect"):
        process = stack._process(name)
        for member in [process, *process.children(recursive=True)]:
            open_to = {c.laddr.ip for c in member.net_connections() if c.status == psutil.CONN_LISTEN}
            assert open_to <= {"127.0.0.1", "::1"}, (name, open_to)
