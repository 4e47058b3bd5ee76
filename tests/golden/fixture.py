"""A golden folder: its files, its checkpoint as our network, and what a check reports."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model import UniMedVL


@dataclass(frozen=True)
class Row:
    """One comparison. An exact one has tolerance 0 and counts differing elements."""

    case: str
    what: str
    error: float
    tolerance: float
    relative: bool = False

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


class Golden:
    """Everything a check needs; nothing about sizes is assumed."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def json(self, name: str) -> dict:
        return json.loads((self.folder / "cases" / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / "cases" / f"{name}.safetensors")

    @cached_property
    def model(self) -> UniMedVL:
        return self.load()

    def load(self) -> UniMedVL:
        """A fresh copy of the network, in float32."""
        return UniMedVL.from_pretrained(self.folder / "checkpoint").float()


def some(what: str, found: list) -> list:
    """What a case holds of a kind.

    Raises:
        LookupError: nothing; a case that says nothing must not pass.
    """
    if not found:
        raise LookupError(f"holds no {what}")
    return found


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ or one is not a number."""
    if found.shape != wanted.shape:
        return float("inf")
    error = (found.detach().double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    return error if error == error else float("inf")


def close(case: str, what: str, found: Tensor, wanted: Tensor, tolerance: float) -> Row:
    """Largest absolute difference."""
    if found.shape != wanted.shape:
        return Row(case, f"{what}: shape {list(found.shape)}, wanted {list(wanted.shape)}", float("inf"), tolerance)
    return Row(case, what, difference(found, wanted), tolerance)


def worst(case: str, what: str, errors: dict[str, float], tolerance: float, relative: bool = False) -> Row:
    """The largest of many tensors' errors; one that is not a number is larger than all others."""
    some("tensors to compare", list(errors))
    name = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return Row(case, f"{what}, in {name}", errors[name], tolerance, relative)


def close_relative(case: str, what: str, found: float, wanted: float, tolerance: float) -> Row:
    """Relative difference of two numbers."""
    return Row(case, what, abs(found - wanted) / max(abs(wanted), 1e-12), tolerance, relative=True)


def exact(case: str, what: str, found, wanted) -> Row:
    """Number of elements that differ."""
    if isinstance(wanted, Tensor):
        found = torch.as_tensor(found)
        same_shape = found.shape == wanted.shape
        return Row(case, what, float((found != wanted).sum()) if same_shape else float("inf"), 0)
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return Row(case, what, float(sum(a != b for a, b in zip(found, wanted))), 0)
    return Row(case, what, float(found != wanted), 0)
