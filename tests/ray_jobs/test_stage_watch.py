"""A running stage in the Prefect UI: artifacts that grow with the run, and stay few."""

from uuid import UUID

from flows import stage_watch
from flows.stage_watch import StageWatch
from model.curriculum import StageParams
from ray_jobs.run_log import RunLog
from tests.ray_jobs.test_run_log import ABOUT, row

STAGE = StageParams(name="foundation", steps=200, mixture={"text": 1}, learning_rate=1e-3)


def artifacts(run_id: str) -> list:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)])))
    return sorted(found, key=lambda artifact: artifact.created)


def shown(run_id: str, key: str) -> list:
    return [artifact for artifact in artifacts(run_id) if artifact.key == key]


def test_a_stage_is_seen_while_it_runs(stack):
    """Halfway the artifacts show half; at the end they are as many as before, and show all."""
    from prefect import flow
    from prefect.runtime import flow_run

    @flow
    def watched() -> list:
        lines, states = [], []
        log = RunLog("foundation-watched")
        with StageWatch("foundation-watched", STAGE, lines.append, every_s=0) as watch:
            watch.line("not yet begun")
            assert not artifacts(flow_run.id)
            log.begin(ABOUT)
            for step in range(1, 201):
                log.metrics(row(step))
                log.picture(step, "drawings", b"png")
                if step % 100 == 0:
                    log.flush(60)
                    watch.line(f"step {step}")
                    states.append({a.key: (a.id, a.data, a.description) for a in artifacts(flow_run.id)})
        assert lines == ["not yet begun", "step 100", "step 200"]
        return states

    half, whole = watched()
    assert half["progress-foundation"][1] == 50.0 and whole["progress-foundation"][1] == 100.0
    assert half["curves-foundation"][0] == whole["curves-foundation"][0], "brought up to date in place"
    assert "training/foundation-watched/curves.png" in whole["curves-foundation"][1] and "200 of 200" in whole["curves-foundation"][2]
    assert "000000100-drawings.png" in half["samples-foundation"][1] and "000000200-drawings.png" in whole["samples-foundation"][1]


def test_however_often_a_stage_is_evaluated_its_pictures_stay_few(stack, monkeypatch):
    """Twelve evaluations, four versions: each is the last of its quarter."""
    from prefect import flow
    from prefect.runtime import flow_run

    monkeypatch.setattr(stage_watch, "VERSIONS", 4)

    @flow
    def watched() -> str:
        log = RunLog("foundation-pictured")
        log.begin(ABOUT)
        with StageWatch("foundation-pictured", STAGE, lambda line: None, every_s=0) as watch:
            for step in range(10, 200, 16):
                log.picture(step, "drawings", b"png")
                log.flush(60)
                watch.line("")
        return flow_run.id

    pictures = shown(watched(), "samples-foundation")
    assert [picture.description.split()[-1] for picture in pictures] == ["42", "90", "138", "186"]
    assert "000000186-drawings.png" in pictures[-1].data


def test_what_cannot_be_shown_fails_nothing(s3):
    """Outside of a flow, and with a run log that is damaged, the lines go on."""
    from infra.store import log_store

    log_store().put("training/foundation-damaged/run.json", b"{")
    lines = []
    with StageWatch("foundation-damaged", STAGE, lines.append, every_s=0) as watch:
        watch.line("step 1")
        watch.line("step 2")
    assert [line for line in lines if line.startswith("step")] == ["step 1", "step 2"]
    assert sum("cannot be shown" in line for line in lines) == 1
