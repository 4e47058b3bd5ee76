"""The plot: what is there is drawn, whatever the numbers are."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from flows.curves import COLOURS, HEIGHT, LEGEND, WIDTH, Line, plot


def drawn(*lines: Line) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(plot(lines))).convert("RGB"))


def pixels(picture: np.ndarray, colour: str, top: int = LEGEND) -> np.ndarray:
    """(row, column) of every pixel of a colour below the legend."""
    return np.argwhere((picture[top:] == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1))


def test_a_panel_a_quantity_and_a_colour_a_run():
    falling = [{"step": step, "ce": 10.0 / step, "lr": 1e-3, "mfu": None} for step in range(1, 101)]
    rising = [{"step": step, "ce": 0.1 * step, "lr": 1e-3, "mfu": math.nan} for step in range(1, 51)]
    picture = drawn(Line("a", falling), Line("b", rising))
    assert picture.shape == (LEGEND + HEIGHT, 2 * WIDTH, 3), "cross-entropy and learning rate; nobody knows the MFU"
    for colour, falls, reaches in ((COLOURS[0], True, 0.9), (COLOURS[1], False, 0.4)):
        spots = pixels(picture, colour)
        spots = spots[spots[:, 1] < WIDTH]
        first, last = spots[spots[:, 1].argmin()], spots[spots[:, 1].argmax()]
        assert (first[0] < last[0]) == falls
        assert last[1] > WIDTH * reaches
    assert pixels(picture, COLOURS[1])[:, 1].max() < 2 * WIDTH * 0.8, "the second run is half as long"


def test_stages_follow_one_another():
    rows = [{"step": step, "ce": 1.0 + step} for step in range(1, 11)]
    picture = drawn(Line("first", rows), Line("second", rows, begins=10))
    assert pixels(picture, COLOURS[0])[:, 1].max() < pixels(picture, COLOURS[1])[:, 1].min()


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [5.0, 5.0, 5.0], [-1.0, 2.0], [math.nan, math.inf, 1.0], [1e-30, 1e30], [1e-9, 1.0000001e-9]])
def test_no_numbers_are_too_odd(values):
    rows = [{"step": step, "ce": value, "wait": value} for step, value in enumerate(values)]
    assert drawn(Line("odd", rows)).shape[2] == 3
