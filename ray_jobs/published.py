"""The stage before the first, with published weights: `python -m ray_jobs.published --inputs published.json`.

Checks them, trains nothing, and publishes them as the checkpoint that stages begin with. Inputs: `model` (what the profile
takes the network to be) and `checkpoint`: `files` (what tells their content, by name), `address` (where they lie) and `again`
(send also what the store has already).
"""

import tempfile
from pathlib import Path

from infra.checksums import kept_sha256
from infra.jobs import entrypoint
from model.config import EXTRA_FILE, ModelConfig
from model.published_start import start_config
from model.weights import CheckpointError
from ray_jobs.checkpoint_source import at_hand, identify
from ray_jobs.checkpoints import publish_files


def run(inputs: dict) -> dict:
    """Publish the starting checkpoint; returns its record. The same files under the same configuration give the same record.

    Raises:
        CheckpointError: the weights are not those of the network, or others than when the retraining began.
    """
    told = inputs["checkpoint"]
    if identify(told["address"], _say) != told["files"]:
        raise CheckpointError(f"{told['address']} has changed since the retraining began; run it again")
    with at_hand(told["address"], _say) as folder, tempfile.TemporaryDirectory() as made:
        start_config(folder, ModelConfig(**inputs["model"])).save_extras(made)
        _say(f"{told['address']}: every tensor is there, of the right shape")
        files = {name: folder / name for name in told["files"]} | {EXTRA_FILE: Path(made) / EXTRA_FILE}
        record = publish_files(files, {name: kept_sha256(path, _say) for name, path in files.items()}, "bootstrap", told["again"], _say)
    return {**record, "stage": "bootstrap", "steps": 0, "history": [], "scores": {}}


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    entrypoint(run)
