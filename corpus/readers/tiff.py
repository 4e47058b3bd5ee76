"""TIFF pictures of numbers that Pillow refuses or misreads: 64 bits, half and double floating point, signed bytes, the other byte order."""

import logging
from typing import BinaryIO

import numpy as np
from PIL import ExifTags
from PIL import Image as Pillow

from corpus.record import Unreadable

# Its lines quote what a tag holds.
logging.getLogger("tifffile").addFilter(lambda line: False)

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _UNCOMPRESSED, _BIG_ENDIAN = 0, 1, b"MM"
_KINDS = {1: "u", 2: "i", 3: "f"}


def is_tiff(file: BinaryIO) -> bool:
    """Whether it begins as TIFF or BigTIFF."""
    file.seek(0)
    return file.read(4) in _MAGIC


def opened(file: BinaryIO, max_pixels: int) -> Pillow.Image:
    """The first page of a file that Pillow refuses, as floating point. Raises Unreadable: too-large, unreadable-image."""
    from tifffile import TiffFile

    try:
        file.seek(0)
        with TiffFile(file) as whole:
            page = whole.pages.first
            if page.imagewidth * page.imagelength > max_pixels:
                raise Unreadable("too-large", f"{page.imagewidth}x{page.imagelength} px exceed the limit of {max_pixels:,} pixels")
            # What a compressed part unpacks to is known only when it is unpacked.
            if page.ndim != 2 or page.dtype is None or page.dtype.kind not in _KINDS.values() or page.compression != _UNCOMPRESSED:
                raise Unreadable("unreadable-image", "of the numbers that it holds only grey that is not compressed is read")
            if max(map(sum, zip(page.dataoffsets, page.databytecounts))) > whole.filehandle.size:
                raise Unreadable("unreadable-image", "it is cut short")
            return _as_meant(page.asarray(maxworkers=1), page.photometric, page.tags.valueof("Orientation"))
    except Unreadable:
        raise
    except Exception as error:  # damaged files raise anything, from struct.error to TiffFileError
        raise Unreadable("unreadable-image", f"cannot be decoded ({type(error).__name__})") from None


def corrected(picture: Pillow.Image) -> Pillow.Image:
    """What Pillow decoded, with the numbers that the file holds: it takes signed bytes for unsigned ones, and swaps those that libtiff has swapped."""
    tags = getattr(picture, "tag_v2", {})
    bits, form = (tags.get(tag, (default,))[0] for tag, default in ((ExifTags.Base.BitsPerSample, 1), (339, 1)))
    kind, compressed = _KINDS.get(form, "u"), tags.get(ExifTags.Base.Compression, _UNCOMPRESSED) != _UNCOMPRESSED
    swapped = compressed and picture.mode in ("I", "F") and tags.prefix == _BIG_ENDIAN
    if not swapped and not (picture.mode == "L" and (kind, bits) == ("i", 8)):
        return picture
    values = np.asarray(picture).astype(f"{kind}{bits // 8}")
    return _as_meant(values.byteswap() if swapped else values, tags.get(ExifTags.Base.PhotometricInterpretation), tags.get(ExifTags.Base.Orientation))


def _as_meant(values: np.ndarray, photometric: int | None, orientation: int | None) -> Pillow.Image:
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    picture = Pillow.fromarray(-values if photometric == _MIN_IS_WHITE else values)
    picture.getexif()[ExifTags.Base.Orientation] = orientation or 1
    return picture
