"""Which parts learn, the optimiser, and the running average of weights that is shipped."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.curriculum import Part, StageParams
from model.unimedvl import UniMedVL


def part_of(name: str) -> Part | None:
    """The trainable group a parameter belongs to; None for fixed tables and the VAE."""
    if name.startswith("vae.") or name.endswith("pos_embed"):
        return None
    if name.startswith("vit_model."):
        return "vit"
    if name.startswith("connector."):
        return "connector"
    if "_moe_gen" in name or name.startswith(("vae2llm.", "llm2vae.", "time_embedder.")):
        return "generation"
    if "embed_tokens" in name or "lm_head" in name:
        return "embeddings"
    return "understanding"


def set_trainable(model: UniMedVL, parts: tuple[Part, ...]) -> dict[str, nn.Parameter]:
    """Let the named parts learn, freeze the rest; returns the learning parameters by name."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimiser(parameters: dict[str, nn.Parameter], stage: StageParams) -> torch.optim.AdamW:
    """AdamW with the constants of the released code: the paper does not tell them."""
    return torch.optim.AdamW(parameters.values(), lr=stage.learning_rate, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0, fused=True)


class EMA:
    """ema = d * ema + (1 - d) * parameter after every step, over the learning parameters.

    With `warm_up` d grows to `decay` over the first steps, so that the random start does not linger in the average.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float, warm_up: bool = True):
        self.decay, self.warm_up, self.parameters = decay, warm_up, parameters
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
        torch._foreach_lerp_([_held_here(a) for a in self.average.values()], [_held_here(p) for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: UniMedVL) -> None:
        """Give the model the averaged weights."""
        for name, tensor in self.average.items():
            model.get_parameter(name).copy_(tensor)


def _held_here(tensor: Tensor) -> Tensor:
    """Of a sharded tensor the part that this process has: each averages its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def optimiser_tensors(optimiser: torch.optim.AdamW, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Moments and step counters by `<parameter>/<state>`, for a safetensors file."""
    return {f"{name}/{key}": value for name, p in parameters.items() for key, value in optimiser.state[p].items()}


def restore_optimiser(optimiser: torch.optim.AdamW, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimiser_tensors`."""
    for name, parameter in parameters.items():
        prefix = f"{name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimiser.state[parameter] = state
