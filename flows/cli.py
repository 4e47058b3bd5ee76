"""`unimed`: the front door to the same flows that Prefect schedules."""

from pathlib import Path
from typing import Annotated

import typer

from flows import cli_data, cli_models, cli_train, console
from flows.console import Json

app = typer.Typer(cls=console.Verbs, help="Retrain, judge, ship and watch UniMedVL.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# Ten years: more than any request log holds, and a time that can be reckoned with.
MOST_HOURS = 10 * 366 * 24
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_train.app, name="train")


@app.command()
def doctor(json: Json = False) -> None:
    """Check this machine and this checkout; name the mend of whatever is wrong."""
    from infra.doctor import examine
    from infra.settings import get_settings
    from ray_jobs.params import load_params

    checks = examine(lambda: load_params(get_settings().params_file))
    rows = [["ok" if c.ok else "WRONG", c.name, c.detail, "" if c.ok else c.mend] for c in checks]
    console.show([vars(c) for c in checks], json, lambda: console.table(["", "check", "found", "mend"], rows))
    raise typer.Exit(console.DONE if all(c.ok for c in checks) else console.FAILED)


@app.command()
def up(json: Json = False) -> None:
    """Start S3, Prefect, Ray and the worker, all on loopback; what runs already stays."""
    from infra.stack import Stack

    stack = Stack()
    stack.up(console.progress)
    _status(stack, json)


@app.command()
def down(json: Json = False) -> None:
    """Stop everything `unimed up` started; data stays."""
    from infra.stack import Stack

    stack = Stack()
    stack.down(console.progress)
    _status(stack, json)


@app.command()
def status(json: Json = False) -> None:
    """What runs, and where."""
    from infra.stack import Stack

    _status(Stack(), json)


def _status(stack, json: bool) -> None:
    found = stack.status()
    rows = [[s.name, "up" if s.running else "down", s.pid or "", s.url, s.log] for s in found]
    console.show([vars(s) for s in found], json, lambda: console.table(["service", "", "pid", "address", "log"], rows))


@app.command()
def demo(json: Json = False) -> None:
    """The whole loop: release, train, judge, serve, watch, and a retraining that drift starts."""
    from flows.demo import run

    result, text = run(console.progress)
    console.show(result, json, lambda: text)


@app.command()
def retrain(
    force: Annotated[bool, typer.Option(help="Train even where results are there.")] = False,
    refresh: Annotated[bool, typer.Option(help="Go on from the champion with the profile's refresh curriculum.")] = False,
    deploy: Annotated[bool, typer.Option(help="Let the endpoint serve the champion.")] = True,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the profile's training steps, for a quick look.")] = 1.0,
    json: Json = False,
) -> None:
    """Release, train, judge, promote and deploy; what is up to date is not done again. Exit 3: the gate said no."""
    console.needs_stack()
    from flows.report import retraining
    from flows.retrain import retrain as flow

    result = flow(reason="by hand", refresh=refresh, force=force, deploy=deploy, share=share)
    console.show(result, json, lambda: retraining(result))
    raise typer.Exit({"pass": console.DONE, "fail": console.REFUSED}.get(result["verdict"], console.NO_EVIDENCE))


@app.command("eval")
def evaluate(
    version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion",
    release: Annotated[str | None, typer.Option(help="Corpus tag; the newest by default.")] = None,
    json: Json = False,
) -> None:
    """Score a model on a release's test split, with intervals and slices."""
    console.needs_stack()
    from flows.report import evaluation
    from flows.steps import evaluate_version

    report = evaluate_version(version, release, console.progress)
    console.show(report, json, lambda: evaluation(report))


@app.command()
def plan(
    profile: Annotated[str, typer.Option(help="Name of a profile, or its file.")] = "unimedvl-14b",
    gpus: Annotated[int, typer.Option(min=1)] = 8,
    memory_gb: Annotated[float, typer.Option(min=0.01, help="Memory of one GPU.")] = 80,
    peak_tflops: Annotated[float, typer.Option(min=0.01, help="Dense bfloat16 peak of one GPU (H100: 989, A100: 312).")] = 989,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the peak that training reaches.")] = 0.45,
    json: Json = False,
) -> None:
    """What training a profile begins with and takes: parameters, memory a GPU, time of a step. Exit 3: it does not fit."""
    from flows.report import plans
    from model.curriculum import BOOTSTRAP, starts
    from model.plan import Hardware
    from model.plan import plan as plan_stage
    from ray_jobs.params import find_profile, load_params

    params, hardware = load_params(find_profile(profile)), Hardware(gpus, memory_gb, peak_tflops, mfu)
    found = [plan_stage(params.model, stage, params.training, hardware) for stage in params.curriculum]
    begun = [params.begins_with(start) for start in starts(params.curriculum, BOOTSTRAP)]
    console.show([p.to_json() | {"start": start} for p, start in zip(found, begun)], json, lambda: plans(found, begun, hardware, params.training))
    raise typer.Exit(console.DONE if all(p.fits for p in found) else console.REFUSED)


@app.command()
def promote(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "candidate", json: Json = False) -> None:
    """Make a version champion by hand; its gate decision is kept with who asked for it. Exit 3: the gate had said no."""
    console.needs_stack()
    import getpass

    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    chosen = registry.resolve(version)
    decisions = registry.records(chosen, "gate")
    if not decisions:
        raise console.fail(f"{chosen} was never judged; `unimed retrain` does", console.NO_EVIDENCE)
    if decisions[-1]["verdict"] != "pass":
        raise console.fail(f"the gate said {decisions[-1]['verdict']} to {chosen}; `unimed models show {chosen}` tells why", console.REFUSED)
    registry.add_record(chosen, "approval", {"by": getpass.getuser()})
    alias = registry.promote(chosen)
    registry.add_record(chosen, "promotion", {"by": getpass.getuser()})
    console.show(vars(alias), json, lambda: f"champion is {alias.version}; `unimed deploy` serves it")


@app.command()
def rollback(json: Json = False) -> None:
    """Make the previous champion champion again, and serve it."""
    console.needs_stack()
    from infra.registry import ModelRegistry

    alias = ModelRegistry().rollback()
    served = _deploy(alias.version)
    console.show(served, json, lambda: f"champion is {alias.version} again, served at {served['url']}")


@app.command()
def deploy(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion", json: Json = False) -> None:
    """Switch the endpoint to a version; no request is lost."""
    console.needs_stack()
    from infra.registry import ModelRegistry

    served = _deploy(ModelRegistry().resolve(version))
    console.show(served, json, lambda: f"{served['version']}: {served['how']}, {served['url']}/v1")


def _deploy(version: str) -> dict:
    from infra.settings import get_settings
    from ray_jobs.params import load_params
    from ray_jobs.serve.deploy import deploy as switch

    return switch(version, load_params(get_settings().params_file).serving, console.progress)


@app.command()
def ask(image: Annotated[Path, typer.Argument(help="A PNG, JPEG … file.")], question: str, model: str = "unimedvl", json: Json = False) -> None:
    """Ask the served model about a picture."""
    from flows import client

    if not image.is_file():
        raise console.fail(f"{image} is no file", console.USAGE)
    answer = client.ask(image.read_bytes(), question, model)
    console.show({"answer": answer.text, "model": answer.model}, json, lambda: answer.text)


@app.command()
def draw(
    prompt: str,
    out: Annotated[Path, typer.Option("-o", "--out", callback=console.file_to_write, help="PNG file to write.")] = Path("drawing.png"),
    seed: int = 0,
    model: str = "unimedvl",
    json: Json = False,
) -> None:
    """Let the served model draw a picture."""
    from flows import client

    out.write_bytes(client.draw(prompt, seed, model))
    console.show({"file": str(out.resolve())}, json, lambda: str(out))


@app.command()
def drift(
    hours: Annotated[float | None, typer.Option(help="Length of the window; the profile's by default.")] = None,
    act: Annotated[bool, typer.Option(help="Let a confirmed drift start a retraining.")] = True,
    json: Json = False,
) -> None:
    """Compare the request log with the champion's reference window. Exit 4: too few requests."""
    if hours is not None and not 0 < hours <= MOST_HOURS:
        raise console.fail(f"--hours is above 0 and at most {MOST_HOURS:,}", console.USAGE)
    console.needs_stack()
    from datetime import UTC, datetime, timedelta

    from flows.watch_drift import watch_drift

    result = watch_drift(since=datetime.now(UTC) - timedelta(hours=hours) if hours else None, act=act)
    console.show(result, json, lambda: f"{result['verdict']} ({', '.join(result['drifted']) or 'no column'} drifted), retraining: {result['retraining']}\n{result['html'] or ''}")
    raise typer.Exit(console.NO_EVIDENCE if result["verdict"] == "insufficient" else console.DONE)


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
