"""Two training steps on packs that hold different things, alone or spread over processes; run by test_parallelize.

The first process reads text alone, the second images alone: neither has a token for every part of the network.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from model import UniMedVL
from model.config import ModelConfig
from model.curriculum import PARTS, Part, StageParams
from model.losses import TokenCounts, count, step_loss
from model.optimisation import EMA, make_optimiser, set_trainable
from model.packing import PackedSequence, TextItem, VAEItem, ViTItem, pack
from model.parallelize import checkpoint_activations, load_sharded

STEPS = 2
# What learns, and what layers compute in.
SCENARIOS: dict[str, tuple[tuple[Part, ...], torch.dtype | None]] = {
    "all": (PARTS, None),
    "frozen ViT": (("connector", "understanding", "generation", "embeddings"), None),
    "frozen decoder": (("vit", "generation"), None),
    "bfloat16": (PARTS, torch.bfloat16),
}


def packs(config: ModelConfig) -> list[list[PackedSequence]]:
    """Two packs of either process: text with and without a loss; an image to draw, and one to look at."""
    rng = torch.Generator().manual_seed(1)
    words = torch.randint(4, 60, (12,), generator=rng).tolist()
    latent, pixels = torch.randn((config.vae.z_channels, 4, 8), generator=rng), torch.rand((3, 28, 42), generator=rng)
    first = [[[TextItem(words, loss=True)], [TextItem(words[:5]), TextItem(words[5:], loss=True)]], [[TextItem(words)]]]
    second = [[[VAEItem(latent, draw=0.4)]], [[ViTItem(pixels)], [ViTItem(pixels[:, :28, :28])]]]
    return [[pack(samples, config) for samples in mine] for mine in (first, second)]


def train(model: UniMedVL, parts: tuple[Part, ...], mine: list[PackedSequence], totals: TokenCounts) -> dict[str, Tensor]:
    """What training leaves: weights, averages, gradient norms, and this process's shares of the losses."""
    parameters = set_trainable(model.train(), parts)
    optimiser = make_optimiser(parameters, StageParams(name="uneven", steps=STEPS, mixture={"text": 1}, learning_rate=1e-3))
    average, found = EMA(parameters, 0.9, warm_up=False), {}
    for step in range(STEPS):
        optimiser.zero_grad(set_to_none=False)
        shares = torch.zeros(2)
        for batch in mine:
            noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(step))
            loss, ce, mse = step_loss(model(batch, noise), totals, ce_weight=0.25, mse_weight=1.0)
            loss.backward()
            shares += torch.tensor([ce, mse])
        found[f"norm {step}"] = _whole(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        found[f"gradient {step}"] = torch.cat([_whole(p.grad).flatten().float() for p in parameters.values() if p.grad is not None])
        optimiser.step()
        average.update(step)
        found[f"shares {step}"] = shares
    weights = {f"weight {name}": _whole(p.detach()) for name, p in parameters.items()}
    return found | weights | {f"average {name}": _whole(tensor) for name, tensor in average.average.items()}


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def main(rank: int, world: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (world,))
    for name, (parts, compute_dtype) in SCENARIOS.items():
        model = load_sharded(folder, mesh, compute_dtype)
        checkpoint_activations(model)
        everyone = packs(model.config)
        totals = sum((count(batch) for mine in everyone for batch in mine), TokenCounts())
        found = train(model, parts, everyone[rank], totals)
        for step in range(STEPS):
            dist.all_reduce(found[f"shares {step}"])
        if rank == 0:
            save_file({key: tensor.contiguous() for key, tensor in found.items()}, out / f"{name}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
