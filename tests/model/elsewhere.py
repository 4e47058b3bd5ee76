"""A second device without one: tensors that call themselves `meta` and compute on the CPU.

Inside `elsewhere()` whatever is made on or moved to the `meta` device is such a tensor. An operation that gets
one of them together with an ordinary tensor is refused, as a GPU would refuse it; so is reading its numbers
without moving it to the host first.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
AWAY = torch.device("meta")
# A number in a tensor may come from the host here: it is handed to the kernel as a number.
TAKE_HOST_NUMBERS = {aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.gt.Tensor, aten.le.Tensor}


class Away(Tensor):
    """Holds an ordinary CPU tensor."""

    @staticmethod
    def __new__(cls, held: Tensor):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": AWAY}
        made = Tensor._make_wrapper_subclass(cls, held.size(), **shape, requires_grad=held.requires_grad)
        made.held = held
        return made

    def __repr__(self):
        return f"Away({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """The operation on what the tensors hold; `meta` in its arguments means here."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    moved_to = kwargs.get("device")
    moves = func in (aten._to_copy.default, aten.copy_.default)
    if any(isinstance(x, Away) for x in given) and not moves:
        strangers = [x for x in given if not isinstance(x, Away) and not (x.dim() == 0 and func in TAKE_HOST_NUMBERS)]
        if strangers:
            raise RuntimeError(f"{func} mixes tensors of two devices: {given}")
    found = func(*_held(args), **_held(kwargs | ({"device": "cpu"} if moved_to is not None else {})))
    if moves and func is aten._to_copy.default:
        away = isinstance(given[0], Away) if moved_to is None else torch.device(moved_to) == AWAY
    elif given:
        away = isinstance(given[0], Away) if moves else any(isinstance(x, Away) for x in given)
    else:
        away = moved_to is not None and torch.device(moved_to) == AWAY
    if not away:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map(lambda x: Away(x) if isinstance(x, Tensor) else x, found))


def _held(given):
    return tree_map(lambda x: x.held if isinstance(x, Away) else x, given)


class _Host(TorchFunctionMode):
    """What passes the dispatcher by: `tolist` copies to the host first, `torch.tensor` from it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].held.tolist()
        kwargs = dict(kwargs or {})
        if func is torch.tensor and "device" in kwargs:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _no_grad(self) -> None:
    self.instead = torch.set_grad_enabled(not self.mode)


def _grad_again(self, *problem) -> None:
    self.instead.__exit__(*problem)


@contextmanager
def elsewhere():
    """Within it, the `meta` device computes."""
    # Inference mode forbids views of what was made outside of it in a subclass; without gradients is as good here.
    without = patch.multiple(torch.inference_mode, __enter__=_no_grad, __exit__=_grad_again)
    with without, _Host(), _Device():
        yield
