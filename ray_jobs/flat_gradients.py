"""Gradients that lie in one tensor, so that workers add them up in one all-reduce without copying them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatGradients:
    """The `grad` of every parameter, a view of one tensor, with room for `beside` numbers before them.

    Parameters are all on one device and of one type. Backward adds to the views in place; nobody may set a `grad`.
    """

    def __init__(self, parameters: list[nn.Parameter], beside: int):
        sizes = [beside, *(parameter.numel() for parameter in parameters)]
        self._flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        self._beside, *parts = self._flat.split(sizes)
        for parameter, part in zip(parameters, parts):
            parameter.grad = part.view_as(parameter)

    def zero(self) -> None:
        self._flat.zero_()

    def sum_over_workers(self, numbers: Tensor) -> Tensor:
        """Add up all workers' gradients in place; returns the sums of their `numbers` [beside], on the CPU."""
        self._beside.copy_(numbers)
        dist.all_reduce(self._flat)
        return self._beside.cpu()
