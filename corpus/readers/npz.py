"""Arrays of an .npz file as they stream: never a whole stack of pictures in memory, and nothing unpickled."""

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from corpus.record import Unreadable

# Bytes of one element; a header that says more is damaged or hostile.
_LARGEST = 2**30


def names(file: Path) -> set[str]:
    """Names of its arrays. Raises Unreadable: it is no whole .npz file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {Path(name).stem for name in archive.namelist()}
    except Exception as error:  # damaged files raise anything, from zlib.error to TokenError
        raise Unreadable("unreadable-file", f"not a whole .npz file ({type(error).__name__})") from None


def shape(file: Path, name: str) -> tuple[int, ...]:
    """Shape of an array, from its header. Raises Unreadable."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            return _header(stream)[0]
    except Unreadable:
        raise
    except Exception as error:  # damaged files raise anything, from zlib.error to TokenError
        raise Unreadable("unreadable-file", f"{name} cannot be read ({type(error).__name__})") from None


def rows(file: Path, name: str) -> Iterator[np.ndarray]:
    """The array's elements along its first axis, one at a time. Raises Unreadable: damaged, Fortran order, or of Python objects."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            size, dtype = _header(stream)
            for _ in range(size[0]):
                data = stream.read(prod(size[1:]) * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(size[1:])
    except Unreadable:
        raise
    except Exception as error:  # damaged files raise anything, from zlib.error to TokenError
        raise Unreadable("unreadable-file", f"{name} is damaged ({type(error).__name__})") from None


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    reader = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    size, fortran, dtype = reader(stream)
    if fortran:
        raise Unreadable("unreadable-file", "an array in Fortran's order, which does not stream; save it again as numpy.ascontiguousarray makes it")
    if dtype.hasobject or not size or min(size) < 0 or 0 in size[1:] or prod(size[1:]) * dtype.itemsize > _LARGEST:
        raise ValueError("not a plain array of pictures")
    return size, dtype
