"""Root-mean-square norm, computed in float32."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        # A tensor spares the wrapping of a number, which for a single token takes as long as the sum.
        self.eps = torch.tensor(eps, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        return _Norm.apply(x, self.weight, self.eps) if torch.is_grad_enabled() else self.weight * _normalised(x, self.eps)[0].to(x.dtype)


def _normalised(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x / rms and 1 / rms, both float32. A dot product is the quickest sum of squares on a CPU."""
    x = x.float()
    inverse = torch.add(eps, torch.linalg.vecdot(x, x), alpha=1 / x.shape[-1]).rsqrt_().unsqueeze(-1)
    return x * inverse, inverse


class _Norm(torch.autograd.Function):
    """Keeps for the backward pass what is there anyway, the input, and one number a token."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        y, inverse = _normalised(x, eps)
        ctx.save_for_backward(x, inverse, weight)
        return weight * y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, inverse, weight = ctx.saved_tensors
        y = x.float() * inverse
        grad_weight = (grad * y).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = (grad * weight).float()
        along = torch.linalg.vecdot(scaled, y).div_(x.shape[-1]).unsqueeze(-1)
        return torch.addcmul(scaled, y, along, value=-1).mul_(inverse).to(x.dtype), grad_weight, None
