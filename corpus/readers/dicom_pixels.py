"""DICOM frames as pictures: stored values through the modality and VOI transformations (PS3.3 C.11.1, C.11.2, PS3.4 N.2)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOURS = ("Red", "Green", "Blue")
_TRANSFORMATIONS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}


def picture(values: np.ndarray, header: "Dataset", frame: int = 0) -> Pillow.Image:
    """The picture of a frame's stored values (H, W) or RGB (H, W, 3).

    8-bit (mode L or RGB) where the header says how; grey of more bits without a window stays as it is (mode F), to be
    windowed by percentiles like any other 16-bit picture.
    """
    header = _of_frame(header, frame)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return Pillow.fromarray(_coloured(values, header))
    if values.ndim == 3:
        return Pillow.fromarray(_to_byte(values, 2 ** int(header.BitsStored) - 1))
    return _grey(values, header)


def _coloured(values: np.ndarray, header: "Dataset") -> np.ndarray:
    """Bytes of red, green and blue through the palette (PS3.3 C.7.6.3.1.5 and C.7.6.3.1.6)."""
    from pydicom.pixels import apply_color_lut

    if "RedPaletteColorLookupTableData" not in header:  # it is in segments (PS3.3 C.7.9.2)
        return _to_byte(apply_color_lut(values, header), 2 ** int(header.RedPaletteColorLookupTableDescriptor[2]) - 1)
    little_endian = header.original_encoding[1]
    tables = [[header[f"{colour}PaletteColorLookupTable{part}"].value for part in ("Descriptor", "Data")] for colour in _COLOURS]
    return np.stack([_to_byte(_looked_up(values, *table, little_endian), 1) for table in tables], axis=-1)


def _grey(values: np.ndarray, header: "Dataset") -> Pillow.Image:
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    meant = _meant(values, header)
    shown = _displayed(meant, header)
    if shown is None and values.dtype == np.uint8 and not header.get("ModalityLUTSequence"):
        shown = values / (2 ** int(header.BitsStored) - 1)
        inverted = inverted != (header.get("RescaleSlope", 1) < 0)
    if shown is not None:
        return Pillow.fromarray(_to_byte(1 - shown if inverted else shown, 1))
    meant = _without_padding(meant.astype(np.float32), values, header)
    return Pillow.fromarray(-meant if inverted else meant)


def _meant(values: np.ndarray, header: "Dataset") -> np.ndarray:
    """Values through the modality LUT or else the rescale. pydicom's own way with tables fails where their entries are bytes."""
    from pydicom.pixels import apply_modality_lut

    if not header.get("ModalityLUTSequence"):
        return apply_modality_lut(values, header)
    table = header.ModalityLUTSequence[0]
    return _looked_up(values, table.LUTDescriptor, table.LUTData, header.original_encoding[1]) * (2 ** int(table.LUTDescriptor[2]) - 1)


def _displayed(values: np.ndarray, header: "Dataset") -> np.ndarray | None:
    """Values through the first VOI LUT or else the first window, from 0 to 1; None if the header has neither, or a window that is none."""
    if header.get("VOILUTSequence"):
        table = header.VOILUTSequence[0]
        return _looked_up(values, table.LUTDescriptor, table.LUTData, header.original_encoding[1])
    centre, width = (_first(header.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    return window(values, centre, width, header.get("VOILUTFunction") or "LINEAR") if centre is not None and (width or 0) > 0 else None


def _looked_up(values: np.ndarray, descriptor: Sequence[int], data: bytes | Sequence[int], little_endian: bool) -> np.ndarray:
    """Values from 0 to 1 through a table (PS3.3 C.11.2.1.1), whose entries may be bytes or words, few bits in words too."""
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a negative number, written as an unsigned one
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2" if little_endian else ">u2")
    place = np.clip(np.rint(values, dtype=float) - first, 0, entries - 1).astype(int)
    return np.asarray(data)[place] / (2**bits - 1)


def _first(value: object) -> float | None:
    """The first of one or several numbers."""
    numbers = np.atleast_1d(np.asarray([] if value is None else value, float))
    return float(numbers[0]) if len(numbers) else None


def window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values from 0 to 1 through a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    # LINEAR counts whole values: a narrower window, as of floating point, can only be meant exactly.
    if function == "LINEAR_EXACT" or width < 1:
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _without_padding(meant: np.ndarray, values: np.ndarray, header: "Dataset") -> np.ndarray:
    """Padding (PS3.3 C.7.5.1.1.2) as dark as the darkest pixel, so that it does not stretch the window."""
    if header.get("PixelPaddingValue") is None:
        return meant
    limits = np.array([header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)])
    if header.get("PixelRepresentation") == 1:
        limits[limits >= 2**15] -= 2**16  # negative numbers, written as unsigned ones
    low, high = sorted(limits)
    padding = (values >= low) & (values <= high)
    if padding.any() and not padding.all():
        darkest = np.max if header.PhotometricInterpretation == "MONOCHROME1" else np.min
        meant[padding] = darkest(meant[~padding])
    return meant


def _to_byte(values: np.ndarray, top: float) -> np.ndarray:
    return values if values.dtype == np.uint8 and top == 255 else np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)


def groups_of_frame(header: "Dataset", frame: int) -> list["Dataset"]:
    """The functional groups of a frame (PS3.3 C.7.6.16): those of all frames, then its own."""
    found = [g for g in (header.get("SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")) if g]
    return [items[min(frame, len(items) - 1)] for items in found]


def _of_frame(header: "Dataset", frame: int) -> "Dataset":
    """The header with the transformations of the frame's functional groups on top."""
    if not (groups := groups_of_frame(header, frame)):
        return header
    merged = type(header)(header)
    # A copy does not know the byte order of its tables by itself.
    merged.set_original_encoding(*header.original_encoding)
    for group in groups:
        for sequence, keywords in _TRANSFORMATIONS.items():
            for keyword in keywords:
                if group.get(sequence) and keyword in group[sequence].value[0]:
                    merged.add(group[sequence].value[0][keyword])
    return merged
