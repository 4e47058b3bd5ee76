"""A small classifier of modalities, trained on real pictures: the judge of what the model draws."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image, Resampling


@dataclass(frozen=True)
class Probe:
    """A fitted classifier, the modalities it knows and its accuracy on held-out real pictures."""

    classifier: object
    modalities: tuple[str, ...]
    accuracy: float
    held_out: int

    def predict(self, pictures: Sequence[Image]) -> list[str]:
        return list(self.classifier.predict(np.stack([features(p) for p in pictures])))


def features(picture: Image) -> np.ndarray:
    """Brightness layout, colour and texture of a picture as one vector [282]."""
    rgb = np.asarray(picture.convert("RGB").resize((64, 64), Resampling.BILINEAR), dtype=np.float32) / 255
    grey = rgb.mean(axis=2)
    layout = grey.reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel()
    gradient = np.hypot(*np.gradient(grey))
    histogram = np.histogram(grey, bins=16, range=(0, 1))[0] / grey.size
    colour = [*rgb.mean(axis=(0, 1)), *rgb.std(axis=(0, 1)), rgb.std(axis=2).mean()]
    texture = [gradient.mean(), gradient.std(), grey.std()]
    return np.concatenate([layout, histogram, colour, texture]).astype(np.float32)


def fit(train: Sequence[tuple[Image, str]], held_out: Sequence[tuple[Image, str]], min_images: int, seed: int) -> Probe:
    """A probe over the modalities with enough training pictures.

    Raises:
        ValueError: fewer than two modalities have enough.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = {modality for modality, count in Counter(m for _, m in train).items() if count >= min_images}
    if len(known) < 2:
        raise ValueError(f"the modality probe needs {min_images} training images of at least two modalities; there are {sorted(known)}")
    x, y = _table(train, known)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=400, random_state=seed)).fit(x, y)
    test_x, test_y = _table(held_out, known)
    accuracy = float(np.mean(classifier.predict(test_x) == test_y)) if len(test_y) else float("nan")
    return Probe(classifier, tuple(sorted(known)), accuracy, len(test_y))


def _table(labelled: Sequence[tuple[Image, str]], known: set[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [(features(picture), modality) for picture, modality in labelled if modality in known]
    return np.stack([row for row, _ in rows]) if rows else np.zeros((0, 1)), np.array([modality for _, modality in rows])
