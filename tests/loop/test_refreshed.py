"""A refresh on the running stack: the champion goes on with new data, and with old."""

import json
import subprocess
import sys

from tests.loop.test_patients import fill, unimed


def test_a_refresh_goes_on_from_the_champion_with_old_and_new_data_and_is_judged(first, tmp_path):
    from flows.retrain import retrain
    from infra.registry import ModelRegistry
    from infra.store import log_store
    from ray_jobs import runs

    fill(tmp_path, range(200, 240), source="annex")
    assert unimed("add", str(tmp_path), "--json")["samples"]["kept"] == 40
    champion = ModelRegistry().alias("champion").version
    known = ModelRegistry().get(champion).lineage["release"]
    done = retrain(reason="test", refresh=True, deploy=False)

    assert [(stage["stage"], stage["how"], stage["steps"]) for stage in done["stages"]] == [("champion", "up to date", 0), ("refresh", "ran", 10)]
    run = runs.find("refresh")
    told = log_store().get_json(f"jobs/{run}/inputs.json")
    assert (told["start"]["version"], told["known_release"]) == (champion, known) != (champion, told["release"])
    assert runs.read(run).metrics["step"].iloc[-1] == 10
    mixed = next(step for step in range(1, 11) if {"annex"} < sources(runs.samples_of(run, step)))
    assert {"annex"} < sources(which(run, mixed)), "new and old"
    assert done["champion"] and done["verdict"] == ModelRegistry().records(done["candidate"], "gate")[-1]["verdict"]


def which(run: str, step: int) -> list[dict]:
    found = subprocess.run([sys.executable, "-m", "flows.cli", "train", "which", run, "--step", str(step), "--json"], capture_output=True, text=True, timeout=120)
    return json.loads(found.stdout)["samples"]


def sources(samples: list[dict]) -> set[str]:
    return {sample["sample"].split("/")[0] for sample in samples}
