"""One drawing function a modality: anatomy by a few smooth shapes, and findings where the truth says so."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from corpus.phantoms.canvas import Array, Canvas, paint


@dataclass(frozen=True)
class Truth:
    """What a phantom shows. `count` findings (0: none), all on one side and of one size."""

    modality: str
    body_part: str
    finding: str
    count: int
    side: str
    size: str

    @property
    def radius(self) -> float:
        return 0.2 if self.size == "large" else 0.11


Places = list[tuple[float, float]]
Draw = Callable[[Canvas, np.random.Generator, Truth, Places], Array]


@dataclass(frozen=True)
class Modality:
    """How a modality is drawn and where (|x| and y ranges) its findings may lie."""

    name: str
    body_part: str
    finding: str
    draw: Draw
    x: tuple[float, float] = (0.25, 0.5)
    y: tuple[float, float] = (-0.4, 0.4)


def _findings(canvas: Canvas, picture: Array, truth: Truth, places: Places, value, soft: float = 0.05) -> Array:
    for x, y in places:
        picture = paint(picture, canvas.ellipse(x, y, truth.radius, truth.radius, soft), value)
    return picture


def _cxr(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    picture = paint(np.full((c.size, c.size), 0.08), c.ellipse(0, 0.2, 0.95, 1.3), 0.62)
    for side in (-1, 1):
        picture = paint(picture, c.ellipse(side * 0.42, 0.0, 0.33, 0.72), 0.22)
    _, gy = c.grid
    ribs = 0.08 * np.clip(np.sin(gy * 22 + 0.6 * np.abs(c.grid[0]) * 6), 0, 1)
    picture = paint(picture + ribs, c.ellipse(0, 0, 0.09, 1.4), 0.8)
    picture = paint(picture, c.ellipse(-0.12 if rng.random() < 0.5 else -0.16, 0.35, 0.3, 0.36), 0.75)
    return _findings(c, picture, truth, places, 0.95) + 0.02 * c.noise(rng, 1)


def _ct(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    body = c.ellipse(0, 0, 0.92, rng.uniform(0.66, 0.76))
    picture = paint(np.zeros((c.size, c.size)), body, 0.45)
    picture = paint(picture, c.ellipse(-0.38, -0.15, 0.42, 0.38), 0.58)
    picture = paint(picture, c.ellipse(0.45, -0.12, 0.24, 0.24), 0.54)
    for side in (-1, 1):
        picture = paint(picture, c.ellipse(side * 0.42, 0.3, 0.14, 0.18), 0.66)
    picture = paint(picture, c.ellipse(0, 0.45, 0.14, 0.14), 0.97)
    return _findings(c, picture, truth, places, 0.2) + 0.025 * c.noise(rng, 0.7) * body


def _mri(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    """T1-like: fat and white matter bright, fluid dark."""
    head = c.ellipse(0, 0, 0.78, 0.92)
    picture = paint(np.zeros((c.size, c.size)), head, 0.85)
    picture = paint(picture, c.ellipse(0, 0, 0.7, 0.84), 0.12)
    brain = c.ellipse(0, 0, 0.66, 0.8)
    picture = paint(picture, brain, 0.45 + 0.08 * np.clip(c.noise(rng, 4), -1, 1))
    picture = paint(picture, c.ellipse(0, 0, 0.46, 0.58), 0.66)
    for side in (-1, 1):
        picture = paint(picture, c.ellipse(side * 0.13, -0.05, 0.08, 0.28), 0.12)
    return _findings(c, picture, truth, places, 0.3) + 0.015 * c.noise(rng, 0.8) * head


def _ultrasound(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    gx, gy = c.grid
    depth, angle = np.hypot(gx, gy + 1.25), np.arctan2(gx, gy + 1.25)
    fan = ((depth > 0.35) & (depth < 2.15) & (np.abs(angle) < 0.62)).astype(float)
    speckle = np.abs(gaussian_filter(rng.standard_normal((c.size, c.size)), (0.6, 1.4)))
    picture = 0.25 + 0.25 * np.sin(depth * 9 + 0.5 * c.noise(rng, 8)) ** 2
    picture = _findings(c, picture, truth, places, 0.03)
    return fan * (picture * (0.4 + 1.6 * speckle / speckle.max()) + 0.05)


def _oct(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    gx, gy = c.grid
    surface = -0.25 + 0.18 * np.exp(-((gx - rng.uniform(-0.1, 0.1)) ** 2) * 12) + 0.03 * c.noise(rng, 12)
    below = gy - surface
    picture = np.full((c.size, c.size), 0.06)
    for start, thickness, value in ((0, 0.1, 0.85), (0.1, 0.14, 0.45), (0.24, 0.08, 0.7), (0.32, 0.12, 0.3), (0.44, 0.09, 0.98), (0.53, 0.4, 0.5)):
        picture = np.where((below > start) & (below < start + thickness), value, picture)
    picture = gaussian_filter(picture, 0.7)
    for x, y in places:
        picture = paint(picture, c.ellipse(x, 0.08 + y * 0.1, truth.radius, truth.radius * 0.6), 0.02)
    return picture * (0.75 + 0.18 * c.noise(rng, 0.6))


def _cfp(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    disc = c.ellipse(0, 0, 0.95, 0.95, 0.02)
    gx, gy = c.grid
    base = np.stack([0.78 - 0.15 * gy, 0.36 + 0.05 * gx, np.full_like(gx, 0.14)], axis=-1)
    picture = paint(np.zeros((c.size, c.size, 3)), disc, base)
    for turn in rng.uniform(0, 2 * np.pi, 7):
        along = np.linspace(0, 1.1, 60)
        bend = rng.uniform(-0.7, 0.7)
        xs, ys = 0.05 + along * np.cos(turn + bend * along), along * np.sin(turn + bend * along)
        columns, rows = (np.clip(((v + 1) / 2 * (c.size - 1)).astype(int), 0, c.size - 1) for v in (xs, ys))
        vessel = np.zeros((c.size, c.size))
        vessel[rows, columns] = 1
        picture = paint(picture, np.clip(gaussian_filter(vessel, 0.8) * 3, 0, 0.8) * disc, (0.45, 0.1, 0.06))
    picture = paint(picture, c.ellipse(0.05, 0, 0.15, 0.17), (0.98, 0.85, 0.5))
    return _findings(c, picture, truth, places, (0.98, 0.95, 0.6)) + 0.01 * c.noise(rng, 1)[..., None]


def _histopathology(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    """H&E-like: pink stroma, purple nuclei; glands are pale rings of dense nuclei."""
    tint = 0.06 * c.noise(rng, 5)[..., None]
    picture = np.array([0.93, 0.72, 0.83]) + tint * np.array([0.5, 1.0, 0.6])
    picture = paint(picture, c.blobs(rng, 90, 0.05), (0.42, 0.24, 0.58))
    for x, y in places:
        picture = paint(picture, c.ellipse(x, y, truth.radius * 1.25, truth.radius * 1.25, 0.08), (0.36, 0.17, 0.5))
        picture = paint(picture, c.ellipse(x, y, truth.radius * 0.7, truth.radius * 0.7), (0.98, 0.95, 0.97))
    return picture


def _endoscopy(c: Canvas, rng: np.random.Generator, truth: Truth, places: Places) -> Array:
    gx, gy = c.grid
    centre = rng.uniform(-0.15, 0.15, 2)
    depth = np.hypot(gx - centre[0], gy - centre[1])
    folds = 0.1 * np.sin(depth * 18 + 2 * np.sin(np.arctan2(gy, gx) * 3 + rng.uniform(0, 6)))
    light = np.clip(0.18 + 0.75 * depth, 0, 1) + folds * (depth > 0.2)
    picture = np.stack([0.95 * light, 0.5 * light, 0.42 * light], axis=-1) * c.ellipse(0, 0, 1.2, 1.2)[..., None]
    picture = _findings(c, picture, truth, places, (0.98, 0.62, 0.6), 0.12)
    for x, y in places:
        picture = paint(picture, c.ellipse(x - 0.03, y - 0.04, 0.04, 0.03), (1, 1, 1))
    return picture + 0.015 * c.noise(rng, 1)[..., None]


MODALITIES = (
    Modality("CFP", "eye", "lesion", _cfp, x=(0.35, 0.65)),
    Modality("CXR", "chest", "nodule", _cxr, x=(0.32, 0.52), y=(-0.45, 0.3)),
    Modality("CT", "abdomen", "lesion", _ct, x=(0.25, 0.55), y=(-0.3, 0.05)),
    Modality("Histopathology", "tissue", "gland", _histopathology, x=(0.25, 0.7), y=(-0.65, 0.65)),
    Modality("MRI", "head", "tumour", _mri, x=(0.25, 0.42), y=(-0.4, 0.4)),
    Modality("OCT", "retina", "fluid pocket", _oct, x=(0.25, 0.7)),
    Modality("Ultrasound", "breast", "mass", _ultrasound, x=(0.2, 0.4), y=(-0.2, 0.5)),
    Modality("Endoscopy", "colon", "polyp", _endoscopy, x=(0.35, 0.65)),
)


def t2_of(t1: Array) -> Array:
    """A T2-like picture of the same head: contrast inverted inside, air stays dark."""
    grey = t1.astype(np.float32) / 255
    inside = grey > 0.06
    return (np.where(inside, np.clip(1.05 - grey, 0, 1), grey) * 255).astype(np.uint8)


def ihc_of(he: Array) -> Array:
    """An IHC-like stain of the same tissue: nuclei brown, stroma pale blue."""
    nuclei = np.clip((0.75 - he[..., 1].astype(np.float32) / 255) / 0.5, 0, 1)[..., None]
    stained = np.array([0.86, 0.9, 0.95]) * (1 - nuclei) + np.array([0.42, 0.26, 0.12]) * nuclei
    return (stained * 255).astype(np.uint8)
