"""The stage before the first: train tokenizer and VAE, and lay down a fresh network around them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.config import ModelConfig, VAEConfig
from model.curriculum import BootstrapParams
from model.tokenizer import TextTokenizer
from model.unimedvl import UniMedVL
from model.vae import AutoEncoder

OnStep = Callable[[int, float], None]


def bootstrap(config: ModelConfig, params: BootstrapParams, texts: Sequence[str], images: Tensor, weights: Tensor, seed: int, on_step: OnStep = lambda step, loss: None) -> UniMedVL:
    """A network ready for the first curriculum stage.

    Args:
        texts: every training text.
        images: training pixels [n, 3, H, W] in [-1, 1].
        weights: how often each of them is drawn, relative to the others [n].
        seed: fixes weights and batches; equal inputs give equal bits on one machine and thread count.
    """
    generator = torch.Generator().manual_seed(seed)
    tokenizer = TextTokenizer.train(texts, params.vocab_size)
    vae, config = train_vae(config, params, images, weights, generator, on_step)
    config = config.model_copy(
        update={
            "llm": config.llm.model_copy(update={"vocab_size": params.vocab_size}),
            "special_tokens": tokenizer.special_tokens,
        }
    )
    model = UniMedVL(config)
    model.initialise(generator)
    model.vae.load_state_dict(vae.state_dict())
    model.tokenizer = tokenizer
    return model


def train_vae(
    config: ModelConfig, params: BootstrapParams, images: Tensor, weights: Tensor, generator: torch.Generator, on_step: OnStep
) -> tuple[AutoEncoder, ModelConfig]:
    """A VAE for these images, and the configuration with the scale and shift that normalise its latents."""
    vae = AutoEncoder(config.vae)
    _initialise(vae, generator)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=params.vae_learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(params.vae_steps):
        for group in optimiser.param_groups:
            group["lr"] = params.vae_learning_rate * min(1.0, (step + 1) / 20) * (1 - step / params.vae_steps) ** 0.7
        batch = images[torch.multinomial(weights, params.vae_batch, replacement=True, generator=generator)]
        loss = _loss(vae, batch, params.kl_weight, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        on_step(step, loss.item())
    return vae, config.model_copy(update={"vae": _normalised(vae, images, weights, generator)})


def _loss(vae: AutoEncoder, pixels: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
    mean, logvar = vae.posterior(pixels)
    logvar = logvar.clamp(-20, 4)
    noise = torch.randn(mean.shape, generator=generator)
    error = vae.decoder(mean + torch.exp(0.5 * logvar) * noise) - pixels
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + error.square().mean() + kl_weight * kl


@torch.no_grad()
def _normalised(vae: AutoEncoder, images: Tensor, weights: Tensor, generator: torch.Generator) -> VAEConfig:
    """Scale and shift that give the latents of a sample of the images mean 0 and deviation 1."""
    sample = images[torch.multinomial(weights, 256, replacement=True, generator=generator)]
    mean = torch.cat([vae.posterior(batch)[0] for batch in sample.split(32)])
    return vae.config.model_copy(update={"scale_factor": 1.0 / mean.std().item(), "shift_factor": mean.mean().item()})


@torch.no_grad()
def _initialise(vae: AutoEncoder, generator: torch.Generator) -> None:
    """Residual branches start at zero and the posterior narrow: both save most of a short training."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            module.bias.zero_()
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "proj_out")):
            module.weight.zero_()
    z = vae.config.z_channels
    vae.encoder.conv_out.bias[z:] = -6.0
    vae.encoder.conv_out.weight[z:] *= 0.1
