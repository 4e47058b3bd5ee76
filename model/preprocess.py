"""Pictures in and out of the network: the published resize rule, pixel scaling, and back."""

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from model.config import ResizeRule

# Percentiles of a deep picture's values that become black and white: the corpus takes pictures in with the same ones.
WINDOW = (0.5, 99.5)


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation wants it seen; a note that cannot be read turns nothing."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # the parser of these notes raises whatever it stumbles over
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB; transparency is composited on white, and 16 and 32 bits or floats are windowed to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        return _windowed(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _windowed(image: Image.Image) -> Image.Image:
    """A picture of deep values in 8 bits; what is no number is black."""
    values = np.asarray(image, dtype=np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 1.0)
    share = np.nan_to_num((values - low) / max(high - low, 1e-9), nan=0.0)
    return Image.fromarray((np.clip(share, 0, 1) * 255).astype(np.uint8))


def target_size(width: int, height: int, rule: ResizeRule, images: int = 1) -> tuple[int, int]:
    """(width, height) after the published rule for a picture among `images` of one sample."""
    scale = min(rule.max_size / max(width, height), 1.0)
    scale = max(scale, rule.min_size / min(width, height))
    w, h = _scaled(width, height, scale, rule.stride)
    if w * h > rule.max_pixels / images:
        # A ratio of areas used as a ratio of lengths: the published code's arithmetic, kept for parity.
        w, h = _scaled(w, h, rule.max_pixels / images / (w * h), rule.stride)
    if max(w, h) > rule.max_size:
        w, h = _scaled(w, h, rule.max_size / max(w, h), rule.stride)
    return w, h


def _scaled(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    return tuple(max(stride, round(round(side * scale) / stride) * stride) for side in (width, height))


def resize(image: Image.Image, rule: ResizeRule, images: int = 1) -> Image.Image:
    """The picture as RGB in its target size (bicubic)."""
    fitted = fit(image, rule, images)
    return fitted if fitted.mode == "RGB" else fitted.convert("RGB")


def fit(image: Image.Image, rule: ResizeRule, images: int = 1) -> Image.Image:
    """The picture as RGB, or grey where it came so, in its target size: the same values in a third of the time and memory."""
    if image.mode != "L" or "transparency" in image.info:
        image = to_rgb(image)
    size = target_size(*image.size, rule, images)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def to_planes(image: Image.Image) -> Tensor:
    """RGB picture to (3, H, W), grey one to (1, H, W), in 8 bits."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def to_pixels(image: Image.Image) -> Tensor:
    """RGB or grey picture to (3, H, W) in 8 bits; a grey one's channels are one in memory."""
    return to_planes(image).expand(3, -1, -1)


def scaled(pixels: Tensor) -> Tensor:
    """8-bit values of any shape to float32 in [-1, 1]; what is scaled already stays as it is."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255).sub_(0.5).div_(0.5)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to (3, H, W) float32 in [-1, 1]."""
    return scaled(to_pixels(image))


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) around [-1, 1] to an RGB picture."""
    bounded = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return Image.fromarray(bounded.permute(1, 2, 0).to(torch.uint8).cpu().numpy())
