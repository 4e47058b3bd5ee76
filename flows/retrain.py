"""The product on one page: release, train, judge, promote, deploy."""

from prefect import flow, get_run_logger

from flows import artifacts, steps
from flows.releases import make_release
from infra.jobs import stop_jobs_of
from infra.lease import Lease
from infra.records import digest
from infra.settings import get_settings
from model.curriculum import BOOTSTRAP, CHAMPION
from ray_jobs.params import load_params

# One training at a time: a run that another is ahead of waits for it, at most half a day.
WAIT_S = 12 * 3600


def _stop_jobs(flow, flow_run, state) -> None:
    """A retraining that is cancelled takes its job with it; run again, it goes on from there."""
    stop_jobs_of(str(flow_run.id))


@flow(name="retrain", flow_run_name="retrain ({reason})", on_cancellation=[_stop_jobs])
def retrain(reason: str = "schedule", refresh: bool = False, force: bool = False, deploy: bool = True, share: float = 1.0) -> dict:
    """Bring the endpoint a model of the newest data, if it is good enough.

    Every step is named by its inputs: what is up to date is not done again, and a run that was killed
    goes on where it stopped.

    Args:
        reason: why, for the record.
        refresh: go on from the champion with the profile's refresh curriculum, rather than from nothing.
        force: train even where results are there.
        deploy: let the endpoint serve the champion.
        share: of the profile's training steps; less than 1 for a quick look.
    """
    params, log = load_params(get_settings().params_file).shortened(share), get_run_logger().info
    curriculum, first = (params.refresh_curriculum, CHAMPION) if refresh else (params.curriculum, BOOTSTRAP)
    steps.refuse_early(params, curriculum, first)
    with Lease("training", holder=digest([params.model_dump(mode="json"), refresh]), wait_s=WAIT_S, on_wait=log):
        release = make_release(force=False, on_line=log)
        artifacts.release(release)
        steps.refuse_mixtures(curriculum, release)

        stages = steps.train_curriculum(params, curriculum, release, first, force, log)
        artifacts.stages(stages)

        candidate = steps.register(params, release, stages, reason)
        report = steps.evaluate(params, release, candidate, log)
        champion = steps.champion_report(params, release, candidate, log)
        artifacts.evaluation(report)
        decision = steps.judge(params, report, champion)
        artifacts.gate(decision)

        promoted = steps.promote(params, candidate, decision)
        endpoint = steps.deploy(params, log) if deploy else None
    summary = steps.summary(release, stages, candidate, report, champion, decision, promoted, endpoint)
    log(f"{candidate}: gate says {decision.verdict}" + (f"; {endpoint['version']} is served at {endpoint['url']}" if endpoint else ""))
    return summary
