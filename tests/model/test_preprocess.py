"""Pictures on their way into a pack."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import ModelConfig
from model.packing import ViTItem, pack
from model.preprocess import fit, resize, scaled, to_pixels

CONFIG = ModelConfig(image={"vit": {"max_size": 224, "min_size": 56, "stride": 14}}, vit_max_num_patch_per_side=16)
GREY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (190, 311), dtype=np.uint8))


@pytest.mark.parametrize("size", [(311, 190), (40, 30), (56, 56)])
def test_grey_gives_the_values_of_its_rgb_copy(size):
    grey = GREY.resize(size)
    one, three = fit(grey, CONFIG.image.vit), fit(grey.convert("RGB"), CONFIG.image.vit)
    assert (one.mode, three.mode) == ("L", "RGB")
    assert torch.equal(to_pixels(one), to_pixels(three)) and torch.equal(scaled(to_pixels(one)), scaled(to_pixels(three)))
    assert np.array_equal(resize(grey, CONFIG.image.vit), three)


def test_grey_with_a_transparent_value_is_laid_on_white():
    grey = GREY.copy()
    grey.info["transparency"] = 7
    assert resize(grey, CONFIG.image.vit).getpixel((0, 0)) == resize(grey.convert("RGBA"), CONFIG.image.vit).getpixel((0, 0))


def test_8_bit_and_scaled_pictures_share_a_pack():
    pixels = [to_pixels(fit(picture, CONFIG.image.vit)) for picture in (GREY, GREY.convert("RGB"))]
    alike = pack([[ViTItem(picture)] for picture in pixels], CONFIG)
    mixed = pack([[ViTItem(pixels[0])], [ViTItem(scaled(pixels[1]))]], CONFIG)
    assert alike.vit_patches.dtype == torch.uint8 and torch.equal(scaled(alike.vit_patches), mixed.vit_patches)
    half = len(alike.vit_patches) // 2
    assert torch.equal(alike.vit_patches[:half], alike.vit_patches[half:])
