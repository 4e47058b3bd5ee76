"""Does a picture seem to carry text, such as names and dates burned into ultrasound, endoscopy and screen captures?

Classical image analysis: letters are thin strokes of one height and one brightness, side by side on a common line.
docs/data.md gives the rates measured on real pictures.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image as Pillow
from PIL import ImageChops

_LONGEST_SIDE = 1600
# Letters of 9 px have strokes of one pixel: smaller pictures are looked at twice as large.
_DOUBLED_BELOW = 800
# Strokes are thinner than this, in pixels; what is wider is background to them.
_STROKE = 11
# A faint text shows at the lowest contrast only; at the higher ones the letters of a bright one come apart.
_CONTRASTS = (30, 60, 110)
# How far the channels of a strong colour are apart.
_COLOURED = 100
_LOWEST, _HIGHEST = 7, 64
_WIDEST = 3.2  # of its height: two small letters often touch
_MOST_UNEVEN_BASELINE, _MOST_UNEVEN_CONTRAST = 0.15, 0.35

_LEFT, _RIGHT, _TOP, _BOTTOM, _BRIGHT = range(5)


def seems_to_carry_text(picture: Pillow.Image) -> float:
    """How many letters the longest line of text seems to have; a picture without text rarely reaches 4."""
    return float(max(map(_longest_line, _greys(picture))))


def _greys(picture: Pillow.Image) -> Iterator[np.ndarray]:
    """Its brightness, and where it has strong colours the brightest of them: a pure blue is almost black."""
    yield _scaled(picture.convert("L"))
    if picture.mode == "RGB":
        red, green, blue = picture.split()
        brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
        darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
        if ImageChops.subtract(brightest, darkest).getextrema()[1] >= _COLOURED:
            yield _scaled(brightest)


def _longest_line(grey: np.ndarray) -> int:
    """How many letters it has."""
    from scipy import ndimage

    longest = 0
    for values in (grey, 255 - grey):
        stroke = ndimage.white_tophat(values, size=(_STROKE, _STROKE))
        for contrast in _CONTRASTS:
            longest = max([longest, *(len(line) for line in _lines(_letters(stroke, contrast)) if _is_even(line))])
    return longest


def _scaled(grey: Pillow.Image) -> np.ndarray:
    grey.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    if max(grey.size) < _DOUBLED_BELOW:
        grey = grey.resize((grey.width * 2, grey.height * 2), Pillow.Resampling.BICUBIC)
    return np.asarray(grey, dtype=np.float32)


def _letters(stroke: np.ndarray, contrast: float) -> np.ndarray:
    """Patches (left, right, top, bottom, brightness) of the size and shape of a letter, from left to right."""
    from scipy import ndimage

    mask = stroke > contrast
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.empty((0, 5))
    index = np.arange(1, count + 1)
    boxes = np.array([(x.start, x.stop, y.start, y.stop) for y, x in ndimage.find_objects(labels)])
    wide, high = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    fill = np.bincount(labels.ravel(), minlength=count + 1)[1:] / (wide * high)
    thickness = ndimage.maximum(ndimage.distance_transform_edt(mask), labels, index)
    letter = (_LOWEST <= high) & (high <= _HIGHEST) & (2 <= wide) & (wide <= _WIDEST * high)
    letter &= (fill >= 0.12) & ((fill <= 0.85) | (wide <= 0.5 * high)) & (thickness <= 0.3 * high + 1)
    found = np.column_stack([boxes, ndimage.maximum(stroke, labels, index)])[letter]
    return found[np.argsort(found[:, _LEFT], kind="stable")]


def _lines(letters: np.ndarray) -> list[np.ndarray]:
    """Letters chained to their right neighbours."""
    lines, used = [], np.zeros(len(letters), bool)
    for first in range(len(letters)):
        line, current = [], first if not used[first] else None
        while current is not None:
            used[current] = True
            line.append(current)
            current = _next(letters, used, current)
        lines += [letters[line]] if line else []
    return lines


def _next(letters: np.ndarray, used: np.ndarray, current: int) -> int | None:
    """The nearest letter to the right of like height, on the same top or base line, not further than a letter away."""
    here, others = letters[current], letters[current + 1 :]
    height, heights = here[_BOTTOM] - here[_TOP], others[:, _BOTTOM] - others[:, _TOP]
    gap = others[:, _LEFT] - here[_RIGHT]
    overlap = np.minimum(others[:, _BOTTOM], here[_BOTTOM]) - np.maximum(others[:, _TOP], here[_TOP])
    off = np.minimum(abs(others[:, _BOTTOM] - here[_BOTTOM]), abs(others[:, _TOP] - here[_TOP]))
    fits = ~used[current + 1 :] & (gap > -0.3 * height) & (gap <= 1.3 * height + 2)
    fits &= (0.55 * height < heights) & (heights < 1.8 * height) & (overlap > 0.5 * np.minimum(height, heights))
    fits &= off <= 0.2 * np.maximum(height, heights) + 1
    return current + 1 + int(np.argmax(fits)) if fits.any() else None


def _is_even(line: np.ndarray) -> bool:
    height = np.median(line[:, _BOTTOM] - line[:, _TOP])
    baseline = np.median(abs(line[:, _BOTTOM] - np.median(line[:, _BOTTOM]))) / height
    return bool(baseline <= _MOST_UNEVEN_BASELINE and line[:, _BRIGHT].std() <= _MOST_UNEVEN_CONTRAST * line[:, _BRIGHT].mean())
