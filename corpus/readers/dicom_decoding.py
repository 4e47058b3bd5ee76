"""Stored values of DICOM frames, each transfer syntax by the decoder that survives damaged data."""

import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image as Pillow

from corpus.record import Unreadable

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import RawDataElement

# Transfer syntaxes (PS3.5 Annex A) by pydicom's name of the decoder; all others are decoded by pydicom itself.
_DECODERS = {
    "pillow": ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
    "gdcm": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "pyjpegls": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "pylibjpeg": tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)),
}
_RLE = "1.2.840.10008.1.2.5"
_OWN = {_RLE: "pydicom"}
_DECODER = {syntax: decoder for decoder, syntaxes in _DECODERS.items() for syntax in syntaxes} | _OWN
# Bytes from which an element is left in the file until it is needed.
LARGE = 2**16
# Bytes of a deflated file, which is in memory as a whole.
_MOST_UNPACKED = 2**29


class DecoderCrashed(RuntimeError):
    """The decoder took its process down."""


@contextmanager
def quietly() -> Iterator[None]:
    """Warnings and log lines about bad values quote them, and a value may be a name."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def read(path: Path) -> "Dataset":
    """The whole file; large elements are read when they are needed.

    It ends where zeros follow, as in files that were made longer than what was written: each eight would be an element.

    Raises:
        Unreadable: too-large, what is deflated would fill the memory.
    """
    from pydicom.filereader import read_partial

    with open(path, "rb") as stream:
        _require_bounded(stream)
        stream.seek(0)
        return read_partial(stream, lambda tag, vr, length: tag.group == 0, defer_size=LARGE, force=True)


def _require_bounded(stream: BinaryIO) -> None:
    """Raises Unreadable: it is deflated, which is unpacked as a whole, and that would be too much."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for packed in iter(partial(stream.read, LARGE), b""):
        size += len(inflater.decompress(packed))
        if size > _MOST_UNPACKED:
            raise Unreadable("too-large", f"it is deflated and holds more than {_MOST_UNPACKED:,} bytes")


def decode(dataset: "Dataset", path: Path, frame: int) -> np.ndarray:
    """Stored values of a frame, (H, W), or RGB (H, W, 3). Raises whatever the decoders raise, or DecoderCrashed.

    Of pixels that were left in the file (see `_left_in_file`) only the frame's are read.
    """
    decoder = _DECODER.get(dataset.file_meta.TransferSyntaxUID, "")
    if decoder == "gdcm":
        return _isolated(path, frame)
    if decoder == "pillow" and dataset.get("PhotometricInterpretation") == "RGB" and (coloured := _by_its_own_word(dataset, path, frame)) is not None:
        return coloured
    if dataset.get("BitsAllocated") == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return _single_bits(dataset, path, frame)
    if unused := _unused_low_bits(dataset):
        return _array(dataset, path, frame, decoder, bits_stored=dataset.BitsStored + unused) >> unused
    return _array(dataset, path, frame, decoder)


def _array(dataset: "Dataset", path: Path, frame: int, decoder: str, **options: object) -> np.ndarray:
    """A frame as pydicom's `pixel_array` gives it, which would read all of them."""
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.pixels.utils import as_pixel_options

    if not (left := _left_in_file(dataset, path)):
        return pixel_array(dataset, index=frame, decoding_plugin=decoder, **options)
    syntax = dataset.file_meta.TransferSyntaxUID
    options |= {"transfer_syntax_uid": syntax, "pixel_keyword": "PixelData"} | ({"pixel_vr": left.VR} if left.VR else {})
    with _pixel_data(dataset, path) as stream:
        return get_decoder(syntax).as_array(stream, index=frame, decoding_plugin=decoder, **as_pixel_options(dataset, **options))[0]


def _left_in_file(dataset: "Dataset", path: Path) -> "RawDataElement | None":
    """The pixel data, where they were not read with the header and can be read by the frame: they are compressed, or as many bytes as the header says."""
    from pydicom.pixels.utils import get_expected_length

    left, syntax = dataset.get_item("PixelData", keep_deferred=True) if "PixelData" in dataset else None, dataset.file_meta.TransferSyntaxUID
    if left is None or left.value is not None or syntax.is_deflated:
        return None
    expected = get_expected_length(dataset) if not syntax.is_encapsulated else 0
    whole = expected <= left.length <= expected + expected % 2 and left.value_tell + expected <= path.stat().st_size
    return left if syntax.is_encapsulated or whole else None


@contextmanager
def _pixel_data(dataset: "Dataset", path: Path) -> Iterator[BinaryIO]:
    """The pixel data from their first byte."""
    left = _left_in_file(dataset, path)
    with open(path, "rb") if left else io.BytesIO(dataset.PixelData) as stream:
        stream.seek(left.value_tell if left else 0)
        yield stream


def _by_its_own_word(dataset: "Dataset", path: Path, frame: int) -> np.ndarray | None:
    """RGB of a JPEG that tells its colours itself: subsampled ones are YCbCr, though the header still says what was compressed,
    and components called R, G and B are those, which pydicom refuses. None where the header has to be believed.
    """
    from pydicom.encaps import get_frame

    with _pixel_data(dataset, path) as stream:
        coded = get_frame(stream, frame, number_of_frames=max(1, int(dataset.get("NumberOfFrames") or 1)))
    jpeg = Pillow.open(io.BytesIO(coded), formats=["JPEG"])
    named = bytes(component for component, *_ in jpeg.layer) == b"RGB"
    subsampled = len({(across, down) for _, across, down, _ in jpeg.layer}) > 1
    return np.asarray(jpeg) if (named or subsampled) and jpeg.size == (dataset.Columns, dataset.Rows) else None


def _single_bits(dataset: "Dataset", path: Path, frame: int) -> np.ndarray:
    """Frames of single bits follow each other without a gap, so that one may begin and end inside a byte (PS3.5 8.1.1)."""
    shape = dataset.Rows, dataset.Columns
    first, size = frame * shape[0] * shape[1], shape[0] * shape[1]
    with _pixel_data(dataset, path) as stream:
        stream.seek(first // 8, io.SEEK_CUR)
        packed = np.frombuffer(stream.read(-(-(first + size) // 8) - first // 8), np.uint8)
    return np.unpackbits(packed, bitorder="little")[first % 8 :][:size].reshape(shape)


def _unused_low_bits(dataset: "Dataset") -> int:
    """How many bits lie below the stored ones (PS3.5 8.1.1); codecs other than RLE do not keep the place of a value."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if "PixelData" not in dataset or syntax.is_encapsulated and syntax != _RLE:
        return 0
    high = dataset.get("HighBit") or 0
    return max(0, high + 1 - dataset.BitsStored) if high < dataset.BitsAllocated else 0


def _isolated(path: Path, frame: int) -> np.ndarray:
    """GDCM aborts on some damaged pictures, so it works in a process of its own."""
    try:
        return _workers().submit(_by_gdcm, path, frame).result()
    except BrokenProcessPool:
        _workers.cache_clear()
        raise DecoderCrashed("the decoder crashed") from None


@lru_cache(maxsize=1)
def _workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


def _by_gdcm(path: Path, frame: int) -> np.ndarray:
    with quietly():
        return _array(read(path), path, frame, "gdcm")
