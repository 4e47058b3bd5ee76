"""DICOM files: single and multi-frame images, tiled slides, whatever the transfer syntax (see docs/data.md)."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as Pillow

from corpus import anatomy, deidentify, vocabulary
from corpus.readers import dicom_decoding, dicom_pixels, tree
from corpus.readers.files import File, evenly_spread, listed
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

if TYPE_CHECKING:
    from pydicom import Dataset

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LABEL_TYPES = {"LABEL", "OVERVIEW"}
_LOOKED_AT = 50
# Bytes of the numbers of elements that can be the first of their group: of the file's (its length, version, class, instance, transfer
# syntax), which writers may leave incomplete, or of the data set's (its length, character set, image type, creation, class).
_FIRST = b"\0\1\2\3\5\x08\x10\x12\x13\x14\x16"


def recognises(path: Path) -> bool:
    """A DICOM file, with or without its preamble, or a folder with one among its first files."""
    if path.is_file():
        return _is_dicom(path)
    files = (file for file in tree.walk(path) if file.is_file())
    return any(_is_dicom(file) for _, file in zip(range(_LOOKED_AT), files))


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record for each frame of each file, at most `source.views` evenly spread ones of a file.

    Nothing handed over names a file, as its name may be a person's: `where` gives the start of the file's SHA-256, and of a
    folder its place in the sorted list of files.

    Raises:
        FileNotFoundError: the folder holds no DICOM file.
    """
    found = not source.path.is_dir()
    for file in listed(source):
        if isinstance(file, Rejection):
            found = True
            yield file
            continue
        if not _is_dicom(file.path):
            yield Rejection(source.name, file.where, "not-dicom", "a file of another kind among the DICOM files")
            continue
        found = True
        try:
            with dicom_decoding.quietly():
                frames = list(_records(file, source))
        except Unreadable as error:
            frames = [Rejection(source.name, file.where, error.reason, str(error))]
        except Exception as error:  # a damaged header can raise anything
            frames = [Rejection(source.name, file.where, "unreadable-dicom", f"the header cannot be read ({type(error).__name__})")]
        yield from frames
    if not found:
        raise tree.nothing(source, "DICOM file")


def _records(file: File, source: Source) -> Iterator[Record | Rejection]:
    original = _dataset(file)
    if getattr(original, "file_meta", {}).get("MediaStorageSOPClassUID") == _DIRECTORY_CLASS:
        return
    if not any(keyword in original for keyword in _PIXELS):
        yield _without_picture(file, original, source)
        return
    header = deidentify.deidentify(original, source.salt)
    patient = deidentify.patient_of(original) or file.digest
    if _LABEL_TYPES & set(_values(header.get("ImageType"))):
        yield Rejection(source.name, file.where, "slide-label", "a slide's label or overview, which shows what is written on it")
        return
    frames = max(1, int(header.get("NumberOfFrames") or 1))
    for frame in evenly_spread(frames, source.views):
        known = _known(header, frame, source)
        place = {"frame": frame + 1, "frames": frames} if frames > 1 else {}
        yield Record(
            id=f"{file.digest}-{frame + 1}" if place else file.digest,
            where=f"{file.where}, frame {frame + 1} of {frames}" if place else file.where,
            images=(partial(_open, file, header, frame, source.max_pixels),),
            source=source.name,
            license=source.license,
            attribution=source.attribution,
            split=source.split,
            patient=patient,
            **known | {"labels": known["labels"] | place},
        )


def _without_picture(file: File, original: "Dataset", source: Source) -> Rejection:
    kind = original.get("SOPClassUID") or original.file_meta.get("MediaStorageSOPClassUID")
    is_image = "Image Storage" in getattr(kind, "name", "")
    told = "an image whose pixels are missing: the file is cut off, or a header alone" if is_image else "an object without a picture (a report, a plan, a waveform ...)"
    return Rejection(source.name, file.where, "no-pixel-data", told)


def _known(header: "Dataset", frame: int, source: Source) -> dict:
    """Modality, caption and labels: nothing but closed terms, keyed UIDs and moved dates."""
    code, part = header.get("Modality"), _part(header, frame)
    # OT says "other": the person who adds the source may know. Any other modality is never overruled.
    modality = vocabulary.modality(source.modality) if code in (None, "OT") else anatomy.modality(code, part)
    facts = {
        "body_part": part,
        "view": header.get("ViewPosition"),
        "study": header.get("StudyInstanceUID"),
        "series": header.get("SeriesInstanceUID"),
        "instance": header.get("SOPInstanceUID"),
        "study_date": header.get("StudyDate"),
        "burned_in": header.get("BurnedInAnnotation"),
        "image_class": "secondary capture" if _is_secondary_capture(header) else None,
    }
    labels = {name: str(fact) for name, fact in facts.items() if fact} | {"deidentification": deidentify.PROFILE}
    return {"modality": modality or code, "caption": anatomy.caption(modality, part), "labels": labels}


def _part(header: "Dataset", frame: int) -> str | None:
    """What is shown, of an enhanced object by the frame's functional groups."""
    told = [part for group in dicom_pixels.groups_of_frame(header, frame) for part in group.get("FrameAnatomySequence", [])]
    regions = [item.get("CodeValue") for part in (header, *told) for item in part.get("AnatomicRegionSequence", [])]
    return anatomy.BODY_PARTS.get(header.get("BodyPartExamined")) or next((anatomy.REGION_CODES[r] for r in regions if r in anatomy.REGION_CODES), None)


def _is_secondary_capture(header: "Dataset") -> bool:
    return "Secondary Capture" in getattr(header.get("SOPClassUID"), "name", "") or "SCREEN SAVE" in _values(header.get("ImageType"))


def _open(file: File, header: "Dataset", frame: int, max_pixels: int) -> Pillow.Image:
    """Raises Unreadable with reason too-large or unreadable-image."""
    if header.get("Rows", 0) * header.get("Columns", 0) > max_pixels:
        raise Unreadable("too-large", f"{header.Columns}x{header.Rows} px exceed the limit of {max_pixels:,} pixels")
    try:
        with dicom_decoding.quietly():
            return dicom_pixels.picture(dicom_decoding.decode(_dataset(file), file.path, frame), header, frame)
    except Exception as error:  # decoders raise anything on damaged pixels
        raise Unreadable("unreadable-image", f"cannot be decoded ({type(error).__name__})") from None


@lru_cache(maxsize=1)
def _dataset(file: File) -> "Dataset":
    """The whole file, see `dicom_decoding.read`. Identifiers are in it: for this module only."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = dicom_decoding.read(file.path)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return dataset


def _is_dicom(file: Path) -> bool:
    with open(file, "rb") as stream:
        head = stream.read(132)
    # Without a preamble a file begins with an element of group 2 or 8 (PS3.10 7.1), in either byte order.
    return head[128:] == b"DICM" or (len(head) == 132 and head[:2] in (b"\2\0", b"\x08\0", b"\0\x08") and head[2:4].strip(_FIRST) == b"")


def _values(value: object) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
