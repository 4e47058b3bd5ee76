"""Matrix products of few tokens or narrow layers: several of one input done as one, and each spread over a host's threads.

Such a product is so short that starting it takes as long. Weights that lie side by side in memory are one matrix;
names, checkpoints and optimisers see separate weights as ever.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer of tokens [n, in], through `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, in] through weight [out, in] to [n, out]."""
    if bias is not None or not x.is_cpu or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    # A host's BLAS gives each thread a part of the left side's rows: of few tokens that would be all of the weights for each.
    return torch.mm(weight, x.t()).t()


class _Joined(NamedTuple):
    """Where each parameter lies, and all of them as one weight and one bias."""

    places: list[int]
    weight: Tensor
    bias: Tensor | None


class Together:
    """Linear layers of one input: x [n, in] to their results end to end, [n, sum of outs]."""

    def __init__(self, *layers: nn.Linear):
        self.layers = layers
        self._held = [layer._parameters for layer in layers]
        self._joined: _Joined | None = None
        self._mixed = False  # weights of several precisions: each is kept as it is, and multiplied in the input's

    def __call__(self, x: Tensor) -> Tensor:
        joined = self._in_place(x)
        if joined is not None:
            return self._product(x, joined)
        return torch.cat([_in_precision_of(x, layer) if self._mixed else layer(x) for layer in self.layers], dim=-1)

    @torch.no_grad()
    def lay_side_by_side(self) -> None:
        """Move the weights next to one another; what is not there yet (meta), spread over processes (DTensor) or of several precisions stays."""
        parameters = self._parameters()
        self._mixed = len({p.dtype for p in parameters}) > 1
        if self._mixed or any(p.is_meta or type(p.data) is not Tensor for p in parameters) or (self._joined and self._joined.places == _places(parameters)):
            return
        weight, *bias = (_move([getattr(layer, name) for layer in self.layers]) for name in ("weight", "bias") if getattr(self.layers[0], name) is not None)
        self._joined = _Joined(_places(parameters), weight, bias[0] if bias else None)

    def _in_place(self, x: Tensor) -> _Joined | None:
        """The joined weights, unless a layer has got others since, or a product is to choose its own precision."""
        usable = self._joined is not None and not torch.is_autocast_enabled(x.device.type) and self._joined.places == _places(self._parameters())
        return self._joined if usable else None

    def _product(self, x: Tensor, joined: _Joined) -> Tensor:
        if torch.is_grad_enabled():
            return _Product.apply(x, joined, *self._parameters())
        return product(x, joined.weight, joined.bias)

    def _parameters(self) -> list[nn.Parameter]:
        # Each layer's own dictionary: asked for by name, a parameter takes as long as a small product.
        return [p for name in ("weight", "bias") for held in self._held if (p := held[name]) is not None]


class _Product(torch.autograd.Function):
    """One product forward and two backward, whatever the number of layers."""

    @staticmethod
    def forward(ctx, x: Tensor, joined: _Joined, *parameters: nn.Parameter) -> Tensor:
        ctx.save_for_backward(x, joined.weight)
        ctx.widths = [len(p) for p in parameters if p.ndim == 2]
        ctx.biased = joined.bias is not None
        return F.linear(x, joined.weight, joined.bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return grad_x, *[None] * (len(ctx.needs_input_grad) - 1)
        return grad_x, None, *(grad.T @ x).split(ctx.widths), *(grad.sum(0).split(ctx.widths) if ctx.biased else ())


def _places(parameters: Sequence[nn.Parameter]) -> list[int]:
    return [p.data_ptr() for p in parameters]


def _in_precision_of(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _move(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Give the parameters neighbouring places; returns all of them as one tensor."""
    whole = torch.cat([p.data for p in parameters])
    for parameter, part in zip(parameters, whole.split([len(p) for p in parameters])):
        parameter.data = part
    return whole
