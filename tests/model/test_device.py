"""On another device than the CPU everything is made where the weights are."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import UniMedVL, norm, positions
from model.packing import TextItem, VAEItem, ViTItem, pack
from model.testing import make_tiny
from tests.model.elsewhere import AWAY, Away, elsewhere


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return UniMedVL.from_pretrained(make_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 64, 3), dtype=np.uint8))


@pytest.fixture
def other_device():
    constants = (positions._frequencies, norm._constant)
    with elsewhere(), sdpa_kernel(SDPBackend.MATH):
        yield
    for cached in constants:
        cached.cache_clear()


@pytest.fixture
def moved(model, other_device):
    """The same network there; the one here is not touched."""
    away = UniMedVL(model.config)
    away.load_state_dict(model.state_dict())
    away.tokenizer = model.tokenizer
    return away.to(AWAY).eval()


def mixed_pack(model):
    rng = torch.Generator().manual_seed(0)
    words, image, latent = [5, 6, 7, 8], torch.rand((3, 70, 70), generator=rng), torch.randn((4, 8, 8), generator=rng)
    samples = [[ViTItem(image), TextItem(words), TextItem(words[:2], loss=True)], [VAEItem(latent), TextItem(words), VAEItem(latent, draw=0.3)]]
    return pack(samples, model.config), torch.randn(2 * 16, model.config.latent_dim, generator=rng)


def trained(model, batch, noise):
    model.requires_grad_(True).train().zero_grad()
    losses = model(batch, noise)
    (losses.ce.sum() + losses.mse.sum()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_stand_in_refuses_what_a_gpu_would(other_device):
    there = torch.ones(2, 2, device=AWAY)
    assert isinstance(there + 1, Away) and (there.cpu() + 1).tolist() == [[2, 2], [2, 2]]
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="two devices"):
        there[torch.tensor([0])]
    with pytest.raises(RuntimeError, match="two devices"):
        torch.addcmul(torch.tensor(1.0), there, there)


def test_a_training_step_elsewhere_is_that_of_the_cpu(model, moved):
    batch, noise = mixed_pack(model)
    losses, gradients = trained(moved, batch.to(AWAY), noise.to(AWAY))
    wanted, wanted_gradients = trained(model, batch, noise)
    for found, expected in zip(losses, wanted):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == wanted_gradients.keys() and all(isinstance(g, Away) for g in gradients.values())
    for name, expected in wanted_gradients.items():
        torch.testing.assert_close(gradients[name].cpu(), expected, rtol=1e-3, atol=1e-5)
    model.requires_grad_(False).eval()


def test_answers_elsewhere_are_those_of_the_cpu(model, moved, picture):
    asked = [[picture, "Is this a CT?"], ["A longer question without any picture?"]]
    for temperature in (0.0, 1.0):
        found, wanted = (m.chat_batch(asked, max_new_tokens=4, temperature=temperature, seed=3) for m in (moved, model))
        assert [a.text for a in found] == [a.text for a in wanted]
    assert "".join(chunk.text for chunk in moved.stream_chat(asked[0], max_new_tokens=4)) == model.chat(asked[0], max_new_tokens=4).text


def test_drawings_and_edits_elsewhere_are_those_of_the_cpu(model, moved, picture):
    for parts in ("CT image", [picture, "Brighter."]):
        found, wanted = (np.asarray(m.draw(parts, seed=2, steps=3)).astype(int) for m in (moved, model))
        assert np.abs(found - wanted).max() <= 1


def test_embeddings_and_encodings_elsewhere_are_those_of_the_cpu(model, moved, picture):
    np.testing.assert_allclose(moved.embed([picture]), model.embed([picture]), atol=1e-5)
    torch.testing.assert_close(moved.encode_images([picture])[0].cpu(), model.encode_images([picture])[0], rtol=1e-4, atol=1e-5)
