"""FSDP2 over two processes gives what one process gives, and neither holds the whole network."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model import UniMedVL
from model.curriculum import PARTS
from model.losses import TokenCounts, count
from model.testing import make_tiny
from tests.golden.fixture import Golden
from tests.model.test_golden import FOLDER
from tests.model.sharded_answers import asked
from tests.model.uneven_step import SCENARIOS, packs, train

CHECKPOINT = FOLDER / "checkpoint"


def on_two_processes(module: str, *arguments) -> None:
    command = [sys.executable, "-m", f"tests.model.{module}"]
    workers = [subprocess.Popen([*command, str(rank), "2", *map(str, arguments)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        [worker.kill() for worker in workers]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    on_two_processes("sharded_step", FOLDER, folder / "out.safetensors", folder / "store")
    return load_file(folder / "out.safetensors")


def test_gradients_are_those_of_the_whole_network(sharded):
    wanted = Golden(FOLDER).tensors("06_train_grads")
    assert max((sharded[name] - gradient).abs().max().item() for name, gradient in wanted.items()) <= 2e-5
    assert abs(sharded["total"].item() - Golden(FOLDER).json("06_train")["total_ce0p25_mse1"]) < 1e-5


def test_the_running_average_is_kept_sharded(sharded):
    assert len([name for name in sharded if name.startswith("ema.")]) > 100
    assert all(torch.isfinite(tensor).all() for tensor in sharded.values())


def test_a_process_holds_its_half(sharded):
    assert 0.5 <= sharded["share"].item() < 0.53


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    on_two_processes("uneven_step", CHECKPOINT, folder)
    return {name: load_file(folder / f"{name}.safetensors") for name in SCENARIOS}


def alone(parts) -> dict[str, torch.Tensor]:
    """One process over all packs: nothing sharded, nothing recomputed, no part run that a pack has no token for."""
    model = UniMedVL.from_pretrained(CHECKPOINT).float()
    batches = [batch for mine in packs(model.config) for batch in mine]
    return train(model, parts, batches, sum(map(count, batches), TokenCounts()))


@pytest.mark.parametrize("scenario", ["all", "frozen ViT", "frozen decoder"])
def test_packs_of_text_alone_and_of_images_alone_train_together(uneven, scenario):
    wanted, found = alone(SCENARIOS[scenario][0]), uneven[scenario]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name.startswith(("weight", "average")):
            # AdamW's first step is lr * sign(gradient): where the gradient is rounding noise, so is the step.
            assert ((found[name] - tensor).abs() > 1e-5).float().mean() < 0.02, name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_bfloat16_layers_train_near_float32_with_float32_masters(uneven):
    wanted, found = alone(PARTS), uneven["bfloat16"]
    torch.testing.assert_close(found["shares 0"], wanted["shares 0"], rtol=0.02, atol=0.01)
    torch.testing.assert_close(found["norm 0"], wanted["norm 0"], rtol=0.1, atol=0)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_processes_that_share_the_network_answer_and_draw_as_one_that_has_it_whole(tmp_path):
    model = UniMedVL.from_pretrained(make_tiny(tmp_path / "made"))
    torch.nn.init.normal_(model.llm2vae.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "drawing")
    wanted = asked(model)
    on_two_processes("sharded_answers", tmp_path / "drawing", tmp_path)
    exact, near = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("float32", "bfloat16"))
    assert exact["answer"] == wanted["answer"] and len(wanted["logprobs"]) > 3
    assert np.allclose(exact["logprobs"], wanted["logprobs"], atol=1e-4)
    assert np.abs(np.array(exact["drawn"]) - wanted["drawn"]).max() <= 1
    assert np.abs(np.array(near["drawn"]) - wanted["drawn"]).mean() < 4
