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


@pytest.mark.parametrize("option", ["--peak-tflops", "--memory-gb", "--mfu", "--gpus"])
@pytest.mark.parametrize("value", ["0", "-5", "nan"])
def test_a_plan_is_of_hardware_there_can_be(option, value):
    assert run("flows.cli", "plan", option, value).returncode == 2


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_a_share_of_the_steps_is_a_share(share):
    assert run("flows.cli", "retrain", "--share", share).returncode == 2


def test_what_libraries_print_stays_out_of_the_result():
    said = "from flows import console; console.results_only(); print('(raylet) WARNING: many workers'); console.show({'kept': 1}, True, str)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"kept": 1} and "many workers" in done.stderr


@pytest.mark.parametrize("bench, count", [("network", 4), pytest.param("training", 4, marks=pytest.mark.slow)])
def test_a_bench_prints_rows(bench, count):
    done = run(f"bench.{bench}", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == count
    for row in rows:
        assert set(row) == {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "met"}
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"]) and row["met"] == (row["ratio"] >= row["goal"])


@pytest.mark.slow
def test_the_scale_bench_measures_and_projects(tmp_path):
    done = run("bench.corpus_scale", "--quick", "--save", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [r["records"] for r in found["releases"]] == [500, 1000] and found["releases"][0]["peak_mb"] > 50
    assert found["projected"]["records"] == 5_600_000 and found["projected"]["no_op_cpu_s"] > 0 and found["commit"]


def test_projections_are_curves_through_what_was_measured():
    from bench.corpus_scale import project

    sizes = (100, 200, 300)
    lines, curves = ("no_op_cpu_s", "peak_mb", "expectations_cpu_s"), ("first_cpu_s", "changed_cpu_s")
    releases = [dict.fromkeys(lines, 1 + n) | dict.fromkeys(curves, n * n) | {"records": n} for n in sizes]
    found = project(releases, [{"files": n, "add_cpu_s": 2 * n, "status_cpu_s": n} for n in sizes], goal=1000)
    assert (found["no_op_cpu_s"], found["first_cpu_s"], found["dvc_add_cpu_s"]) == pytest.approx((1001, 1e6, 2000), rel=1e-4)
