"""`python -m tests.golden FOLDER` on folders of other sizes, whole and damaged."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main, rows_of
from tests.golden.fixture import Golden
from tests.golden.other_sizes import Sizes, Writer

CHECKED_WITH = dict.fromkeys(("06_train_grads", "06_train_after_step"), "06_train")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "other"
    Writer(folder).write()
    return folder


@pytest.fixture
def folder(other, tmp_path):
    return shutil.copytree(other, tmp_path / "copy")


def rewrite(path, change):
    save_file(change(load_file(path)), path)


def add(tensors, name, number):
    tensors[name].view(-1)[0] += number
    return tensors


def test_a_folder_of_other_sizes_passes(other, capsys):
    assert main([str(other)]) == 0
    assert "in 15 cases, 0 over or missing" in capsys.readouterr().out


def test_one_head_one_layer_and_a_single_step_pass(tmp_path):
    sizes = Sizes(heads=2, kv_heads=2, head_dim=8, layers=1, patch=4, latent_patch=4, ch_mult=(2, 1, 1), res_blocks=1, z=2, shift=0.5, steps=2, special=20, seed=1)
    Writer(tmp_path / "small", sizes).write()
    assert main([str(tmp_path / "small")]) == 0


@pytest.mark.parametrize(
    "file, tensor, case",
    [
        ("cases/03_vae", "decoded", "03_vae"),
        ("cases/06_train_grads", "connector.fc1.weight", "06_train_grads"),
        ("cases/07_understanding", "greedy_logits", "07_understanding"),
        ("cases/11_denoise_edit", "trajectory", "11_denoise_edit"),
    ],
)
def test_a_disturbed_tensor_is_over_its_tolerance(folder, file, tensor, case):
    rewrite(folder / f"{file}.safetensors", lambda tensors: add(tensors, tensor, 1e-3))
    assert not all(row.ok for row in rows_of(CHECKED_WITH.get(case, case), Golden(folder)))


@pytest.mark.parametrize(
    "case, tensor",
    [
        ("06_train_grads", "language_model.model.embed_tokens.weight"),
        ("06_train_after_step", "language_model.model.norm.weight"),
        ("06_train_grads_freeze_und", "vae2llm.weight"),
    ],
)
def test_what_is_not_a_number_fails(folder, case, tensor):
    rewrite(folder / "cases" / f"{case}.safetensors", lambda tensors: add(tensors, tensor, float("nan")))
    assert [row.case for row in rows_of(CHECKED_WITH.get(case, case), Golden(folder)) if not row.ok and tensor in row.what]


@pytest.mark.parametrize(
    "case, dropped, told",
    [
        ("05_parts", "extrapolate_", "no extrapolated position ids"),
        ("05_parts", "dts_", "no schedules' dts"),
        ("06_train_grads", "vit_model", "tensors compared"),
        ("06_train_grads_freeze_und", "", "no tensors to compare"),
        ("06_train_after_step", "ema.", "no averages"),
        ("07_understanding", "kv_value", "no cached values"),
        ("09_generation_step", "cond_", "cond_t0.35"),
        ("09_generation_step", "cfg_text_img_global", "cfg_text_img_global_t0.35"),
        ("12_preprocess", "vae", "no transformed pictures"),
    ],
)
def test_a_case_that_holds_less_fails(folder, case, dropped, told):
    rewrite(folder / "cases" / f"{case}.safetensors", lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)})
    assert [row.what for row in rows_of(CHECKED_WITH.get(case, case), Golden(folder)) if not row.ok and told in row.what]


def test_a_variant_that_is_told_nowhere_is_compared_all_the_same(folder):
    path = folder / "cases" / "10_denoise_t2i.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"variants": {}}))
    assert "nocfg final tokens" in [row.what for row in rows_of("10_denoise_t2i", Golden(folder))]


@pytest.mark.parametrize("case, emptied, told", [("12_preprocess", "table", "no resize decisions"), ("13_packing_loop", "cases", "no configurations")])
def test_an_empty_list_fails(folder, case, emptied, told):
    path = folder / "cases" / f"{case}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {emptied: []}))
    assert [told in row.what for row in rows_of(case, Golden(folder)) if not row.ok] == [True]


def test_another_integer_is_a_difference(folder, capsys):
    path = folder / "cases" / "08_batched_text.safetensors"
    tensors = load_file(path)
    tensors["tokens"][-1, 0] = (tensors["tokens"][-1, 0] + 1) % 40
    save_file(tensors, path)
    assert main([str(folder)]) == 1
    over = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OVER")]
    assert len(over) == 1 and "08_batched_text" in over[0] and "1.00e+00     <= 0.0e+00" in over[0]


def test_missing_files_and_tensors_are_named(folder, capsys):
    (folder / "cases" / "09_generation_step.safetensors").unlink()
    (folder / "checkpoint" / "ae_keys.json").unlink()
    path = folder / "cases" / "10_denoise_t2i.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("nocfg")}, path)
    assert main([str(folder)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OVER")]
    assert [line.split()[1] for line in lines] == ["checkpoint", "09_generation_step", "10_denoise_t2i"]
    assert "ae_keys.json" in lines[0] and "09_generation_step.safetensors" in lines[1] and "nocfg" in lines[2]


def test_another_network_fails(folder):
    path = folder / "checkpoint" / "llm_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 500.0}))
    assert not all(row.ok for row in rows_of("08_batched_text", Golden(folder)))
