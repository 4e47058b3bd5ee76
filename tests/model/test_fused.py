"""What is left to the compiler on a GPU is what is written out for a host, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from model import fused, gate, norm, vae
from model.positions import rotary


def of_heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(5, 4, 6)


ANGLES = rotary(torch.tensor([0, 1, 2, 7, 7]), 6, 10000.0, torch.float32)
PAIRS = {
    "norm": (lambda x, w: fused.normed(x, w, 1e-6), lambda x, w: norm._Norm.apply(x, w, 1e-6), 24),
    "norm and turn": (
        lambda x, w: fused.normed_and_turned(of_heads(x), w.view(4, 6), 1e-6, *ANGLES),
        lambda x, w: norm.normed_and_turned(of_heads(x), w.view(4, 6), 1e-6, *ANGLES),
        24,
    ),
    "gate": (lambda x, w: fused.gated(x * w), lambda x, w: gate.gated(x * w), 24),
}


@pytest.mark.parametrize("name", PAIRS)
def test_formulas_agree(name):
    ours, hosts, width = PAIRS[name]
    rng = torch.Generator().manual_seed(1)
    found = []
    for formula in (ours, hosts):
        x, weight = (torch.randn(shape, generator=rng.manual_seed(2), requires_grad=True) for shape in ((5, width), (width,)))
        with torch.compiler.set_stance("force_eager"):
            y = formula(x, weight)
        found.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), (x, weight))))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_group_norm_over_the_whole_device_agrees(order):
    rng = torch.Generator().manual_seed(1)
    layer = torch.nn.GroupNorm(4, 12, eps=1e-6)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 1.0, generator=rng)
    x = (3 + torch.randn((1, 12, 7, 9), generator=rng)).contiguous(memory_format=order)
    torch.testing.assert_close(vae._normed_widely(x, layer), F.group_norm(x, 4, layer.weight, layer.bias, 1e-6), rtol=1e-5, atol=1e-5)
    half = vae._normed_widely(x.bfloat16(), layer.bfloat16())
    assert half.dtype is torch.bfloat16
