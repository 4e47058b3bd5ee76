"""`python -m tests.golden FOLDER` on folders of other sizes, whole and damaged."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main, rows_of
from tests.golden.fixture import Golden
from tests.golden.other_sizes import Sizes, Writer

CHECKED_WITH = {"06_train_grads": "06_train"}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "other"
    Writer(folder).write()
    return folder


@pytest.fixture
def folder(other, tmp_path):
    return shutil.copytree(other, tmp_path / "copy")


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
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[tensor].view(-1)[0] += 1e-3
    save_file(tensors, path)
    assert not all(row.ok for row in rows_of(CHECKED_WITH.get(case, case), Golden(folder)))


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
