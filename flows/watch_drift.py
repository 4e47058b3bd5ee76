"""The drift flow: the request log against the champion's reference window; confirmed drift starts a retraining."""

import io
from datetime import UTC, datetime, timedelta

from prefect import flow, get_run_logger, task
from prefect.events import emit_event

from flows import artifacts
from infra.store import MissingObject, PreconditionFailed, log_store
from monitoring.params import DriftParams

COOLDOWN_KEY = "drift/cooldown.json"


@flow(name="watch-drift", flow_run_name="watch drift")
def watch_drift(since: datetime | None = None, act: bool = True) -> dict:
    """Judge a window of requests; returns {verdict, score, model_version, drifted, html, retraining, rows}.

    Args:
        since: start of the window; by default the profile's window length ago.
        act: emit the event that starts a retraining when drift is confirmed.
    """
    from infra.registry import ModelRegistry
    from infra.settings import get_settings
    from monitoring import report as reports
    from ray_jobs.params import load_params

    params, log = load_params(get_settings().params_file).drift, get_run_logger().info
    champion = ModelRegistry().alias("champion")
    if champion is None:
        log("no champion yet: nothing to watch")
        return {"verdict": "insufficient", "score": 0.0, "model_version": None, "drifted": [], "html": None, "retraining": "no"}
    since = since or datetime.now(UTC) - timedelta(hours=params.window_hours)
    report, window, reference = judge(champion.version, since, params)
    page = reports.html(window, reference, params) if report.verdict != "insufficient" else None
    keys = reports.publish(report, page, log_store())
    link = log_store().url(keys["html_key"]) if page else None
    artifacts.drift(report, link)
    retraining = _act(report, params, log) if report.verdict == "drift" and act else "no"
    log(f"{champion.version}: {report.verdict} in {report.window['rows']} requests ({', '.join(report.drifted) or 'no column'} drifted); retraining: {retraining}")
    return {"verdict": report.verdict, "score": report.score, "model_version": champion.version, "drifted": report.drifted, "html": link, "retraining": retraining, "rows": report.window["rows"]}


@task(retries=2, retry_delay_seconds=2)
def judge(version: str, since: datetime, params: DriftParams):
    """(report, window, reference) for a version."""
    import pandas as pd

    from infra.registry import ModelRegistry
    from monitoring.drift import detect
    from monitoring.request_log import read_window

    reference = pd.read_parquet(io.BytesIO(ModelRegistry().attachment(version, "reference.parquet")))
    window = read_window(since, version)
    return detect(window, reference, version, params), window, reference


def _act(report, params: DriftParams, log) -> str:
    """Emit the event once a cooldown; returns "started" or why not."""
    if not _take_cooldown(params):
        return "in cooldown"
    payload = {"score": report.score, "window": report.window}
    event = emit_event("drift.confirmed", resource={"prefect.resource.id": f"unimed.model.{report.model_version}"}, payload=payload)
    log(f"event {event.id if event else ''} drift.confirmed emitted")
    return "started"


def _take_cooldown(params: DriftParams) -> bool:
    """True for the one caller that may start a retraining in this cooldown."""
    store, now = log_store(), datetime.now(UTC)
    try:
        current, etag = store.get_json_with_etag(COOLDOWN_KEY, ("until",))
        if now < datetime.fromisoformat(current["until"]):
            return False
        condition = {"if_match": etag}
    except MissingObject:
        condition = {"if_absent": True}
    try:
        store.put_json(COOLDOWN_KEY, {"until": (now + timedelta(minutes=params.cooldown_minutes)).isoformat()}, **condition)
    except PreconditionFailed:
        return False
    return True
