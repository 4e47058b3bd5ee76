"""Tensors in safetensors files, opened without reading them: one file or several with an index."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class CheckpointError(ValueError):
    """A checkpoint folder cannot be loaded; the message names file, key and shape."""


class Weights:
    """Tensors by key, read one at a time: a process never holds more of the files than it asks for."""

    def __init__(self, path: Path, prefix: str = "", index: Mapping[str, str] | None = None):
        """One safetensors file; or, with an index from key to file name, the files beside it that the index names."""
        self.path, self._prefix, self._index = path, prefix, index
        self._files = {name: _open(path.parent / name) for name in sorted({path.name} if index is None else set(index.values()))}

    @classmethod
    def open(cls, folder: Path, names: Sequence[str], prefix: str = "") -> "Weights":
        """The first of `names` that the folder has; keys may carry `prefix`, which is taken off.

        Raises:
            CheckpointError: none is there, one is damaged or no safetensors file, or lacks what the index places in it.
        """
        path = next((folder / name for name in names if (folder / name).exists()), None)
        if path is None:
            pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
            hint = f"; {pickles[0]} is a pickle, which is never read: convert it to safetensors where it was made" if pickles else ""
            raise CheckpointError(f"{folder / names[0]} is missing{hint}")
        return cls(path, prefix, _read_index(path) if path.suffix == ".json" else None)

    @cached_property
    def _place(self) -> dict[str, tuple[str, str]]:
        """Public key to (file, key in it). An index decides: what else lies in its files is not of this network."""
        held = {name: set(file.keys()) for name, file in self._files.items()}
        index = self._index if self._index is not None else {key: name for name, keys in held.items() for key in keys}
        for key, name in index.items():
            if key not in held[name]:
                raise CheckpointError(f"{self.path}: {name} lacks {key}, which the index places there")
        return {key.removeprefix(self._prefix): (name, key) for key, name in index.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {key: tuple(self._files[name].get_slice(inner).get_shape()) for key, (name, inner) in self._place.items()}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Number format of every tensor, as safetensors calls it."""
        return {key: self._files[name].get_slice(inner).get_dtype() for key, (name, inner) in self._place.items()}

    def read(self, key: str) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        name, inner = self._place[key]
        tensor = self._files[name].get_tensor(inner)
        # A sum shows both in a tenth of the time, but may itself overflow.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise CheckpointError(f"{self.path.parent / name}: {key} holds NaN or infinity")
        return tensor


def weight_map(text: bytes, index: str | Path) -> dict[str, str]:
    """Key to the name of its file, which lies beside the index.

    Raises:
        CheckpointError: naming the index.
    """
    try:
        return {key: Path(name).name for key, name in json.loads(text)["weight_map"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files ({type(error).__name__}: {error})") from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        return weight_map(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} is no index of safetensors files ({error.strerror})") from error


def _open(path: Path):
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a safetensors file")
    try:
        # Not mapped into memory: a file may be larger than this machine, and may be replaced while it is open.
        return safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} {_damage(path)} ({error})") from error


def _damage(path: Path) -> str:
    """What is wrong with a file that would not open; the tensor that is cut off, where one is."""
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith((b"PK", b"\x80")):
            return "is a pickle, which is never read: convert it to safetensors where it was made"
        size, length = path.stat().st_size, int.from_bytes(start, "little")
        if len(start) == 8 and 8 + length <= size:
            try:
                header = json.loads(file.read(length))
                cut = [(e["data_offsets"][1], key, e["shape"]) for key, e in header.items() if key != "__metadata__" and 8 + length + e["data_offsets"][1] > size]
                if cut:
                    _, key, shape = min(cut)
                    return f"is not a whole safetensors file: it ends inside {key} {shape}; fetch it again"
            except (ValueError, LookupError, TypeError, AttributeError):
                pass
    return "is not a whole safetensors file; fetch it again"
