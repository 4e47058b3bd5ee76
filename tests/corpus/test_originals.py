"""Pictures that need no change keep their coding, and nothing else of their file."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from corpus import originals, sample
from corpus.readers.pictures import PictureBytes

SECRET = b"JANE^DOE"


def coded(form: str, mode: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70) if mode == "L" else (50, 70, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def dirty(form: str, mode: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", SECRET.decode())
    info.add_itxt("Patient", SECRET.decode(), zip=False)
    more = {"pnginfo": info} if form == "PNG" else {"comment": SECRET}
    return coded(form, mode, exif=exif, icc_profile=b"profile of " + SECRET, **more, **options) + b"trailing " + SECRET


KINDS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"subsampling": 2, "restart_marker_blocks": 2}), ("JPEG", {"keep_rgb": True})]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("form, options", KINDS)
def test_the_same_pixels_and_nothing_else(form, options, mode):
    data = dirty(form, mode, **options)
    assert data.count(SECRET) >= 3
    picture = PictureBytes(data, 10**6)()
    kept = sample.Image.encode(picture, lossy=True)
    assert SECRET not in kept.data and len(kept.data) < len(data)
    np.testing.assert_array_equal(np.asarray(kept.open()), np.asarray(picture))
    assert kept == sample.Image.from_bytes(kept.data) and not kept.open().info.get("icc_profile")


def test_a_changed_picture_is_coded_anew():
    picture = PictureBytes(dirty("JPEG", "L"), 10**6)()
    assert originals.of(picture.rotate(90)) is None and originals.of(Image.new("L", (4, 4))) is None
    originals.unmark(picture)
    assert originals.of(picture) is None


@pytest.mark.parametrize("cut", [3, 30, 300])
def test_a_cut_file_is_no_original(cut):
    for form in ("PNG", "JPEG"):
        picture = PictureBytes(coded(form, "L"), 10**6)()
        assert originals.of(originals.mark(picture, picture.original[:-cut])) is None


def test_grey_stored_as_colour_is_grey():
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 255, (33, 47), dtype=np.uint8))
    assert sample.pixel_hash(grey) == sample.pixel_hash(grey.convert("RGB"))
    nearly = np.array(grey.convert("RGB"))
    nearly[1, 1, 2] ^= 1
    assert sample.pixel_hash(Image.fromarray(nearly)) != sample.pixel_hash(grey)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_nothing_hides_behind_the_rows_of_a_png(mode):
    data = coded("PNG", mode)
    start, end = data.index(b"IDAT") - 4, len(data) - 12
    rows = zlib.decompress(data[start + 8 : end - 4])
    assert originals.of(PictureBytes(data, 10**6)()) == data
    for hidden in (data[start:end] + chunk(b"IDAT", SECRET), chunk(b"IDAT", data[start + 8 : end - 4] + SECRET), chunk(b"IDAT", zlib.compress(rows + SECRET, 0))):
        picture = PictureBytes(data[:start] + hidden + data[end:], 10**6)()
        assert SECRET not in sample.Image.encode(picture).data and originals.of(picture) is None
