"""Drawing helpers on float arrays in [0, 1]; coordinates run from -1 to 1, x to the right and y down."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray


@dataclass(frozen=True)
class Canvas:
    """The coordinate grid of a square picture."""

    size: int

    @property
    def grid(self) -> tuple[Array, Array]:
        axis = np.linspace(-1, 1, self.size)
        return np.meshgrid(axis, axis)

    def ellipse(self, x: float, y: float, rx: float, ry: float, soft: float = 0.04) -> Array:
        """Coverage of an ellipse, 1 inside and 0 outside, with a soft edge."""
        gx, gy = self.grid
        radius = np.sqrt(((gx - x) / rx) ** 2 + ((gy - y) / ry) ** 2)
        return np.clip((1 - radius) / max(soft / min(rx, ry), 1e-3) + 0.5, 0, 1)

    def noise(self, rng: np.random.Generator, scale: float) -> Array:
        """Smooth noise of unit deviation; `scale` is its grain in pixels."""
        field = gaussian_filter(rng.standard_normal((self.size, self.size)), scale, mode="reflect")
        return field / (field.std() + 1e-9)

    def blobs(self, rng: np.random.Generator, count: int, radius: float, inside: Array | None = None) -> Array:
        """Many small discs, thrown where `inside` allows them."""
        picture = np.zeros((self.size, self.size))
        for x, y in rng.uniform(-1, 1, (count, 2)):
            column, row = (int((v + 1) / 2 * (self.size - 1)) for v in (x, y))
            if inside is None or inside[row, column] > 0.5:
                picture = np.maximum(picture, self.ellipse(x, y, radius * rng.uniform(0.7, 1.3), radius * rng.uniform(0.7, 1.3), 0.03))
        return picture


def paint(picture: Array, mask: Array, value: float | Array) -> Array:
    """Lay `value` over a grey picture [h, w] or a colour picture [h, w, 3] where the mask covers it."""
    mask = mask[..., None] if picture.ndim == 3 else mask
    return picture * (1 - mask) + np.asarray(value) * mask


def to_pixels(picture: Array) -> Array:
    """[0, 1] floats to uint8."""
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
