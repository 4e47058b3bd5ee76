"""Brightness layout, grey levels, colour and texture of small pictures: what `corpus.picture_kind` tells modalities apart by."""

from functools import lru_cache

import numpy as np

# Cells of the layout, each the sum of four by four.
_LAYOUT = np.kron(np.eye(8, dtype=np.float32), np.ones(4, dtype=np.float32))


def features(grey: np.ndarray, colours: np.ndarray | None) -> np.ndarray:
    """`corpus.index.FEATURES` bytes of each picture, uint8 [n, FEATURES].

    Args:
        grey: pictures of one size, uint8 [n, height, width].
        colours: the same in RGB, uint8 [n, height, width, 3]; None where all are grey.
    """
    count = len(grey)
    fine = grey.astype(np.float32)
    cells = _box(fine, 32)
    levels = np.bincount(((grey >> 4) + 16 * np.arange(count)[:, None, None]).ravel(), minlength=16 * count).reshape(count, 16)
    steps = (fine[:, :, 1:] - fine[:, :, :-1], fine[:, 1:] - fine[:, :-1], cells[:, :, 1:] - cells[:, :, :-1], cells[:, 1:] - cells[:, :-1])
    # Their mean and root mean square: the second tells a few edges from much noise.
    texture = np.stack([size for step in steps for size in _sizes(step)], axis=1)
    layout = (_LAYOUT @ cells @ _LAYOUT.T).reshape(count, 64) / 16
    colour = _no_tint(_box(fine, 4)) if colours is None else _tint(_box(colours.transpose(0, 3, 1, 2).astype(np.float32), 4))
    parts = (layout, 255 * np.sqrt(levels / levels.sum(axis=1, keepdims=True)), colour, np.sqrt(texture * 255))
    return np.concatenate(parts, axis=1).clip(0, 255).astype(np.uint8)


def _box(pictures: np.ndarray, side: int) -> np.ndarray:
    """Pictures [..., height, width] made `side` x `side`, as Pillow's box filter does: a cell is the mean of its window, rounded along each axis."""
    height, width = pictures.shape[-2:]
    across, down = _windows(width, side), _windows(height, side)
    # Sums are exact; half is rounded up.
    narrow = np.floor(pictures @ across.T / across.sum(axis=1) + 0.5)
    return np.floor(down @ narrow / down.sum(axis=1, keepdims=True) + 0.5)


@lru_cache(maxsize=512)
def _windows(length: int, cells: int) -> np.ndarray:
    """Which of `length` pixels belong to each of so many cells, 0 or 1 [cells, length]."""
    scale = length / cells
    centre, reach = (np.arange(cells) + 0.5) * scale, max(scale, 1.0) / 2
    first, end = (np.floor(np.maximum(0, centre + offset + 0.5))[:, None] for offset in (-reach, reach))
    pixels = np.arange(length)
    return ((pixels >= first) & (pixels < end)).astype(np.float32)


def _sizes(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and root mean square of each picture's steps [n, ...], which are written over."""
    sizes = np.abs(steps, out=steps).reshape(len(steps), -1)
    count = max(1, sizes.shape[1])
    return sizes.sum(axis=1) / count, np.sqrt(np.einsum("ij,ij->i", sizes, sizes) / count)


def _no_tint(patches: np.ndarray) -> np.ndarray:
    """What `_tint` finds in grey patches [n, 4, 4]."""
    mean = patches.sum(axis=(1, 2)) / 16
    return np.stack([*[mean] * 3, *[np.full_like(mean, 128)] * 3, *[np.zeros_like(mean)] * 3], axis=1)


def _tint(patches: np.ndarray) -> np.ndarray:
    """Of patches [n, 3, 4, 4]: their mean, their mean tint about 128 and how much it varies, by channel [n, 9]."""
    patches = patches.reshape(len(patches), 3, 16)
    # Divided after the sum: of three like values nothing is left, so that grey stored as RGB is grey.
    tint = patches - patches.sum(axis=1, keepdims=True) / 3
    middle = tint.sum(axis=2) / 16
    varies = np.sqrt(np.maximum(0, (tint * tint).sum(axis=2) / 16 - middle * middle))
    return np.concatenate([patches.sum(axis=2) / 16, 128 + 2 * middle, 4 * varies], axis=1)
