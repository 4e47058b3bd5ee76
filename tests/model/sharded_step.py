"""One training step on two processes, each with half of every parameter; run by test_parallelize."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from model.curriculum import PARTS, StageParams
from model.losses import count, step_loss
from model.optimisation import EMA, make_optimiser, set_trainable
from model.parallelize import checkpoint_activations, load_sharded
from tests.golden.checks import packed_batch
from tests.golden.fixture import Golden


def main(rank: int, world: int, folder: str, out: str, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    golden = Golden(Path(folder))
    model = load_sharded(golden.folder / "checkpoint", init_device_mesh("cpu", (world,)), compute_dtype=None).train()
    checkpoint_activations(model)
    parameters = set_trainable(model, PARTS)
    held = sum(p.to_local().numel() for p in parameters.values() if isinstance(p, DTensor))
    optimiser = make_optimiser(parameters, StageParams(name="sharded", steps=1, mixture={"text": 1}, learning_rate=1e-3))
    average = EMA(parameters, 0.995, warm_up=False)
    batch = packed_batch(golden)
    # Both processes read the same batch and gradients add up, so each brings half.
    total, _, _ = step_loss(model(batch, golden.tensors("06_train")["noise"]), count(batch), ce_weight=0.25, mse_weight=1.0)
    (total / world).backward()
    gradients = {name: p.grad.full_tensor() for name, p in parameters.items()}
    optimiser.step()
    average.update(0)
    averaged = {f"ema.{name}": tensor.full_tensor() for name, tensor in average.average.items()}
    if rank == 0:
        facts = {"total": total.detach(), "share": torch.tensor(held / sum(p.numel() for p in parameters.values()))}
        save_file({k: v.contiguous() for k, v in (gradients | averaged | facts).items()}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
