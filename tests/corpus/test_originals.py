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


@pytest.mark.parametrize("end", [b"IHDR", b"IEND"])
def test_nothing_hides_in_a_chunk_of_known_size(end):
    data = coded("PNG", "L")
    start, size = data.index(end), 13 if end == b"IHDR" else 0
    longer = data[: start - 4] + chunk(end, data[start + 4 : start + 4 + size] + SECRET) + data[start + size + 8 :]
    picture = PictureBytes(longer, 10**6)()
    assert originals.of(picture) is None and SECRET not in sample.Image.encode(picture).data


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_a_png_of_other_depths_is_coded_anew(depth):
    rows = (b"\0" + b"\xff" * (64 * (3 if depth == 16 else 1) * depth // 8)) * 64
    header = (64).to_bytes(4, "big") * 2 + bytes((depth, 2 if depth == 16 else 0, 0, 0, 0))
    picture = PictureBytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""), 10**6)()
    assert picture.mode == {1: "1", 16: "RGB"}.get(depth, "L") and originals.of(picture) is None


def segment(code: int, content: bytes) -> bytes:
    return bytes((0xFF, code)) + (len(content) + 2).to_bytes(2, "big") + content


HIDDEN = SECRET * 8
TABLES = [(0xDB, number.to_bytes() + HIDDEN) for number in (0, 3)]
TABLES += [(0xC4, number.to_bytes() + bytes((0, 0, 0, 0, 0, 0, 0, 64)) + bytes(8) + HIDDEN) for number in (0x00, 0x10, 0x02, 0x13)]


@pytest.mark.parametrize("mode, options", [("L", {}), ("RGB", {}), ("RGB", {"progressive": True}), ("L", {"optimize": True})])
@pytest.mark.parametrize("code, table", TABLES, ids=[f"{code:x}-{table[0]:x}" for code, table in TABLES])
def test_nothing_hides_in_tables_of_a_jpeg_that_decode_nothing(code, table, mode, options):
    """Table 0 is defined anew before a scan uses it, the others never are used; one segment may hold several."""
    data = coded("JPEG", mode, **options)
    clean = originals.of(PictureBytes(data, 10**6)())
    assert clean == data
    first = data.index(b"\xff\xdb")
    after = first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")
    ways = [data[:2] + segment(code, table) + data[2:]]
    ways += [data[:first] + segment(code, table + data[first + 4 : after]) + data[after:]] if code == 0xDB else []
    for way in ways:
        picture = PictureBytes(way, 10**6)()
        assert SECRET in way and originals.of(picture) == clean
        np.testing.assert_array_equal(np.asarray(sample.Image.encode(picture).open()), np.asarray(picture))


@pytest.mark.parametrize("code", [0xDC, 0xDE, 0xF0])
def test_a_jpeg_with_segments_that_nobody_needs_is_coded_anew(code):
    data = coded("JPEG", "L")
    picture = PictureBytes(data, 10**6)()
    assert originals.of(originals.mark(picture, data[:-2] + segment(code, SECRET) + data[-2:])) is None


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_nothing_hides_behind_the_rows_of_a_png(mode):
    data = coded("PNG", mode)
    start, end = data.index(b"IDAT") - 4, len(data) - 12
    rows = zlib.decompress(data[start + 8 : end - 4])
    assert originals.of(PictureBytes(data, 10**6)()) == data
    for hidden in (data[start:end] + chunk(b"IDAT", SECRET), chunk(b"IDAT", data[start + 8 : end - 4] + SECRET), chunk(b"IDAT", zlib.compress(rows + SECRET, 0))):
        picture = PictureBytes(data[:start] + hidden + data[end:], 10**6)()
        assert SECRET not in sample.Image.encode(picture).data and originals.of(picture) is None
