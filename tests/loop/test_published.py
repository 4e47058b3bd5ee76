"""A curriculum that begins with published weights, on the running stack."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from model.testing import make_tiny


@pytest.fixture
def folder(tmp_path):
    made = make_tiny(tmp_path / "weights")
    (made / "unimedvl_config.json").unlink()
    return made


def test_a_curriculum_begins_with_published_weights_and_says_so(first, folder, tmp_path):
    """The frozen eye of the stage is the published one; lineage and run log name the folder; a second time nothing runs."""
    from flows.report import find_release
    from flows.steps import register, train_curriculum
    from infra.registry import ModelRegistry
    from infra.settings import get_settings
    from model.checkpoint import open_weights
    from model.curriculum import BOOTSTRAP, PARTS
    from ray_jobs.checkpoints import fetch_folder
    from ray_jobs.params import Params, load_params

    told, release = load_params(get_settings().params_file), find_release(None)
    stage = told.curriculum[0].model_copy(update={"name": "begun", "steps": 2, "evaluate_every": None, "trainable": tuple(part for part in PARTS if part != "vit")})

    def params(place) -> Params:
        return told.model_copy(update={"bootstrap": type(told.bootstrap)(checkpoint=str(place)), "curriculum": (stage,)})

    lines = []
    stages = train_curriculum(params(folder), [stage], release, BOOTSTRAP, False, lines.append)
    assert [(s["stage"], s["how"], s.get("origin")) for s in stages] == [(BOOTSTRAP, "ran", str(folder)), ("begun", "ran", None)]
    assert not any("vae step" in line for line in lines)
    published, learned = open_weights(folder)[0], open_weights(fetch_folder(stages[1]))[0]
    eye = [key for key in published.shapes if key.startswith("vit_model.")]
    assert eye and all(torch.equal(published.read(key), learned.read(key)) for key in eye)
    assert not torch.equal(published.read("connector.fc1.weight"), learned.read("connector.fc1.weight"))

    version = register(params(folder), release, stages, "test")
    ModelRegistry().mark_candidate(first["candidate"])
    assert [s["origin"] for s in ModelRegistry().get(version).lineage["stages"]] == [str(folder), None]
    listed = subprocess.run([sys.executable, "-m", "flows.cli", "train", "list", "--json"], capture_output=True, text=True, timeout=120)
    assert [run["start"] for run in json.loads(listed.stdout) if run["stage"] == "begun"] == [str(folder)]

    moved = shutil.move(folder, tmp_path / "moved")
    again = train_curriculum(params(moved), [stage], release, BOOTSTRAP, False, lines.append)
    assert [s["how"] for s in again] == ["up to date"] * 2 and again[1]["prefix"] == stages[1]["prefix"]


def test_a_retraining_without_its_weights_ends_before_it_begins(first, tmp_path, monkeypatch):
    from infra.settings import get_settings

    path = tmp_path / "params.yaml"
    text = get_settings().params_file.read_text().splitlines()
    path.write_text("\n".join("bootstrap: {checkpoint: /absent/weights}" if line.startswith("bootstrap:") else line for line in text))
    monkeypatch.setenv("UNIMED_PARAMS_FILE", str(path))
    done = subprocess.run([sys.executable, "-m", "flows.cli", "retrain", "--json"], capture_output=True, text=True, timeout=240)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("unimed: /absent/weights is no folder on ") and "`bootstrap.checkpoint`" in last
