"""A GPU computes what a host computes: block-sparse attention with its compiled kernel, decoding, denoising."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import UniMedVL
from model.config import ModelConfig
from model.packing import PackedSequence, TextItem, VAEItem, ViTItem, pack
from model.tokenizer import TextTokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FOLDER = Path(__file__).parent.parent / "golden" / "checkpoint"


def network(device: str) -> UniMedVL:
    return UniMedVL.from_pretrained(FOLDER, device)


def mixed(config: ModelConfig, rng: torch.Generator, texts: list[int]) -> PackedSequence:
    """Questions about pictures, a drawing, and texts of these lengths."""

    def words(n: int) -> list[int]:
        return torch.randint(4, 200, (n,), generator=rng).tolist()

    image, latent = torch.rand((3, 70, 70), generator=rng), torch.randn((4, 16, 16), generator=rng)
    seen = [ViTItem(image), TextItem(words(4)), TextItem(words(2), loss=True)]
    drawn = [TextItem(words(70)), VAEItem(latent, draw=0.3)]
    edited = [VAEItem(latent), ViTItem(image), TextItem(words(9)), VAEItem(latent, draw=-0.5)]
    return pack([seen, drawn, edited, *([TextItem(words(n), loss=True)] for n in texts)], config)


def trained(model: UniMedVL, packed: PackedSequence, noise: torch.Tensor) -> list[torch.Tensor]:
    """Losses and the gradients of all that learns."""
    learning = [p for part in model.trained_parts() for p in part.parameters() if p.is_floating_point()]
    for parameter in learning:
        parameter.requires_grad_(True)
    losses = model.train()(packed.to(model.device), noise.to(model.device))
    gradients = torch.autograd.grad(losses.ce.mean() + losses.mse.mean(), learning, allow_unused=True, materialize_grads=True)
    return [x.detach().cpu() for x in (losses.ce, losses.mse, *gradients)]


@pytest.mark.parametrize("texts", [[300], [5, 40, 129, 700]])
def test_losses_and_gradients_are_those_of_a_host(texts):
    host, gpu = network("cpu"), network("cuda")
    rng = torch.Generator().manual_seed(len(texts))
    packed = mixed(host.config, rng, texts)
    noise = torch.randn(packed.latents.shape, generator=rng)
    expected, found = trained(host, packed, noise), trained(gpu, packed, noise)
    assert sum(gradient.any() for gradient in found[2:]) > 100
    for mine, theirs in zip(found, expected):
        error = (mine - theirs).norm() / theirs.norm().clamp_min(1e-3)
        assert error < 1e-4, f"relative error {error:.1e} of a tensor {tuple(mine.shape)}"


def test_autocast_trains_in_half_precision():
    """As the trainer does where weights are not sharded."""
    host, gpu = network("cpu"), network("cuda")
    rng = torch.Generator().manual_seed(3)
    packed = mixed(host.config, rng, [200])
    noise = torch.randn(packed.latents.shape, generator=rng)
    expected = trained(host, packed, noise)
    with torch.autocast("cuda", torch.bfloat16):
        found = trained(gpu, packed, noise)
    for mine, theirs in zip(found[:2], expected[:2]):
        assert (mine - theirs).norm() / theirs.norm() < 0.02


def test_answers_and_drawings_are_those_of_a_host():
    host, gpu = network("cpu"), network("cuda")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    asked = [["what is it", picture], "CT of the abdomen", [picture, picture, "compare"]]
    for model in (host, gpu):
        model.eval().tokenizer = TextTokenizer.train(["CT of the abdomen, compare it with MRI."], model.config.llm.vocab_size)
    told = [model.chat_batch(asked, max_new_tokens=12) for model in (host, gpu)]
    for mine, theirs in zip(*told):
        assert mine.text == theirs.text and np.allclose(mine.logprobs, theirs.logprobs, atol=1e-3)
    drawn = [model.draw_batch(["CT of the abdomen", [picture, "make it MRI"]], seeds=[1, 2], steps=6) for model in (host, gpu)]
    for mine, theirs in zip(*drawn):
        assert np.abs(np.asarray(mine, np.int16) - np.asarray(theirs, np.int16)).max() <= 2
