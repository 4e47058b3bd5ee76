"""Root-mean-square norm, computed in float32, alone and with the rotary turn of queries and keys that follows it.

A host's backward passes are written out: they touch memory half as often as recorded ones, and memory is what a norm costs.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from model import fused
from model.positions import apply_rotary


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _weighted(x, self.weight, self.eps)[0]
        return fused.normed(x, self.weight, self.eps) if x.is_cuda else _Norm.apply(x, self.weight, self.eps)


def normed_and_turned(x: Tensor, weight: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Heads x [n, heads, d] through a norm with `weight` [heads, d], then turned by their positions' angles [n, 1, d]."""
    if not torch.is_grad_enabled():
        return apply_rotary(_weighted(x, weight, eps)[0], cos, signed_sin)
    return fused.normed_and_turned(x, weight, eps, cos, signed_sin) if x.is_cuda else _NormedAndTurned.apply(x, weight, eps, cos, signed_sin)


def _weighted(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms [..., 1] in float32. A vector norm is the quickest sum of squares."""
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(_constant(eps, x.device), size, size, value=1 / x.shape[-1]).rsqrt_()
    y = wide * inverse
    return (y if y.dtype is x.dtype else y.to(x.dtype)).mul_(weight), inverse


@lru_cache
def _constant(value: float, device: torch.device) -> Tensor:
    """A tensor spares the wrapping of a number, which for a single token takes as long as the sum."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


def _weighted_backward(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight [..., d], which is shared by the leading dimensions that it lacks."""
    grad_wide, wide = grad.float(), x.float()
    shared = grad_wide * wide
    along = (shared @ weight.float() if weight.ndim == 1 else torch.linalg.vecdot(shared, weight.float())).unsqueeze(-1)
    grad_weight = inverse.flatten() @ shared.flatten(0, -2) if weight.ndim == 1 else (shared * inverse).sum(0)
    grad_x = torch.mul(grad_wide, weight, out=shared).mul_(inverse)
    grad_x.addcmul_(wide, along.mul_(inverse.pow(3)).div_(-x.shape[-1]))
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


class _Norm(torch.autograd.Function):
    """Keeps the input, which is there anyway, and one number a token."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _weighted(x, weight, eps)
        ctx.save_for_backward(x, inverse, weight)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_weighted_backward(grad, *ctx.saved_tensors), None


class _NormedAndTurned(torch.autograd.Function):
    """Keeps the input and one number a head."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
        y, inverse = _weighted(x, weight, eps)
        ctx.save_for_backward(x, inverse, weight, cos, signed_sin)
        return apply_rotary(y, cos, signed_sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, inverse, weight, cos, signed_sin = ctx.saved_tensors
        # The gradient is turned back by the same angles.
        return *_weighted_backward(apply_rotary(grad, cos, -signed_sin), x, inverse, weight), None, None, None
