"""Do the paper's claims about its curriculum hold at tiny scale? `python -m bench.curriculum`.

Trains the tiny network on the built-in sources (and `--add FOLDER`) in five ways at equal tokens, several seeds each: the
three stages of `params.yaml` in order, their mean mixture all at once, their mixtures in reverse, and the three stages
with understanding or generation alone. Learning rates and trainable parts go with a stage's place, so that only the data
differ. Answers whatever comes out; differences within the intervals say nothing. `--read FILE [FILE ...]` tells what
earlier runs saved, taken together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.rows import Row, circumstances
from infra.records import digest, source_fingerprint, write_json_atomic
from model.curriculum import StageParams, TrainingParams
from ray_jobs.params import Params, load_params

REPO = Path(__file__).resolve().parent.parent
VARIANTS = ("curriculum", "all-at-once", "reversed", "understanding-only", "generation-only")
# Table 9 of the paper: SLAKE accuracy, gFID; per variant that it reports.
PAPER = {"curriculum": ("0.754", "96.29"), "all-at-once": ("0.656", "123.48"), "understanding-only": ("0.548", ""), "generation-only": ("", "118.60")}
METRICS = {"answers": "share of test questions answered right", "drawings": "share of drawings of the modality asked for", "velocity": "velocity loss on test drawings (less is better)"}
# What the curriculum is compared with, and by which metric.
CLAIMS = (("answers", "all-at-once"), ("answers", "reversed"), ("answers", "understanding-only"), ("drawings", "all-at-once"), ("drawings", "reversed"), ("drawings", "generation-only"))


def stages(variant: str, params: Params, steps: int) -> list[StageParams]:
    """The variant's stages with `steps` steps in all, shared out as in the profile."""
    given = params.curriculum
    total = sum(stage.steps for stage in given)
    mixtures = [stage.mixture for stage in given]
    if variant == "reversed":
        mixtures.reverse()
    if variant.endswith("-only"):
        kept = ("text", "understanding") if variant == "understanding-only" else ("generation",)
        mixtures = [{task: weight for task, weight in mixture.items() if task in kept} for mixture in mixtures]
    if variant == "all-at-once":
        mixed: dict[str, float] = {}
        for stage in given:
            for task, share in stage.shares.items():
                mixed[task] = mixed.get(task, 0) + share * stage.steps / total
        return [given[0].model_copy(update={"name": "at-once", "steps": steps, "mixture": mixed, "evaluate_every": None})]
    return [stage.model_copy(update={"steps": max(1, round(steps * stage.steps / total)), "mixture": mixture, "evaluate_every": None}) for stage, mixture in zip(given, mixtures)]


def one(plan: dict) -> dict:
    """Train and judge one variant with one seed, in this process."""
    import torch

    from infra.store import model_store
    from model import UniMedVL
    from ray_jobs import benchmarks
    from ray_jobs.checkpoints import fetch_folder, publish_folder
    from ray_jobs.evaluate_params import EvaluationParams
    from ray_jobs.notice import Notice
    from ray_jobs.place import alone
    from ray_jobs.releases import open_release
    from ray_jobs.run_log import RunLog
    from ray_jobs.stage_export import export_average
    from ray_jobs.train import work_on

    params = load_params(Path(os.environ["UNIMED_PARAMS_FILE"]))
    training = TrainingParams(workers=1, streams=params.training.streams, checkpoint_every=10**6, log_every=50)
    start = plan["start"]
    for number, stage in enumerate(stages(plan["variant"], params, plan["steps"])):
        run = f"{plan['variant']}-{plan['seed']}-{number}"
        inputs = {"release": plan["release"], "start": start, "stage": stage.model_dump(mode="json"), "training": training.model_dump(mode="json"), "seed": plan["seed"]}
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(run)
            work_on(inputs, run, alone(), log, Notice(), Path(folder) / "scratch", under_ray=False)
            log.close()
            out = Path(folder) / "out"
            out.mkdir()
            export_average(fetch_folder(start), run, stage.steps, model_store(), out)
            start = publish_folder(out, run)
        model_store().delete_dir(f"runs/{run}/")
    model, reader = UniMedVL.from_pretrained(fetch_folder(start)), open_release(plan["release"])
    few = EvaluationParams(max_questions=plan["questions"], max_drawings=plan["drawings"])
    torch.set_num_threads(1)
    answers = [item.score for item in benchmarks.vqa(model, reader, few)]
    drawn = [item.score for item in benchmarks.drawing(model, reader, few, plan["seed"], benchmarks.Drawings())]
    return {"answers": statistics.mean(answers), "drawings": statistics.mean(drawn), "velocity": _velocity(model, reader, params.curriculum[-1])}


def _velocity(model, reader, stage: StageParams) -> float:
    """Velocity loss of prompts to draw on test pictures, at fixed noise."""
    import torch

    from model.curriculum import Dropout
    from ray_jobs.loader import Loader
    from ray_jobs.plans import Planner
    from ray_jobs.step import Stepper

    plain = stage.model_copy(update={"name": "velocity", "mixture": {"generation": 1}, "dropout": Dropout(text=0, vit=0, vae=0)})
    loader = Loader(reader, Planner(model, plain), plain, 0, [0], 1, split="test")
    losses = []
    with torch.no_grad():
        for number in range(4):
            (pack,) = next(loader).packs.values()
            losses.append(model(pack, Stepper.noise_of(pack, f"velocity/{number}")).mse.mean().item())
    loader.close()
    return statistics.mean(losses)


def measure(seeds: int, steps: int, add: list[Path], quick: bool, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Scores of every variant: metric -> one value a seed. What the folder holds of them is not measured again."""
    os.environ |= {"UNIMED_STATE_DIR": str(folder / "state"), "UNIMED_PARAMS_FILE": str(REPO / ("tests/params.yaml" if quick else "params.yaml"))}
    from infra.settings import get_settings
    from infra.stack import Stack

    get_settings.cache_clear()
    try:
        Stack().up(services=["s3"])
        get_settings().export()
        return _train_all(seeds, steps, add, quick, folder)
    finally:
        Stack().down()


def _train_all(seeds: int, steps: int, add: list[Path], quick: bool, folder: Path) -> dict[str, dict[str, list[float]]]:
    from flows.releases import make_release
    from ray_jobs.bootstrap import run as bootstrap
    from ray_jobs.ingest import add_source

    params = load_params(Path(os.environ["UNIMED_PARAMS_FILE"]))
    for path in add:
        add_source(path)
    release = make_release(force=False, on_line=_tell)["tag"]
    # Of another profile or other code, nothing that was kept may be taken for this one's.
    kept = folder / digest({"profile": params.model_dump(mode="json"), "code": source_fingerprint("bench", "corpus", "model", "ray_jobs")})[:12]
    kept.mkdir(exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {variant: {metric: [] for metric in METRICS} for variant in VARIANTS}
    for seed in range(1, seeds + 1):
        begin = {"release": release, "model": params.model.model_dump(mode="json"), "bootstrap": params.bootstrap.model_dump(mode="json"), "threads": 2, "seed": seed}
        start = _once(kept, "start", begin, bootstrap)
        size = {"questions": 20, "drawings": 8} if quick else {"questions": 150, "drawings": 48}
        plans = [{"variant": variant, "seed": seed, "steps": steps, "release": release, "start": {k: start[k] for k in ("prefix", "content_hash")}, **size} for variant in VARIANTS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for plan, scores in zip(plans, pool.map(lambda plan: _once(kept, plan["variant"], plan, _in_a_process), plans)):
                _tell(f"{plan['variant']}, seed {seed}: " + ", ".join(f"{metric} {score:.3f}" for metric, score in scores.items()))
                for metric, score in scores.items():
                    found[plan["variant"]][metric].append(score)
    return found


def _once(folder: Path, name: str, plan: dict, work: Callable[[dict], dict]) -> dict:
    """What `work` makes of a plan; kept in the folder, and taken from there the next time."""
    path = folder / f"{name}-{digest(plan)[:12]}.json"
    if not path.exists():
        write_json_atomic(path, work(plan))
    return json.loads(path.read_text())


def _in_a_process(plan: dict) -> dict:
    done = subprocess.run([sys.executable, "-m", "bench.curriculum", "--one", json.dumps(plan)], capture_output=True, text=True, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"{plan['variant']}, seed {plan['seed']}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], float("nan")
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def table(found: dict) -> str:
    """The result as a Markdown table, beside the paper's."""
    lines = ["| data | answers right | drawings right | velocity loss | paper: SLAKE | paper: gFID |", "| --- | --- | --- | --- | --- | --- |"]
    for variant, scores in found.items():
        told = ["{:.3f} ± {:.3f}".format(*interval(scores[metric])) for metric in METRICS]
        lines.append(f"| {' | '.join((variant, *told, *PAPER.get(variant, ('', ''))))} |")
    return "\n".join(lines)


def differences(found: dict) -> str:
    """How far the curriculum is ahead of each other way, seed by seed."""
    lines = []
    for metric, peer in CLAIMS:
        ahead = [ours - theirs for ours, theirs in zip(found["curriculum"][metric], found[peer][metric], strict=True)]
        lines.append("{}, curriculum less {}: {:+.3f} ± {:.3f}, ahead in {} of {}".format(metric, peer, *interval(ahead), sum(by > 0 for by in ahead), len(ahead)))
    return "\n".join(lines)


def rows(found: dict) -> list[Row]:
    """The claims as comparisons: the curriculum beside each other way."""
    ours = {metric: interval(found["curriculum"][metric])[0] for metric in METRICS}
    return [Row(f"{metric}: curriculum", ours[metric], "share", peer, max(interval(found[peer][metric])[0], 1e-9), goal=1.0) for metric, peer in CLAIMS]


def together(files: list[Path]) -> dict[str, dict[str, list[float]]]:
    """The scores that `--save` has written into these files, as if of one run.

    Raises:
        ValueError: they were not trained for as many steps.
    """
    saved = [json.loads(file.read_text()) for file in files]
    if len(steps := {one["steps"] for one in saved}) > 1:
        raise ValueError(f"the files are of runs of {' and '.join(map(str, sorted(steps)))} steps, which say nothing together")
    return {variant: {metric: [value for one in saved for value in one["scores"][variant][metric]] for metric in METRICS} for variant in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 11))
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of every variant, over all its stages")
    parser.add_argument("--add", type=Path, action="append", default=[], metavar="FOLDER", help="a folder of real pictures to take in as well")
    parser.add_argument("--quick", action="store_true", help="a check of shape: one seed, few steps")
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write everything with hardware, versions and commit")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what is done in this folder, and go on from what it holds")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="measure nothing: tell what these files of --save hold together")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(json.loads(arguments.one))))
        return
    if arguments.read:
        try:
            found = together(arguments.read)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(table(found), differences(found), sep="\n\n")
        return
    steps, seeds = (6, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    with tempfile.TemporaryDirectory() as folder:
        kept = arguments.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        found = measure(seeds, steps, arguments.add, arguments.quick, kept.resolve())
    compared = [row.to_json() for row in rows(found)]
    if arguments.save:
        arguments.save.write_text(json.dumps(circumstances() | {"steps": steps, "seeds": seeds, "scores": found, "rows": compared}, indent=1) + "\n")
    print(json.dumps(compared, indent=1) if arguments.json else table(found))


if __name__ == "__main__":
    main()
