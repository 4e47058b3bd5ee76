"""Commands that need no stack, run as a user runs them."""

import json
import subprocess
import sys

import pytest


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("gpus, code", [("8", 0), ("2", 3)])
def test_plan_says_whether_the_14b_fits(gpus, code):
    done = run("flows.cli", "plan", "--profile", "unimedvl-14b", "--gpus", gpus, "--json")
    assert done.returncode == code, done.stderr
    assert [stage["fits"] for stage in json.loads(done.stdout)] == [code == 0] * 3


def test_plan_names_the_profiles_there_are():
    done = run("flows.cli", "plan", "--profile", "absent")
    assert done.returncode == 1 and "unimedvl-14b" in done.stderr


@pytest.mark.parametrize("share", ["0", "1.5"])
def test_a_share_of_the_steps_is_a_share(share):
    assert run("flows.cli", "retrain", "--share", share).returncode == 2


def test_the_network_bench_prints_rows():
    done = run("bench.network", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 4
    for row in rows:
        assert set(row) == {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "met"}
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"]) and row["met"] == (row["ratio"] >= row["goal"])
