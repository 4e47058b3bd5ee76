"""What Prometheus reads of a stage, off the endpoint of a running Ray; and the dashboard that asks for it."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from math import nan
from pathlib import Path

import pytest

from ray_jobs.meter import gpu_peak
from ray_jobs.metrics import EXPORTED

REPO = Path(__file__).resolve().parent.parent.parent
STAGE = """
import ray, time
from ray_jobs.metrics import GAUGES, StageMetrics
ray.init(address="auto", log_to_driver=False)
print(ray.nodes()[0]["MetricsExportPort"], flush=True)
metrics = StageMetrics("foundation-seen", "foundation")
metrics.set({field: number + 0.5 for number, field in enumerate(GAUGES)} | {"mfu": None, "seconds": 1.0})
metrics.set({"mfu": 0.25, "ce": float("nan")})
for kind in ("skipped-sample", "skipped-sample", "rolled-back"):
    metrics.count(kind)
time.sleep(120)
"""


def test_gauges_and_counters_come_out_of_rays_endpoint(stack):
    process = subprocess.Popen([sys.executable, "-c", STAGE], stdout=subprocess.PIPE, text=True, cwd=REPO, env=os.environ | {"RAY_ADDRESS": stack.settings.ray_address})
    try:
        port = int(process.stdout.readline())
        seen, end = {}, time.monotonic() + 60
        while time.monotonic() < end and {name for name, _ in seen} != EXPORTED:
            time.sleep(1)
            seen = scrape(port)
    finally:
        process.kill()
        process.wait()
    assert {name for name, _ in seen} == EXPORTED
    assert seen["ray_unimed_training_step", ""] == 0.5 and seen["ray_unimed_training_ce", ""] == 1.5 and seen["ray_unimed_training_mfu", ""] == 0.25
    assert seen["ray_unimed_training_events_total", "skipped-sample"] == 2 and seen["ray_unimed_training_events_total", "rolled-back"] == 1


@pytest.mark.parametrize("name, tflops", [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H20", 148), ("NVIDIA A800-SXM4-80GB", 312), ("AMD Instinct MI300X", 1336), ("NVIDIA L40S", nan), ("NVIDIA GB200", nan), ("NVIDIA GeForce RTX 4090", nan)])
def test_mfu_is_told_of_cards_whose_peak_is_known(name, tflops):
    assert gpu_peak(name) == pytest.approx(tflops * 1e12, nan_ok=True)


def scrape(port: int) -> dict[tuple[str, str], float]:
    """(name, kind) -> value of the metrics that this run exports."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^(ray_unimed_training_\w+)\{(.*run="foundation-seen".*)\} (\S+)$', text, re.MULTILINE)
    return {(name, "".join(re.findall(r'kind="([\w-]+)"', labels))): float(value) for name, labels, value in found if 'stage="foundation"' in labels}


def test_the_dashboard_asks_for_all_of_them_and_nothing_else():
    text = (REPO / "infra" / "dashboards" / "training.json").read_text()
    asked = {name for panel in json.loads(text)["panels"] for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])}
    assert asked == EXPORTED and set(re.findall(r"ray_\w+", text)) == EXPORTED
