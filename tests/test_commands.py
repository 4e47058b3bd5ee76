"""Commands that need no stack, run as a user runs them."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from infra.settings import REPO, Settings, get_settings
from model.curriculum import StageParams
from ray_jobs.params import Params, ParamsError, find_profile, load_params


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("gpus, code", [("8", 0), ("2", 3)])
def test_plan_says_whether_the_14b_fits(gpus, code):
    done = run("flows.cli", "plan", "--profile", "unimedvl-14b", "--gpus", gpus, "--json")
    assert done.returncode == code, done.stderr
    assert [stage["fits"] for stage in json.loads(done.stdout)] == [code == 0] * 3


def test_plan_says_what_stages_begin_with():
    begun = [stage["start"] for stage in json.loads(run("flows.cli", "plan", "--json").stdout)]
    assert begun == ["s3://unimed-models/published/BAGEL-7B-MoT", "foundation", "instruction"]
    assert "VAE trained first" in run("flows.cli", "plan", "--profile", "tiny").stdout


@pytest.mark.parametrize("gpus, told", [("2", ""), ("3", "set them to 3 and 3")])
def test_plan_says_what_other_gpus_ask_of_the_profile(gpus, told):
    said = run("flows.cli", "plan", "--profile", "tiny", "--gpus", gpus).stdout
    assert told in said and bool(told) == ("set them to" in said)


def test_plan_names_the_profiles_there_are():
    done = run("flows.cli", "plan", "--profile", "absent")
    assert done.returncode == 1 and "unimedvl-14b" in done.stderr


@pytest.mark.parametrize("option", ["--peak-tflops", "--memory-gb", "--mfu", "--gpus"])
@pytest.mark.parametrize("value", ["0", "-5", "nan"])
def test_a_plan_is_of_hardware_there_can_be(option, value):
    assert run("flows.cli", "plan", option, value).returncode == 2


@pytest.mark.parametrize("text, told", [
    (b"seed: \xe9", "position 6"),
    (b"seed: 2024-13-45", "is no timestamp.*line 1"),
    (b"profile: a\nseed: !!int abc", "'abc' is no int.*line 2"),
    (b"seed: !!float abc", "is no float"),
    (b"seed: !!bool abc", "is no bool"),
    (b"seed: !!timestamp abc", "is no timestamp"),
    (b"seed: " + b"9" * 5000, "is no int"),
    (b"seed: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
    (b"seed: 1\nprofile: a\nseed: 2", "'seed' stands there twice.*line 3"),
    (b"drift: {alpha: 0.1, 'alpha': 0.2}", "'alpha' stands there twice.*line 1, column 21"),
])
def test_what_is_wrong_with_a_parameter_file_is_told(tmp_path, text, told):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    with pytest.raises(ParamsError, match=f"(?s){path}.*{told}"):
        load_params(path)


STAGE = {"name": "one", "steps": 10, "learning_rate": 0.001, "mixture": {"text": 1}}


@pytest.mark.parametrize("section, told", [
    ({"trainable": []}, "trainable"),
    ({"mixture": {"text": float("inf")}}, "mixture.text"),
    ({"mixture": {"text": 1e308, "generation": 1e308}}, "mixture: .*finite"),
    ({"ce_weight": 0, "mse_weight": 0}, "nothing to learn from"),
    ({"ce_weight": 0, "mixture": {"understanding": 1, "text": 2}}, "ce_weight is 0"),
    ({"trainable": ["generation"], "mixture": {"understanding": 1, "generation": 0}}, "learns from drawing alone"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"ce_weight": float("nan")}, "ce_weight"),
    ({"resolution": {"vae": [1, 2]}}, "resolution.vae"),
    ({"min_learning_rate": 0.1}, "min_learning_rate=0.1 exceeds"),
    ({"warmup_steps": 11}, "warmup_steps=11 exceeds"),
    ({"tokens_per_pack": 512, "tokens_per_sample": 513}, "tokens_per_sample=513 exceeds"),
    ({"bootstrap": {"checkpoint": "BAGEL-7B-MoT"}}, "bootstrap.checkpoint: .*absolute path or s3://bucket/prefix"),
    ({"bootstrap": {"checkpoint": "/weights", "vae_steps": 9}}, "nothing is trained: leave out vae_steps"),
    ({"replay": 0.5}, "replay=0.5, but it goes back to 'bootstrap'"),
    ({"refresh": [STAGE | {"name": "a", "start": "bootstrap"}, STAGE | {"name": "b", "replay": 0.5}]}, "'b': replay=0.5, but"),
    ({"trainable": ["vit", "connector"], "mixture": {"text": 1, "understanding": 0}}, "looked at alone"),
    ({"name": "a" * 300}, "name"),
    ({"modalities": {"generation": {"CT": 1}}}, "modalities of generation"),
    ({"gate": {"rules": [{"benchmark": "*", "floor": float("nan")}]}}, "floor"),
    ({"drift": {"window_hours": float("inf")}}, "window_hours"),
    ({"training": {"threads_per_worker": 1000000}}, "threads_per_worker"),
    ({"corpus": {"quality": {"burned_in": {"modalities": ["Ultrasund"]}}}}, r"burned_in.modalities.0: .*Ultrasound.*'Ultrasund'"),
    ({"corpus": {"expectations": {"modalities": ["CTA"]}}}, r"expectations.modalities.0: .*no modality"),
    ({"corpus": {"quality": {"window_percentiles": [99.5, 0.5]}}}, "window_percentiles: .*lower and a higher"),
    ({"corpus": {"quality": {"min_side": 600}}}, "min_side=600 exceeds max_side=512"),
    ({"corpus": {"quality": {"min_caption": 2000}}}, "min_caption=2000 exceeds max_text=1024"),
    ({"corpus": {"quality": {"modality": {"disagrees": 0.2}}}}, "doubted=0.4 exceeds disagrees=0.2"),
    ({"corpus": {"quality": {"languages": ["english"]}}}, "languages.0"),
    ({"corpus": {"quality": {"licenses": []}}}, "licenses"),
])
def test_what_can_do_no_good_is_refused_before_anything_starts(tmp_path, section, told):
    sections = {key: value for key, value in section.items() if key in Params.model_fields}
    stage = STAGE | {key: value for key, value in section.items() if key not in sections}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"curriculum": [stage]} | sections))
    with pytest.raises(ParamsError, match=told):
        load_params(path)


def test_what_profiles_say_is_accepted_at_any_share_of_their_steps():
    for profile in ("tiny", "unimedvl-14b", str(Path(__file__).parent / "params.yaml")):
        short = load_params(find_profile(profile)).shortened(0.01)
        # As a worker reads it.
        assert [StageParams(**stage.model_dump(mode="json")) for stage in short.curriculum] == list(short.curriculum)
        assert all(max(map(stage.learning_rate_at, range(stage.steps))) == stage.learning_rate for stage in short.curriculum)


def test_a_folder_is_no_parameter_file(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read.*UNIMED_PARAMS_FILE"):
        load_params(tmp_path)


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_a_share_of_the_steps_is_a_share(share):
    assert run("flows.cli", "retrain", "--share", share).returncode == 2


def unimed(monkeypatch, *arguments: str) -> int:
    """The exit code of a command run within this process."""
    from flows import cli

    monkeypatch.setattr(sys, "argv", ["unimed", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_an_empty_variable_is_not_the_current_folder(monkeypatch):
    for name in ("UNIMED_STATE_DIR", "UNIMED_PARAMS_FILE", "UNIMED_REPO_DIR"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert (settings.state_dir, settings.params_file, settings.repo_dir) == (REPO / ".unimed", REPO / "params.yaml", REPO)


@pytest.mark.parametrize("hours", ["nan", "inf", "1e12", "0", "-5"])
def test_a_drift_window_has_a_length(monkeypatch, capsys, hours):
    assert unimed(monkeypatch, "drift", "--hours", hours) == 2
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["show"], ["show", "unified"], ["stop"], ["which", "--step", "1"]])
def test_a_run_has_a_name(monkeypatch, capsys, verb):
    assert unimed(monkeypatch, "train", *verb, "") == 2
    assert "not empty" in capsys.readouterr().err


def test_steps_count_from_1(monkeypatch, capsys):
    assert unimed(monkeypatch, "train", "which", "unified", "--step", "0") == 2
    assert "greater than or equal to 1" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("command", [["draw", "CT"], ["train", "show", "unified"]])
@pytest.mark.parametrize("place, told", [(".", "is a folder"), ("absent/x.png", "no folder")])
def test_nothing_is_made_for_a_file_that_cannot_be_written(monkeypatch, capsys, tmp_path, command, place, told):
    assert unimed(monkeypatch, *command, "-o", str(tmp_path / place)) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


def raising(error: BaseException):
    def work(*_, **__):
        raise error

    return work


def test_an_interruption_is_told(monkeypatch, capsys):
    monkeypatch.setattr("infra.doctor.examine", raising(KeyboardInterrupt()))
    assert unimed(monkeypatch, "doctor") == 130
    assert capsys.readouterr().err == "unimed: interrupted; running jobs go on, the same command attaches to them again\n"


def test_files_and_connections_that_fail_are_told_in_a_line(monkeypatch, capsys):
    import requests

    for error, told in ((IsADirectoryError(21, "Is a directory", "x"), "Is a directory"), (requests.exceptions.ConnectionError("refused"), "unimed up")):
        monkeypatch.setattr("infra.doctor.examine", raising(error))
        assert unimed(monkeypatch, "doctor") == 1
        assert (line := capsys.readouterr().err).count("\n") == 1 and told in line
    monkeypatch.setattr("infra.doctor.examine", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        unimed(monkeypatch, "doctor")


@pytest.mark.parametrize("name", [".env", "stack.env"])
def test_settings_that_are_no_text_are_told_in_a_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"NAME=J\xe9r\n")
    done = subprocess.run([sys.executable, "-m", "flows.cli", "status"], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"UNIMED_STATE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "stack.env of the state folder are no UTF-8 text" in done.stderr


def test_letters_that_a_terminal_has_not_are_written_out(tmp_path):
    done = subprocess.run([sys.executable, "-m", "flows.cli", "status"], capture_output=True, text=True, env=os.environ | {"UNIMED_STATE_DIR": str(tmp_path / "片"), "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "\\u7247" in done.stdout, done.stderr


class Refusing(BaseHTTPRequestHandler):
    """An endpoint that refuses everything, in OpenAI's words or in none."""

    def do_POST(self) -> None:
        plain = "images" in self.path
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(502 if plain else 404)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.end_headers()
        self.wfile.write(b"gone" if plain else json.dumps({"error": {"message": "no model zz", "code": "model_not_found"}}).encode())

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("named", ["", "corp.example", "*"])
def test_a_proxy_is_not_the_way_to_this_machine(monkeypatch, capsys, tmp_path, named):
    """As in a clinic's network, where all that leaves it goes through one."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", named)
    monkeypatch.setenv("no_proxy", "")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        monkeypatch.setenv("UNIMED_SERVE_URL", f"http://127.0.0.1:{endpoint.server_port}")
        monkeypatch.setenv("UNIMED_API_KEY", "k")
        get_settings.cache_clear()
        assert unimed(monkeypatch, "draw", "CT", "-o", str(tmp_path / "x.png")) == 1 and "the endpoint" in capsys.readouterr().err
        endpoint.shutdown()
    told = get_settings().process_environment()
    assert told["no_proxy"] == told["NO_PROXY"] == {"": "127.0.0.1,localhost", "corp.example": "corp.example,127.0.0.1,localhost", "*": "*"}[named]
    get_settings.cache_clear()


def test_a_refusal_is_told_in_the_endpoints_words(monkeypatch):
    import openai

    from flows.client import NotAnswered, ask_with, draw_with

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{endpoint.server_port}/v1", api_key="k", max_retries=0)
        with pytest.raises(NotAnswered, match="^the endpoint says: no model zz$"):
            ask_with(client, b"picture", "what?", "zz")
        with pytest.raises(NotAnswered, match="gone|502"):
            draw_with(client, "CT")
        endpoint.shutdown()
    with pytest.raises(NotAnswered, match="Connection"):
        draw_with(client, "CT")


class Strange(Refusing):
    """Another program at the endpoint's address, which takes everything."""

    def do_POST(self) -> None:
        self.do_GET()


@pytest.mark.parametrize("key, told", [("", "no key to"), ("schlüssel", "no key to"), ("k", "no endpoint of OpenAI's API")])
def test_without_a_key_or_before_another_program_nothing_is_asked(monkeypatch, capsys, tmp_path, key, told):
    (tmp_path / "x.png").write_bytes(b"picture")
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        for name, value in (("SERVE_URL", f"http://127.0.0.1:{endpoint.server_port}"), ("API_KEY", key), ("STATE_DIR", str(tmp_path))):
            monkeypatch.setenv(f"UNIMED_{name}", value)
        for command in (["draw", "CT", "-o", str(tmp_path / "y.png")], ["ask", str(tmp_path / "x.png"), "what?"]):
            get_settings.cache_clear()
            assert unimed(monkeypatch, *command) == 1
            assert (line := capsys.readouterr().err).count("\n") == 1 and told in line
        endpoint.shutdown()
    get_settings.cache_clear()


def test_what_libraries_print_stays_out_of_the_result():
    said = "from flows import console; console.results_only(); print('(raylet) WARNING: many workers'); console.show({'kept': 1}, True, str)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"kept": 1} and "many workers" in done.stderr


def test_what_steers_a_terminal_is_written_out(capsys, monkeypatch):
    """Names of files and ids of records are told, and may hold anything."""
    from flows import console

    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    rows = [["s", "a\x1b[2J\nb\u202e\x00é 中\udc80.png", "no-text"]]
    console.show(rows, False, lambda: f"one\x1b[31m\n{console.table(['source', 'where', 'reason'], rows)}")
    assert capsys.readouterr().out.splitlines() == [
        "one\\x1b[31m",
        "source  where                               reason",
        "------  ----------------------------------  -------",
        "s       a\\x1b[2J\\nb\\u202e\\x00é 中\\udc80.png  no-text",
    ]


@pytest.mark.parametrize("bench, count", [("network", 4), pytest.param("training", 5, marks=pytest.mark.slow)])
def test_a_bench_prints_rows(bench, count):
    done = run(f"bench.{bench}", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == count
    for row in rows:
        assert set(row) == {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "met"}
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"]) and row["met"] == (row["ratio"] >= row["goal"])


def test_the_documented_science_is_what_the_committed_results_say():
    """Two runs of three seeds, read together."""
    root = Path(__file__).parent.parent
    done = run("bench.curriculum", "--read", *(str(root / "bench" / "results" / f"curriculum-2026-11-{day}.json") for day in (25, 28)))
    assert done.returncode == 0, done.stderr
    table, ahead = done.stdout.split("\n\n")
    assert table in (root / "docs" / "training.md").read_text()
    assert "answers, curriculum less all-at-once: +0.054 ± 0.048, ahead in 5 of 6" in ahead.splitlines()


def test_results_of_runs_that_differ_are_not_read_together(tmp_path):
    for steps in (5, 6):
        (tmp_path / f"{steps}.json").write_text(json.dumps({"steps": steps}))
    done = run("bench.curriculum", "--read", str(tmp_path / "5.json"), str(tmp_path / "6.json"))
    assert done.returncode == 2 and "runs of 5 and 6 steps" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_scale_bench_measures_and_projects(tmp_path):
    done = run("bench.corpus_scale", "--quick", "--json", "--save", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["rows"]) == 4 and json.loads(done.stdout) == found["rows"]
    assert [r["records"] for r in found["releases"]] == [500, 1000] and found["releases"][0]["peak_mb"] > 50
    assert found["projected"]["records"] == 5_600_000 and found["projected"]["no_op_cpu_s"] > 0 and found["commit"]


def test_projections_are_curves_through_what_was_measured():
    from bench.corpus_scale import project

    sizes = (100, 200, 300)
    lines, curves = ("no_op_cpu_s", "peak_mb", "expectations_cpu_s"), ("first_cpu_s", "changed_cpu_s")
    releases = [dict.fromkeys(lines, 1 + n) | dict.fromkeys(curves, n * n) | {"records": n} for n in sizes]
    found = project(releases, [{"files": n, "add_cpu_s": 2 * n, "status_cpu_s": n} for n in sizes], goal=1000)
    assert (found["no_op_cpu_s"], found["first_cpu_s"], found["dvc_add_cpu_s"]) == pytest.approx((1001, 1e6, 2000), rel=1e-4)
