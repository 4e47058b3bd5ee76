"""`unimed train`: what training runs tell of themselves, and an end to one."""

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.console import Json

app = typer.Typer(help="Training runs: curves, events, samples.", no_args_is_help=True)
RUN = "A run's name, the beginning of it, or a stage: its newest run."
# How the fields of a log line are told; others as they are.
FORMS = {"ce": "{:.4f}", "mse": "{:.4f}", "lr": "{:.2e}", "grad_norm": "{:.3f}", "tokens_per_s": "{:,.0f}", "real_share": "{:.1%}", "mfu": "{:.1%}", "wait": "{:.2%}", "stall": "{:.2%}", "step": "{:,.0f}"}


def _given(names: str | list[str]) -> str | list[str]:
    if "" in ([names] if isinstance(names, str) else names):
        raise typer.BadParameter("a run's name is not empty")
    return names


@app.command("list")
def train_list(json: Json = False) -> None:
    """All runs, the newest at the end."""
    console.needs_stack()
    from ray_jobs import runs

    found = runs.every()
    rows = [[r["run"], r["start"], r["started_at"][:19], r["attempts"], f"{r['last'].get('step', 0)}/{r['steps']}", _told("ce", r["last"]), _told("mse", r["last"]), f"DAMAGED: {r['damaged']}" if r["damaged"] else r["release"]] for r in found]
    console.show(found, json, lambda: console.table(["run", "began with", "last start (UTC)", "starts", "step", "ce", "mse", "release"], rows))


@app.command("show")
def train_show(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", callback=_given, help=RUN)],
    out: Annotated[Path | None, typer.Option("-o", "--out", callback=console.file_to_write, help="PNG file to draw the curves to.")] = None,
    json: Json = False,
) -> None:
    """A run's last log line, scores, events and pictures, and its curves with -o; several runs side by side."""
    console.needs_stack()
    from flows.curves import Line, plot
    from ray_jobs import runs

    found = [runs.read(name) for name in dict.fromkeys(runs.find(name) for name in names)]
    if out:
        out.write_bytes(plot([Line(run.run, run.metrics.to_dict("records")) for run in found]))
    result = [_as_json(run) for run in found]
    console.show({"runs": result, "plot": str(out.resolve()) if out else None}, json, lambda: _text(result) + (f"\n\ncurves: {out}" if out else ""))


@app.command("which")
def train_which(name: Annotated[str, typer.Argument(metavar="RUN", callback=_given, help=RUN)], step: Annotated[int, typer.Option(min=1, help="Steps count from 1.")], json: Json = False) -> None:
    """The samples that a step was made of. `unimed data trace SAMPLE` tells more of one."""
    console.needs_stack()
    from ray_jobs import runs

    run = runs.find(name)
    found = runs.samples_of(run, step)
    rows = [[sample["stream"], sample["position"], sample["sample"]] for sample in found]
    console.show({"run": run, "step": step, "samples": found}, json, lambda: f"{run}, step {step}: {len(rows)} samples\n\n" + console.table(["stream", "position", "sample"], rows))


@app.command("stop")
def train_stop(name: Annotated[str, typer.Argument(metavar="RUN", callback=_given, help=RUN)], json: Json = False) -> None:
    """Tell a run to save what it has and end; the command that started it goes on from there."""
    console.needs_stack()
    from infra.jobs import stop_job

    run = _meant(name)
    how = "stopped" if stop_job(run, on_told=lambda: console.progress(f"{run} is told to stop; it saves after the step at hand")) else "not running"
    console.show({"run": run, "how": how}, json, lambda: f"{run}: {how}")


def _meant(name: str) -> str:
    """The run to be stopped: the running job of this name or stage, else what the logs know by it. A run that still waits for its workers has told nothing of itself."""
    from infra.jobs import running_jobs
    from ray_jobs import runs

    running = running_jobs(alone="training")
    if len(named := [job for job in running if name in (job, job.rpartition("-")[0])]) == 1:
        return named[0]
    try:
        return runs.find(name)
    except LookupError:
        if len(begun := [job for job in running if job.startswith(name)]) != 1:
            raise
        return begun[0]


def _as_json(run) -> dict:
    """A run without what JSON has no word for."""
    from infra.settings import get_settings

    rows, scores = [_finite(row) for row in run.metrics.to_dict("records")], [scored | {"scores": _finite(scored["scores"])} for scored in run.scores]
    pictures = [f"s3://{get_settings().bucket_logs}/{key}" for key in run.pictures]
    return {"run": run.run, "about": run.about, "last": rows[-1] if rows else {}, "metrics": rows, "events": run.events, "scores": scores, "pictures": pictures}


def _finite(row: dict) -> dict:
    return {name: value for name, value in row.items() if not isinstance(value, float) or isfinite(value)}


def _text(runs: list[dict]) -> str:
    """A column a run, then what happened to each."""
    from ray_jobs.runs import began_with

    fields = list(dict.fromkeys(field for run in runs for field in run["last"] if field != "at"))
    names = list(dict.fromkeys(name for run in runs for scored in run["scores"][-1:] for name in scored["scores"]))
    rows = [["starts", *(len(run["about"]["attempts"]) for run in runs)], ["release", *(run["about"].get("release", "") for run in runs)]]
    rows += [["began with", *(began_with(run["about"]) for run in runs)]]
    rows += [[field, *(_told(field, run["last"]) for run in runs)] for field in fields]
    # Its losses have the names that those of training have.
    rows += [[name if "/" in name else f"validation {name}", *(f"{scored[-1]['scores'][name]:.3f}" if (scored := run["scores"]) and name in scored[-1]["scores"] else "" for run in runs)] for name in names]
    parts = [console.table(["", *(run["run"] for run in runs)], rows)]
    for run in runs:
        happened = [[event["at"][:19], event["step"], event["kind"], event["detail"]] for event in run["events"]]
        parts += [f"{run['run']}: what happened\n" + console.table(["at (UTC)", "step", "", ""], happened)] if happened else []
        parts += [f"{run['run']}: {len(run['pictures'])} pictures, the newest {run['pictures'][-1]}"] if run["pictures"] else []
    return "\n\n".join(parts)


def _told(field: str, row: dict) -> str:
    return FORMS.get(field, "{:g}").format(row[field]) if field in row else ""
