"""Passes over activations that a GPU in training makes in one: plain formulas that the compiler fuses, with their gradients.

A pass costs the memory it touches, and one after another they would touch it several times.
"""

import threading
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Held while something is compiled: tracing replaces what modules do when they are called, and does so for all threads. Who
# calls modules in a thread beside the one that trains holds it meanwhile.
COMPILING = threading.Lock()


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of x [..., d], computed in float32."""
    return compiled(_normed)(x, weight, eps)


def normed_and_turned(x: Tensor, weight: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """The norm of heads x [n, heads, d], then their half-split rotation by the angles of `positions.rotary`."""
    return compiled(_normed_and_turned)(x, weight, eps, cos, signed_sin)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [n, 2 * width], gate before up."""
    return compiled(_gated)(gate_up)


@cache
def compiled(function: Callable) -> Callable:
    """A function through the compiler, which after its second length takes any."""
    from torch._dynamo import config

    # Packs without a kind of token, frozen experts and validation are compiled for themselves, which may be more than the eight
    # that are allowed; beyond those all would be slow, and attention too large for any card.
    config.recompile_limit = max(config.recompile_limit, 32)
    _hold_while_compiling()
    return torch.compile(function)


@cache
def _hold_while_compiling() -> None:
    from torch._dynamo import on_compile_end, on_compile_start

    on_compile_start(lambda told: COMPILING.acquire())
    on_compile_end(lambda told: COMPILING.release())


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight).to(x.dtype)


def _normed_and_turned(x: Tensor, weight: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
    y = _normed(x, weight, eps)
    first, second = y.chunk(2, dim=-1)
    return y * cos + torch.cat([second, first], dim=-1) * signed_sin


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
