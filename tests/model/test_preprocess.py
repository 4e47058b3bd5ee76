"""Pictures on their way into a pack."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from corpus.params import QualityParams
from corpus.quality import clean
from model import UniMedVL
from model.config import ModelConfig
from model.packing import ViTItem, pack
from model.preprocess import fit, resize, scaled, to_pixels, to_rgb

CONFIG = ModelConfig(image={"vit": {"max_size": 224, "min_size": 56, "stride": 14}}, vit={"image_size": 224}, vit_max_num_patch_per_side=16)
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


def opened(picture: Image.Image, kind: str, **options) -> Image.Image:
    """The picture as its file is opened."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


DEEP = np.random.default_rng(1).integers(300, 65536, (70, 90))


@pytest.mark.parametrize("values, kind", [(DEEP.astype(np.uint16), "PNG"), (DEEP.astype(np.int32), "TIFF"), ((DEEP / 65536).astype(np.float32), "TIFF")])
def test_a_deep_picture_is_seen_as_the_corpus_takes_it_in(values, kind):
    picture = opened(Image.fromarray(values), kind)
    assert picture.mode in ("I;16", "I", "F")
    seen = np.asarray(to_rgb(picture))
    assert np.array_equal(seen, clean(picture, QualityParams())[0].convert("RGB")) and len(np.unique(seen)) > 200


def test_what_is_no_number_is_black_and_leaves_the_rest_as_it_was():
    values = np.linspace(0, 1, 4900, dtype=np.float32).reshape(70, 70)
    holed = values.copy()
    holed[30, 30:33] = np.nan, np.inf, -np.inf
    whole, found = (np.asarray(to_rgb(Image.fromarray(v)))[..., 0].astype(int) for v in (values, holed))
    assert found[30, 30:33].tolist() == [0, 255, 0] and len(np.unique(whole)) > 200
    assert np.abs(np.delete(found - whole, range(30 * 70 + 30, 30 * 70 + 33))).max() <= 1
    assert not np.asarray(to_rgb(Image.fromarray(np.full((9, 9), np.nan, np.float32)))).any()


def test_the_network_sees_a_photograph_upright():
    model, note = UniMedVL(CONFIG), Image.Exif()
    note[0x0112] = 6
    lying = Image.fromarray(np.asarray(GREY.resize((120, 60))))
    turned, plain = opened(lying, "PNG", exif=note), opened(lying.transpose(Image.Transpose.ROTATE_270), "PNG")
    assert np.array_equal(model.embed([turned]), model.embed([plain]))
    assert torch.equal(model.vae_item(turned).latent, model.vae_item(plain).latent)
    assert np.array_equal(model.embed([opened(lying, "JPEG", exif=b"Exif\0\0noise")]), model.embed([opened(lying, "JPEG")]))


def test_8_bit_and_scaled_pictures_share_a_pack():
    pixels = [to_pixels(fit(picture, CONFIG.image.vit)) for picture in (GREY, GREY.convert("RGB"))]
    alike = pack([[ViTItem(picture)] for picture in pixels], CONFIG)
    mixed = pack([[ViTItem(pixels[0])], [ViTItem(scaled(pixels[1]))]], CONFIG)
    assert alike.vit_patches.dtype == torch.uint8 and torch.equal(scaled(alike.vit_patches), mixed.vit_patches)
    half = len(alike.vit_patches) // 2
    assert torch.equal(alike.vit_patches[:half], alike.vit_patches[half:])
