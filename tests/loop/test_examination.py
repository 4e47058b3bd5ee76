"""Records examined on the cluster, of which a process is killed."""

import json
import os
import signal
import socket

import numpy as np
import pytest
from PIL import Image

from infra.store import corpus_store
from ray_jobs import examination
from ray_jobs.examination import BATCH, HERE
from ray_jobs.ingest import add_source

COUNT = (HERE + 4) * BATCH + 7
NAMES = ("crowd-together", "crowd-alone")


@pytest.fixture
def crowd(stack, tmp_path):
    """More pictures than are examined where they are read, some of which are missing; no release of another test finds them."""
    lines = []
    for n in range(COUNT):
        if n % 50:
            coarse = np.random.default_rng(1000 + n).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(coarse).resize((136, 136), Image.Resampling.BICUBIC).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"id": f"c{n}", "image": f"{n}.png", "modality": "CT", "license": "CC0-1.0", "source": "crowd", "caption": f"CT image number {n}."}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    yield tmp_path
    for name in NAMES:
        corpus_store().delete(f"intake/{name}.json")


@pytest.fixture
def killed(stack, tmp_path_factory, monkeypatch):
    """A file that is there once a process of the cluster was killed: the first one that examines, in the midst of its batch.

    It kills itself: when it has begun and not ended, only it can tell on a machine of any speed.
    """
    import ray

    note = tmp_path_factory.mktemp("killed") / "note"

    class Mortal(examination._Examiner):
        def examine(self, records):
            try:
                note.touch(exist_ok=False)
            except FileExistsError:
                return super().examine(records)
            super().examine(records[: len(records) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(examination, "_Examiner", Mortal)
    yield note
    ray.shutdown()


@pytest.mark.timeout(300)
def test_a_killed_process_changes_nothing(crowd, killed):
    together, alone = (add_source(crowd, name, workers=workers) for name, workers in zip(NAMES, (2, 1)))
    assert killed.exists(), "no process of the cluster examined anything"
    for name in ("records", "samples", "reasons"):
        assert together[name] == alone[name]
    assert together["reasons"]["missing-image"] == len(range(0, COUNT, 50))
    assert [shard["shard"] for shard in together["shards"]] == [shard["shard"] for shard in alone["shards"]]


def test_a_cluster_that_is_down_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for address in (nobody, f"ray://{nobody}"):
        with pytest.raises(ConnectionError, match=f"the Ray cluster at {address} does not answer; .*--workers 1"):
            examination.require_answer(address)
    examination.require_answer("auto")
