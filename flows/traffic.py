"""Requests for the demo: held-out pictures of the corpus, as they are or as a changed scanner would make them."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


def send(release: dict, count: int, changed_scanner: bool) -> int:
    """Ask the endpoint `count` questions about held-out pictures, two at a time; returns how many were answered."""
    from flows.client import ask_with, connect

    openai = connect()
    with ThreadPoolExecutor(2) as pool:
        answered = list(pool.map(lambda asked: ask_with(openai, *asked).text, questions(release, count, changed_scanner)))
    return len(answered)


def questions(release: dict, count: int, changed_scanner: bool) -> Iterator[tuple[bytes, str]]:
    """(encoded picture, question), spread evenly over the validation and test questions."""
    from ray_jobs.benchmarks import evenly, questions as asked_of
    from ray_jobs.releases import open_release

    reader = open_release(release["tag"])
    every = [pair for split in ("val", "test") for found in asked_of(reader, split, 10**9).values() for pair in found]
    for sample, turn in evenly(every, count):
        picture = sample.images[0].open()
        yield _png(rescanned(picture) if changed_scanner else picture), sample.turns[turn].question


def rescanned(picture):
    """The picture from a scanner with another response curve, a softer lens and more noise."""
    import numpy as np
    from PIL import Image, ImageFilter

    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), dtype=np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.06, soft.shape)
    return Image.fromarray((np.clip(0.25 + 0.75 * soft**0.5 + noise, 0, 1) * 255).astype(np.uint8))


def _png(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
