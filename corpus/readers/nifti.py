"""NIfTI volumes (.nii, .nii.gz): slices of the first volume, upright, with square pixels and one window for the whole volume."""

import gzip
import logging
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image as Pillow

from corpus import anatomy, vocabulary
from corpus.readers import tree
from corpus.readers.files import File, evenly_spread, listed
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

# Its lines quote what a header holds, without saying of which file. Who configures logging later takes no filter away.
logging.getLogger("nibabel.global").addFilter(lambda line: False)

_NAME = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
# The last word of a BIDS file name says what was measured.
_BIDS = {"MRI": re.compile(r"_(T1w|T2w|FLAIR|T2starw|PDw|bold|dwi|inplaneT2)$"), "CT": re.compile(r"_ct$"), "PET": re.compile("_pet$")}
# How segmentations are called, by BIDS and FreeSurfer too, and folders of them: the values of probabilities and of fine atlases do not tell.
_LABELS = re.compile(r"(^|[_+-])([ad]?seg|probseg|segmentation|wmparc|masks?|labels?)$", re.IGNORECASE)
_LABEL_FOLDERS = re.compile(r"labels(Tr|Ts)?|masks?|segmentations?", re.IGNORECASE)
# The volume axis (of right, anterior, superior) that runs across the slices.
_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
_PERCENTILES = (0.5, 99.5)
_LABEL_INTENT = 1002
_MOST_LABELS = 32
_NEAR_EMPTY = 0.05
# A volume may have this many slices of the largest permitted size, and a header so many bytes, of which extensions are most.
_DEEPEST, _LARGEST_HEADER = 8, 2**26
_GZIP = b"\x1f\x8b"


class Volume(NamedTuple):
    """Values (x, y, z) float32 towards right, anterior and superior; mm per voxel; the window."""

    values: np.ndarray
    spacing: tuple[float, float, float]
    low: float
    high: float


def recognises(path: Path) -> bool:
    """A .nii or .nii.gz file, or a folder with one."""
    return bool(_NAME.search(path.name)) if path.is_file() else any(_NAME.search(file.name) for file in path.rglob("*.nii*"))


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record for each of at most `source.views` slices of each volume, evenly spread over those that show something.

    Of the header only shape, axes and scaling are used: its free text and extensions are never looked at.

    Raises:
        FileNotFoundError: the folder holds no volume.
    """
    found = False
    for file in listed(source):
        if isinstance(file, Rejection):
            found = True
            yield file
            continue
        if source.path.is_dir() and not _NAME.search(file.path.name):
            continue
        found = True
        try:
            yield from _slices(file, source)
        except Unreadable as error:
            yield Rejection(source.name, file.where, error.reason, str(error))
    if not found:
        raise tree.nothing(source, "NIfTI volume")


def _slices(file: File, source: Source) -> Iterator[Record]:
    # Files of different patients may have one name: the path within the source tells them apart.
    place, stem = (_NAME.sub("", name) for name in (source.place(file.path), file.path.name))
    if _LABELS.search(stem) or any(map(_LABEL_FOLDERS.fullmatch, place.split("/")[:-1])):
        raise Unreadable("label-volume", "by its name or its folder's a segmentation, not a picture")
    volume = _volume(file, source.max_pixels)
    shown = _shown(volume, source.plane)
    if not shown:
        raise Unreadable("empty-volume", "no slice shows anything")
    subject = _SUBJECT.search(place)
    modality = next((name for name, suffix in _BIDS.items() if suffix.search(stem)), None) or vocabulary.modality(source.modality)
    for index in (shown[i] for i in evenly_spread(len(shown), source.views)):
        yield Record(
            id=f"{file.digest}-{index}",
            where=f"{file.where}, {source.plane} slice {index}",
            images=(partial(_open, file, source.plane, index, source.max_pixels),),
            modality=modality or source.modality,
            source=source.name,
            license=source.license,
            attribution=source.attribution,
            split=source.split,
            patient=subject.group() if subject else place,
            caption=anatomy.caption(modality, None),
            labels={"plane": source.plane, "slice": index},
        )


@lru_cache(maxsize=1)
def _volume(file: File, max_pixels: int) -> Volume:
    """Raises Unreadable: unreadable-volume, too-large, not-a-volume, empty-volume or label-volume."""
    import nibabel

    try:
        with _opened(file.path) as stream:
            image = _image(stream)
            shape, dtype = _dimensions(image), image.get_data_dtype()
            if not 2 <= len(shape) <= 4 or dtype.kind not in "iuf":
                raise Unreadable("not-a-volume", f"{len(shape)}-D of type {dtype.kind!r}; two to four dimensions of real numbers are read")
            if max(np.prod(shape[:2]), np.prod(shape[1:3]), np.prod(shape[::2][:2])) > max_pixels or np.prod(shape[:3], dtype=float) > _DEEPEST * max_pixels:
                raise Unreadable("too-large", f"{shape} voxels; a slice may have {max_pixels:,} pixels, a volume {_DEEPEST} times as many")
            image = nibabel.as_closest_canonical(_first(image))
        values = _finite(image.dataobj)
        if int(image.header["intent_code"]) == _LABEL_INTENT or _is_labels(values):
            raise Unreadable("label-volume", "a segmentation, not a picture")
        spacing = tuple(float(s) if np.isfinite(s) and s > 0 else 1.0 for s in nibabel.affines.voxel_sizes(image.affine))
    except Unreadable:
        raise
    except Exception as error:  # damaged files raise anything, from zlib.error to HeaderDataError
        raise Unreadable("unreadable-volume", f"cannot be read ({type(error).__name__})") from None
    return Volume(values, spacing, *(float(p) for p in np.percentile(values, _PERCENTILES)))


def _opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked if they are gzipped, whatever its name says: browsers unpack what they store as .nii.gz."""
    with open(path, "rb") as stream:
        packed = stream.read(len(_GZIP)) == _GZIP
    return gzip.open(path) if packed else open(path, "rb")


def _image(stream: BinaryIO):
    """The image, of which no voxels are read yet. It is never mapped into memory, as a file that shrinks then ends the process."""
    from nibabel import Nifti1Image, Nifti2Image

    start = stream.read(Nifti2Image.header_class.sizeof_hdr)
    kind = Nifti2Image if Nifti2Image.header_class.may_contain_header(start) else Nifti1Image
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    # All that lies before the voxels would be read, extensions of any size.
    if header["vox_offset"] > _LARGEST_HEADER:
        raise Unreadable("unreadable-volume", f"more than {_LARGEST_HEADER:,} bytes before the first voxel")
    return kind.from_file_map(kind.make_file_map({"image": stream}), mmap=False)


def _dimensions(image) -> tuple[int, ...]:
    """The shape without dimensions of one behind the third, which some writers fill up to seven with."""
    shape = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _first(image):
    """The first volume of a series, and a flat picture as a volume of one slice."""
    values = np.asarray(image.dataobj[(..., *[0] * (len(image.shape) - 3))], dtype=np.float32)
    header = image.header.copy()
    return type(image)(values.reshape((*values.shape, 1)[:3]), image.affine, header)


def _finite(values: np.ndarray) -> np.ndarray:
    """What is no number as dark as the darkest voxel, and infinities as the extreme ones, so that they do not stretch the window."""
    finite = np.isfinite(values)
    if not finite.any():
        raise Unreadable("empty-volume", "no voxel has a finite value")
    if finite.all():
        return values
    low, high = (float(extreme(values, where=finite, initial=start)) for extreme, start in ((np.min, np.inf), (np.max, -np.inf)))
    return np.nan_to_num(values, copy=False, nan=low, neginf=low, posinf=high)


def _is_labels(values: np.ndarray) -> bool:
    some = values.flat[:: max(1, values.size // 1_000_000)]
    return bool((some == np.rint(some)).all()) and len(np.unique(some)) <= _MOST_LABELS


def _shown(volume: Volume, plane: str) -> list[int]:
    """Slices of which more than a little is brighter than a tenth of the window."""
    across = _ACROSS[plane]
    bright = volume.values > volume.low + 0.1 * (volume.high - volume.low)
    share = bright.mean(axis=tuple(axis for axis in range(3) if axis != across))
    return [int(i) for i in np.flatnonzero(share > _NEAR_EMPTY)]


def _open(file: File, plane: str, index: int, max_pixels: int) -> Pillow.Image:
    """The slice as radiologists hang it: the patient's right (or front, sagittal) on the left, front or head on top."""
    volume = _volume(file, max_pixels)
    across = _ACROSS[plane]
    values = np.moveaxis(volume.values, across, 0)[index]
    values = values[::-1, ::-1].T
    scaled = np.clip((values - volume.low) / max(volume.high - volume.low, 1e-9), 0, 1)
    picture = Pillow.fromarray(np.rint(scaled * 255).astype(np.uint8))
    wide, high = (s for axis, s in enumerate(volume.spacing) if axis != across)
    finest = min(wide, high)
    size = round(picture.width * wide / finest), round(picture.height * high / finest)
    if size[0] * size[1] > max_pixels:
        raise Unreadable("too-large", f"{size[0]}x{size[1]} px after making pixels square exceed {max_pixels:,}")
    return picture if size == picture.size else picture.resize(size, Pillow.Resampling.BICUBIC)
