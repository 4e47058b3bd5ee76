"""`make demo`: the whole loop once, from nothing to a model that is served, watched and retrained by drift."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from flows.console import table

QUESTION, PROMPT = "Which imaging modality is this?", "MRI image of the head without tumour."
REQUESTS = 80
# Enough for the tiny model to name what it sees and to draw what it is told; `unimed retrain` trains it in full.
SHARE = 0.3


def run(on_step: Callable[[str], None]) -> tuple[dict, str]:
    """Run the loop; returns its facts as JSON and as the closing table. The stack stays up."""
    from infra.settings import get_settings
    from infra.stack import Stack

    begun = time.monotonic()

    def step(line: str) -> None:
        on_step(f"[{time.monotonic() - begun:4.0f} s] {line}")

    step("starting S3, Prefect, Ray and the worker")
    Stack().up(step)
    get_settings().export()
    from flows.retrain import retrain

    step("release, train, judge, deploy")
    result = retrain(reason="demo", share=SHARE)
    if not result["endpoint"]:
        raise RuntimeError(f"the gate said {result['verdict']}; see {result['flow_run']}")
    step("asking and drawing")
    spoken = _use(result, _folder())
    step("everyday traffic, then the same scanner replaced by another")
    watched = _watch(result, step)
    result |= {"spoken": spoken, "drift": watched, "pages": _keep(result, watched), "seconds": round(time.monotonic() - begun)}
    return result, closing(result)


def _folder() -> Path:
    from infra.settings import get_settings

    folder = get_settings().state_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _use(result: dict, folder: Path) -> dict:
    """One question answered, one picture drawn."""
    from flows import client, traffic

    picture, _ = next(traffic.questions(result["release"], 1, changed_scanner=False))
    (folder / "asked.png").write_bytes(picture)
    answer = client.ask(picture, QUESTION)
    (folder / "drawn.png").write_bytes(client.draw(PROMPT))
    return {"image": str(folder / "asked.png"), "question": QUESTION, "answer": answer.text, "prompt": PROMPT, "drawing": str(folder / "drawn.png")}


def _watch(result: dict, step: Callable[[str], None]) -> dict:
    from flows.traffic import send
    from flows.watch_drift import watch_drift

    verdicts = {}
    for when, changed in (("before", False), ("after", True)):
        since = datetime.now(UTC)
        send(result["release"], REQUESTS, changed)
        _await_rows(since, REQUESTS)
        verdicts[when] = watch_drift(since=since)
        step(f"{when} the scanner change: {verdicts[when]['verdict']}")
    verdicts["retraining"] = _started_run(since) if verdicts["after"]["retraining"] == "started" else verdicts["after"]["retraining"]
    return verdicts


def _keep(result: dict, watched: dict) -> dict:
    """The run's pages as files that a browser opens: signed links are too long for a table."""
    import httpx

    links = {"contact-sheet.png": result["contact_sheet"], "drift-before.html": watched["before"]["html"], "drift-after.html": watched["after"]["html"]}
    for name, link in links.items():
        if link:
            (_folder() / name).write_bytes(httpx.get(link, timeout=30).raise_for_status().content)
    return {name: str(_folder() / name) for name, link in links.items() if link}


def _await_rows(since: datetime, count: int, seconds: float = 20) -> None:
    """The request log is written behind the requests: wait for its last batch."""
    from monitoring.request_log import read_window

    end = time.monotonic() + seconds
    while time.monotonic() < end and len(read_window(since)) < count:
        time.sleep(0.5)


def _started_run(since: datetime, seconds: float = 40) -> str:
    """Link of the run that the drift event's automation started."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    from infra.settings import get_settings

    recent = FlowRunFilter.model_validate({"name": {"like_": "retrain"}, "expected_start_time": {"after_": since.isoformat()}, "deployment_id": {"is_null_": False}})
    end = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            for run in client.read_flow_runs(flow_run_filter=recent, sort=FlowRunSort.EXPECTED_START_TIME_DESC):
                if run.parameters.get("refresh"):
                    return f"{get_settings().prefect_ui_url}/runs/flow-run/{run.id}"
            time.sleep(0.5)
    return "not seen yet; look at the Prefect UI"


def closing(result: dict) -> str:
    """The table at the end."""
    from flows.report import retraining
    from infra.settings import get_settings

    settings, spoken, drift, pages = get_settings(), result["spoken"], result["drift"], result["pages"]
    rows = [
        ["corpus release", f"{result['release']['tag']}, {result['release']['samples']} samples", settings.prefect_ui_url + "/artifacts"],
        ["gate", f"{result['verdict']} for {result['candidate']}", result["flow_run"]],
        ["contact sheet", "real pictures beside drawings", pages["contact-sheet.png"]],
        ["endpoint", result["endpoint"]["version"], f"{result['endpoint']['url']}/v1"],
        ["question", f"{spoken['question']} -> {spoken['answer']}", spoken["image"]],
        ["drawing", spoken["prompt"], spoken["drawing"]],
        ["drift before", drift["before"]["verdict"], pages.get("drift-before.html", "")],
        ["drift after", f"{drift['after']['verdict']} ({len(drift['after']['drifted'])} columns)", pages.get("drift-after.html", "")],
        ["retraining it started", drift["after"]["retraining"], drift["retraining"]],
        ["Prefect UI", "runs and artifacts", settings.prefect_ui_url],
    ]
    return f"{retraining(result)}\n\n{table(['what', 'result', 'where'], rows)}\n\n{result['seconds']} s. The stack stays up for a look around; `.venv/bin/unimed down` stops it."
