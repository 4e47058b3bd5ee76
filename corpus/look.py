"""How a picture looks: two 64-bit hashes that survive resizing and recoding, so that look-alikes are found by their bits.

They are the field's pHash (signs of the 8x8 lowest DCT coefficients of a 32x32 reduction about their median) and dHash
(is a cell of a 9x8 reduction brighter than its left neighbour?), as the package imagehash computes them but for rounding
between the steps: reducing and transforming are linear, so each side of a picture meets one matrix.
"""

from functools import lru_cache

import numpy as np

# DCT-II of 32 points, its eight lowest frequencies.
_LOW_FREQUENCIES = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))


def looks(grey: np.ndarray) -> list[str]:
    """pHash and dHash of each grey picture [n, height, width], as 32 hex digits."""
    count, height, width = grey.shape
    seen = _matrix(height, 8) @ grey.astype(np.float32) @ _matrix(width, 9).T
    low, steps = seen[:, :8, :8].reshape(count, 64), np.rint(seen[:, 8:, 8:])
    middle = np.sort(low, axis=1)[:, 31:33].sum(axis=1, keepdims=True) / 2
    bits = np.concatenate([low > middle, (steps[:, :, 1:] > steps[:, :, :-1]).reshape(count, 64)], axis=1)
    return [row.tobytes().hex() for row in np.packbits(bits, axis=1)]


@lru_cache(maxsize=512)
def _matrix(length: int, cells: int) -> np.ndarray:
    """What turns a side of `length` pixels into its eight lowest frequencies and, below them, so many cells."""
    return np.concatenate([_LOW_FREQUENCIES @ _reduction(length, 32), _reduction(length, cells)]).astype(np.float32)


def _reduction(length: int, cells: int) -> np.ndarray:
    """Lanczos resampling from `length` pixels to `cells` as a matrix, with the window widened where it makes smaller."""
    scale = length / cells
    reach = max(scale, 1.0)
    distance = (np.arange(length) + 0.5 - (np.arange(cells)[:, None] + 0.5) * scale) / reach
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)
