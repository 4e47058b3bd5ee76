"""FSDP2 over two processes gives what one process gives, and neither holds the whole network."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.fixture import Golden
from tests.model.test_golden import FOLDER


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.model.sharded_step"]
    workers = [subprocess.Popen([*command, str(rank), "2", str(FOLDER), str(folder / "out.safetensors"), str(folder / "store")]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        [worker.kill() for worker in workers]
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
