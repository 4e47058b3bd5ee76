"""How the network is spread over processes: FSDP2 units, precision, activation checkpointing, sharded loading.

Weights, gradients, optimiser state and the running average stay sharded throughout: no process ever holds
the whole network.
"""

from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from model.checkpoint import TABLES, open_checkpoint, read_rows
from model.positions import sincos_table
from model.unimedvl import UniMedVL
from model.weights import Weights


def units(model: UniMedVL) -> list[nn.Module]:
    """Modules that are gathered one at a time; embeddings, head and the small parts go with the root."""
    return [*model.vit_model.vision_model.encoder.layers, model.connector, *model.language_model.model.layers]


def checkpoint_activations(model: UniMedVL, on: bool = True) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again."""
    model.language_model.model.checkpointing = model.vit_model.vision_model.encoder.checkpointing = on


def shard(model: UniMedVL, mesh: DeviceMesh, compute_dtype: torch.dtype | None = torch.bfloat16) -> UniMedVL:
    """Shard the trained parts in place over a one-dimensional mesh (two dimensions: replicate, shard).

    Parameters stay as they are (float32 masters); layers compute in `compute_dtype` and reduce gradients in
    float32. The VAE is small and frozen: every process has it whole.

    Gradients of all processes are *summed*, not averaged: losses are shares of the step's means
    (`losses.step_loss`). Every part runs for every pack, with nothing in it if need be, so that processes meet
    in the same collectives whatever their packs hold. So they do when all of them call `chat_batch` or `draw_batch`
    with as many conversations, whatever each of them answers.
    """
    # Inputs are cast where they enter the network: noise must stay what it was drawn as.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None, cast_forward_inputs=False)
    for unit in units(model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=set(model.vae.parameters()))
    # Alone there is nothing to average, and a factor would cost a pass over all gradients.
    for unit in (*units(model), model) if mesh.size() > 1 else ():
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    model.runs_every_part = True
    # What the root holds is gathered for these as for its forward pass.
    for method in ("chat_batch", "draw_batch"):
        register_fsdp_forward_method(model, method)
    return model


def load_sharded(folder: str | Path, mesh: DeviceMesh, compute_dtype: torch.dtype | None = torch.bfloat16) -> UniMedVL:
    """A checkpoint folder as a sharded network, read tensor by tensor.

    Raises:
        CheckpointError: as `UniMedVL.from_pretrained`.
    """
    model, weights, vae = open_checkpoint(Path(folder))
    shard(model.float(), mesh, compute_dtype)
    model.to_empty(device=mesh.device_type)
    for key, tensor in model.state_dict().items():
        _fill(tensor, _stored(model, key, weights, vae))
    return model


@torch.no_grad()
def _fill(place: torch.Tensor, full: torch.Tensor) -> None:
    if isinstance(place, DTensor):
        # Every process reads the same file, so each cuts out its own part and nothing is sent.
        mine = distribute_tensor(full.to(place.device, place.dtype), place.device_mesh, place.placements, src_data_rank=None)
        place.to_local().copy_(mine.to_local())
    else:
        place.copy_(full)


def _stored(model: UniMedVL, key: str, weights: Weights, vae: Weights) -> torch.Tensor:
    if key.startswith("vae."):
        return vae.read(key.removeprefix("vae."))
    shape = tuple(model.get_parameter(key).shape)
    if key in TABLES and weights.shapes.get(key) != shape:
        return sincos_table(round(shape[0] ** 0.5), shape[1])
    return read_rows(weights, key, shape[0])
