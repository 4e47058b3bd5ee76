"""Narrower numbers: stored as bfloat16, or computed in it where autocast chooses."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model import UniMedVL
from model.testing import make_tiny
from tests.model.test_device import mixed_pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def trained(model, autocast: bool):
    batch, noise = mixed_pack(model)
    model.requires_grad_(True).train().zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = model(batch, noise)
    (losses.ce.mean() + losses.mse.mean()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_autocast_trains_near_float32(folder):
    model = UniMedVL.from_pretrained(folder)
    wanted, wanted_gradients = trained(model, autocast=False)
    wanted_gradients = {name: g.clone() for name, g in wanted_gradients.items()}
    found, gradients = trained(model, autocast=True)
    for a, b in zip(found, wanted):
        assert a.dtype == torch.float32 and a.requires_grad
        torch.testing.assert_close(a.mean(), b.mean(), rtol=0.02, atol=0)
    whole, whole_wanted = (torch.cat([g.flatten() for g in x.values()]) for x in (gradients, wanted_gradients))
    assert gradients.keys() == wanted_gradients.keys()
    assert (whole - whole_wanted).norm() / whole_wanted.norm() < 0.05


def test_a_bfloat16_checkpoint_answers_draws_and_is_saved_as_it_was(folder, tmp_path):
    UniMedVL.from_pretrained(folder).to(torch.bfloat16).save_pretrained(tmp_path / "first")
    model = UniMedVL.from_pretrained(tmp_path / "first")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 64, 3), dtype=np.uint8))
    assert model.chat([picture, "Is this a CT?"], max_new_tokens=3).completion_tokens >= 1
    assert model.draw("CT image", steps=3).size == (64, 64) and model.draw([picture, "Brighter."], steps=3).size == (48, 64)
    assert np.isfinite(model.embed([picture])).all()
    model.save_pretrained(tmp_path / "second")
    for name in ("ema.safetensors", "ae.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_weights_of_several_precisions_answer_and_are_saved_as_they_were(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "first")
    path, name = tmp_path / "first" / "ema.safetensors", "language_model.model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].bfloat16()}, path)
    model = UniMedVL.from_pretrained(tmp_path / "first")
    found, wanted = (m.chat("Is this a CT?", max_new_tokens=3).logprobs for m in (model, copy.deepcopy(model).float().eval()))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    UniMedVL.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "ema.safetensors").read_bytes() == path.read_bytes()
