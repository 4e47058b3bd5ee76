"""The gate of a SwiGLU layer: silu(gate) * up, from both laid end to end."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import fused


def gated(gate_up: Tensor) -> Tensor:
    """[n, 2 * width], gate before up, to [n, width]."""
    if torch.is_grad_enabled():
        return fused.gated(gate_up) if gate_up.is_cuda else _Gate.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _Gate(torch.autograd.Function):
    """Writes both halves of the gradient where the product before it wants them, in one tensor."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        found = torch.empty_like(gate_up)
        grad_gate, grad_up = found.chunk(2, dim=-1)
        torch.mul(grad, opened, out=grad_up)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return found
