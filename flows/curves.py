"""Training curves as a picture: a panel a quantity, a colour a run or stage.

Drawn with Pillow: no library of the lock makes a PNG of a plot without a browser beside it.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

# What is shown of a log line, in this order: field, title, logarithmic scale, how a number is written.
PANELS = [
    ("ce", "cross-entropy of target text", True, "{:.3g}"),
    ("mse", "velocity loss of target images", True, "{:.3g}"),
    ("vae", "VAE loss", True, "{:.3g}"),
    ("lr", "learning rate", False, "{:.2g}"),
    ("grad_norm", "gradient norm", True, "{:.3g}"),
    ("tokens_per_s", "tokens a second", False, "{:,.0f}"),
    ("real_share", "real tokens in a pack", False, "{:.1%}"),
    ("wait", "waiting for data", False, "{:.1%}"),
    ("stall", "standing still for saves and validations", False, "{:.1%}"),
    ("mfu", "MFU", False, "{:.1%}"),
]
COLOURS = ["#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2", "#ca8a04", "#4b5563"]
INK, GREY, RULE = "#111827", "#6b7280", "#e5e7eb"
# Drawn three times as large and shrunk: Pillow's lines have no soft edges of their own.
SCALE, COLUMNS, WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND = 3, 3, 440, 250, 62, 16, 34, 30, 34


@dataclass(frozen=True)
class Line:
    """One run's log lines, from left to right. `begins` moves it along the axis: stages follow one another."""

    name: str
    rows: Sequence[dict]
    begins: int = 0

    def points(self, field: str) -> list[tuple[float, float]]:
        return [(self.begins + row["step"], row[field]) for row in self.rows if row.get(field) is not None and math.isfinite(row[field])]


def plot(lines: Sequence[Line]) -> bytes:
    """Every quantity that any of the lines has, as PNG."""
    from PIL import Image, ImageDraw

    panels = [panel for panel in PANELS if any(line.points(panel[0]) for line in lines)]
    columns = min(COLUMNS, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    size = (columns * WIDTH * SCALE, (LEGEND + max(rows, 1) * HEIGHT) * SCALE)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    _legend(pen, lines, columns * WIDTH)
    # One axis of steps for all panels. It begins at 0: a run that has just begun looks like one.
    most = max([1, *(line.begins + row["step"] for line in lines for row in line.rows)])
    if not panels:
        _text(pen, 20, LEGEND + 40, "no log line yet", GREY)
    for number, (field, title, logarithmic, form) in enumerate(panels):
        corner = number % columns * WIDTH, LEGEND + number // columns * HEIGHT
        _panel(pen, corner, title, [line.points(field) for line in lines], most, logarithmic, form)
    buffer = io.BytesIO()
    picture.reduce(SCALE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _legend(pen, lines: Sequence[Line], width: int) -> None:
    left = 20
    for number, line in enumerate(lines):
        length = _font(12).getlength(line.name) / SCALE
        if left + 26 + length > width:
            _text(pen, left, 10, "…", INK)
            return
        pen.line([(left * SCALE, 18 * SCALE), ((left + 18) * SCALE, 18 * SCALE)], fill=_colour(number), width=3 * SCALE)
        _text(pen, left + 24, 10, line.name, INK)
        left += 24 + length + 24


def _panel(pen, corner: tuple[int, int], title: str, series: list[list[tuple[float, float]]], most: int, logarithmic: bool, form: str) -> None:
    """Axes with a few round numbers, and a line a series."""
    x0, y0, x1, y1 = corner[0] + LEFT, corner[1] + TOP, corner[0] + WIDTH - RIGHT, corner[1] + HEIGHT - BOTTOM
    flat = [point for points in series for point in points]
    logarithmic = logarithmic and all(y > 0 for _, y in flat)
    level: Callable[[float], float] = math.log10 if logarithmic else float
    low, high, marks = _range([y for _, y in flat], logarithmic)

    def place(x: float, y: float) -> tuple[float, float]:
        up = (level(y) - level(low)) / (level(high) - level(low))
        return (x0 + (x1 - x0) * x / most) * SCALE, (y1 - (y1 - y0) * up) * SCALE

    _text(pen, x0, corner[1] + 10, title, INK, 13)
    for mark in marks:
        y = place(0, mark)[1]
        pen.line([(x0 * SCALE, y), (x1 * SCALE, y)], fill=RULE, width=SCALE)
        _text(pen, x0 - 6, y / SCALE, form.format(mark), GREY, 11, "rm")
    for step in _ticks(0, most):
        x = place(step, high)[0]
        pen.line([(x, y1 * SCALE), (x, (y1 + 4) * SCALE)], fill=GREY, width=SCALE)
        _text(pen, x / SCALE, y1 + 7, f"{step:,.0f}", GREY, 11, "ma")
    pen.line([(x0 * SCALE, y1 * SCALE), (x1 * SCALE, y1 * SCALE)], fill=GREY, width=SCALE)
    for number, points in enumerate(series):
        spots = [place(x, y) for x, y in points]
        if len(spots) > 1:
            pen.line(spots, fill=_colour(number), width=2 * SCALE, joint="curve")
        elif spots:
            (x, y), radius = spots[0], 3 * SCALE
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_colour(number))


def _range(values: list[float], logarithmic: bool) -> tuple[float, float, list[float]]:
    """Lowest and highest value of an axis, and the round numbers that are named on it."""
    low, high = min(values), max(values)
    if logarithmic:
        low, high = low / 1.1, high * 1.1
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            marks = [mark for power in powers for digit in digits if low <= (mark := digit * 10.0**power) <= high]
            if len(marks) >= 3:
                return low, high, marks
        return low, high, _ticks(low, high)
    low = 0.0 if 0 <= low <= high / 2 else low
    if high - low < 1e-12:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    margin = (high - low) / 20
    low, high = (low if low == 0 else low - margin), high + margin
    return low, high, _ticks(low, high)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most about `most`."""
    rough = (high - low) / most or 1
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _text(pen, x: float, y: float, words: str, colour: str, size: int = 12, anchor: str = "la") -> None:
    pen.text((x * SCALE, y * SCALE), words, fill=colour, font=_font(size), anchor=anchor)


@cache
def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size * SCALE)
