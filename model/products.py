"""Several matrix products of one input, done as one where that costs nothing.

Decoding reads few tokens at a time, so starting a product takes as long as the product. Weights that lie side
by side in memory are one matrix there; names, checkpoints and training see separate weights as ever.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...] | list[Tensor]:
    """`layer(x)` of every layer. x is [n, in]; the results are [n, out of the layer]."""
    together = None if torch.is_grad_enabled() else _as_one([layer.weight for layer in layers])
    if together is None:
        return [layer(x) for layer in layers]
    bias = None if layers[0].bias is None else _as_one([layer.bias for layer in layers])
    return F.linear(x, together, bias).split([layer.out_features for layer in layers], dim=-1)


@torch.no_grad()
def side_by_side(*layers: nn.Linear) -> None:
    """Move the weights of layers with the same input, and their biases, next to one another."""
    for name in ("weight", "bias"):
        parameters = [getattr(layer, name) for layer in layers]
        # What is not there yet (meta) or spread over processes (DTensor) stays as it is.
        if parameters[0] is None or parameters[0].is_meta or type(parameters[0].data) is not Tensor or _as_one(parameters) is not None:
            continue
        whole = torch.cat([p.data for p in parameters])
        for parameter, part in zip(parameters, whole.split([len(p) for p in parameters])):
            parameter.data = part


def _as_one(tensors: list[Tensor]) -> Tensor | None:
    """A view of matrices or vectors that lie end to end in memory, or None."""
    first, *others = tensors
    end = first.data_ptr() + first.nbytes
    for tensor in others:
        if tensor.data_ptr() != end:
            return None
        end += tensor.nbytes
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())
