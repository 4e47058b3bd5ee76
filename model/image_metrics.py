"""Scores of pictures: against a true one (PSNR, SSIM), as a set (Fréchet distance), against words (CLIP-style)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL.Image import Image


class ImageEncoder(Protocol):
    """Pictures to feature vectors [n, d]: Inception for FID, a CLIP for its score, or the network's own `embed`."""

    def __call__(self, pictures: Sequence[Image]) -> np.ndarray: ...


class TextEncoder(Protocol):
    """Texts to vectors [n, d] of the same space as an image encoder's."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; 100 for equal ones and at most.

    Raises:
        ValueError: the shapes differ, there are no pixels, or these are not uint8.
    """
    _comparable(picture, truth, least=1)
    error = np.mean((picture.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return 100.0 if error == 0 else min(float(10 * np.log10(255.0**2 / error)), 100.0)


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures of one shape, [h, w] or [h, w, channels] (scikit-image).

    Raises:
        ValueError: the shapes differ, a side is shorter than the window of 7 px, or pixels are not uint8.
    """
    from skimage.metrics import structural_similarity

    _comparable(picture, truth, least=7)
    return float(structural_similarity(picture, truth, channel_axis=-1 if picture.ndim == 3 else None, data_range=255))


def _comparable(picture: np.ndarray, truth: np.ndarray, least: int) -> None:
    if picture.shape != truth.shape or min(picture.shape[:2]) < least:
        raise ValueError(f"needs two pictures of one shape, with {least} px or more a side, got {picture.shape} and {truth.shape}")
    # Numbers in [0, 1] would pass for two nearly black, nearly equal pictures.
    if not picture.dtype == truth.dtype == np.uint8:
        raise ValueError(f"needs pixels of 0 to 255 as uint8, got {picture.dtype} and {truth.dtype}")


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Distance of the Gaussians of two feature sets [n, d] and [m, d] (Heusel et al. 2017); FID with Inception's features.

    Raises:
        ValueError: a set is no table, or has fewer than two members or one that is not finite, or the widths differ.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (features, others))
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"needs two or more vectors of one width in both sets, got {a.shape} and {b.shape}")
    for place, vectors in (("first", a), ("second", b)):
        if bad := int((~np.isfinite(vectors)).any(axis=1).sum()):
            raise ValueError(f"{bad} of the {len(vectors)} vectors of the {place} set hold NaN or infinity")
    covariance, other_covariance = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # Trace of the root of a product of two covariances: its eigenvalues are real and not negative.
    roots = np.sqrt(np.linalg.eigvals(covariance @ other_covariance).real.clip(min=0))
    distance = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(covariance + other_covariance) - 2 * roots.sum()
    # Rounding leaves the distance of equal sets a little below nothing.
    return max(float(distance), 0.0)


def frechet_image_distance(pictures: Sequence[Image], truths: Sequence[Image], encoder: ImageEncoder) -> float:
    """Fréchet distance of two sets of pictures in an encoder's space."""
    return frechet_distance(encoder(pictures), encoder(truths))


def clip_score(pictures: Sequence[Image], texts: Sequence[str], images: ImageEncoder, words: TextEncoder) -> float:
    """Mean cosine of each picture with its own text, in [-1, 1] (the BioMedCLIP score with BiomedCLIP's encoders).

    Raises:
        ValueError: there are not as many texts as pictures, or none, or the encoders' vectors are not one each, of one width.
    """
    if len(pictures) != len(texts) or not len(texts):
        raise ValueError(f"needs a text for every picture, got {len(pictures)} pictures and {len(texts)} texts")
    seen, read = (np.asarray(vectors, dtype=np.float64) for vectors in (images(pictures), words(texts)))
    if seen.ndim != 2 or len(seen) != len(pictures) or seen.shape != read.shape:
        raise ValueError(f"needs a vector of one width for each of {len(pictures)} pictures and texts, but the encoders gave {seen.shape} and {read.shape}")
    a, b = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12) for vectors in (seen, read))
    return float((a * b).sum(axis=1).mean())
