"""What a draw of a sample becomes: what guidance leaves out, and how large pictures are."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from PIL import Image as Pillow

from corpus.sample import Image, Sample
from model.curriculum import Dropout, Resolution, StageParams
from model.packing import TextItem, ViTItem, pack
from ray_jobs.plans import Planner
from tests.ray_jobs.made_release import picture, sample
from tests.ray_jobs.test_loader import model  # noqa: F401

STAGE = StageParams(name="planned", steps=10, learning_rate=1e-3, mixture={"understanding": 1, "generation": 1, "interleaved": 1, "text": 1})
DRAWS = 2000


def edit(number: int) -> Sample:
    """A picture to look at, a demand, and the picture that comes of it."""
    asked = sample(number, "generation")
    seen = replace(asked.parts[1], role="context", views=("vae", "vit"))
    return replace(asked, task="interleaved", parts=(seen, *asked.parts))


SAMPLES = {"understanding": sample(1), "generation": sample(2, "generation"), "text": sample(3, "text"), "interleaved": edit(4)}


@pytest.fixture(scope="module")
def left_out(model) -> dict[str, Counter]:  # noqa: F811
    """Of each task, how often a condition of each kind was left out in so many draws."""
    planner = Planner(model, STAGE.model_copy(update={"dropout": Dropout(text=0.3, vit=0.05, vae=0.05)}))
    found = {task: Counter() for task in SAMPLES}
    for task, one in SAMPLES.items():
        for seed in range(DRAWS):
            found[task].update(type(item) for item in planner.plan(one, Random(seed)) if item.dropped)
    return found


def test_conditions_are_left_out_at_their_rates(left_out):
    """Within three standard deviations of 600 and 100."""
    assert left_out["generation"].keys() == {TextItem} and left_out["generation"][TextItem] == pytest.approx(600, abs=62)
    assert left_out["understanding"].keys() == {ViTItem} and left_out["understanding"][ViTItem] == pytest.approx(100, abs=30)


def test_nothing_of_an_edit_or_a_text_is_left_out(left_out):
    """As in the released loaders."""
    assert not left_out["interleaved"] and not left_out["text"]


def test_what_is_left_out_takes_no_tokens(model):  # noqa: F811
    never, always = (Planner(model, STAGE.model_copy(update={"dropout": Dropout(text=rate, vit=rate, vae=0)})) for rate in (0, 1 - 1e-9))
    for task, gone in (("generation", 2 + len(model.tokenizer.encode(SAMPLES["generation"].parts[0].text))), ("understanding", 2 + (70 // 14) ** 2)):
        whole, less = (pack([planner.plan(SAMPLES[task], Random(0))], model.config) for planner in (never, always))
        assert whole.length - less.length == gone


def test_a_stages_resolution_is_that_of_its_pictures(model):  # noqa: F811
    """The network's own rule makes 70 and 64 pixels of every side; the stage's has room for less, and keeps a picture's shape."""
    square, wide = picture(1), Image.encode(Pillow.new("L", (96, 48)))
    own, smaller = (Planner(model, STAGE.model_copy(update={"dropout": Dropout(text=0, vit=0, vae=0), "resolution": sides})) for sides in (Resolution(), Resolution(vit=(28, 42), vae=(16, 32))))

    def sides(planner: Planner, image: Image) -> list[tuple[int, int]]:
        one = edit(5)
        items = planner.plan(replace(one, images=(image,)), Random(0))
        return [tuple(item.pixels.shape[1:]) if isinstance(item, ViTItem) else tuple(side * 8 for side in item.latent.shape[1:]) for item in items if not isinstance(item, TextItem)]

    assert sides(own, square) == [(64, 64), (70, 70), (64, 64)]
    assert sides(smaller, square) == [(32, 32), (42, 42), (32, 32)]
    assert sides(smaller, wide) == [(16, 32), (28, 42), (16, 32)]
