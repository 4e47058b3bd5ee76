"""Records examined on the cluster, of which a process is killed."""

import json

import numpy as np
import psutil
import pytest
from PIL import Image

from ray_jobs.examination import BATCH, HERE
from ray_jobs.ingest import add_source

COUNT = (HERE + 4) * BATCH + 7


@pytest.fixture
def crowd(tmp_path):
    """More pictures than are examined where they are read, some of which are missing."""
    lines = []
    for n in range(COUNT):
        if n % 50:
            coarse = np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(coarse).resize((136, 136), Image.Resampling.BICUBIC).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"id": f"c{n}", "image": f"{n}.png", "modality": "CT", "license": "CC0-1.0", "source": "crowd", "caption": f"CT image number {n}."}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def cluster(stack):
    """Processes of the cluster that examine."""
    import ray

    yield lambda: [p for p in stack._process("ray").children(recursive=True) if "_Examiner" in " ".join(p.cmdline())]
    ray.shutdown()


@pytest.mark.timeout(300)
def test_a_killed_process_changes_nothing(crowd, cluster):
    killed: list[psutil.Process] = []

    def strike(seen: int, _: int | None) -> None:
        if not killed and seen > (HERE + 3) * BATCH:
            there = cluster()
            for process in there[:1]:
                process.kill()
                killed.append(process)

    together = add_source(crowd, "crowd-together", workers=2, on_progress=strike)
    assert killed, "no process of the cluster was there to be killed"
    alone = add_source(crowd, "crowd-alone", workers=1)
    for name in ("records", "samples", "reasons"):
        assert together[name] == alone[name]
    assert together["reasons"]["missing-image"] == len(range(0, COUNT, 50))
    assert [shard["shard"] for shard in together["shards"]] == [shard["shard"] for shard in alone["shards"]]
