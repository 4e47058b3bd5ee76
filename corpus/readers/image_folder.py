"""A folder of pictures, perhaps in folders of their class or split; nothing is known but what the folders are called."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from corpus import vocabulary
from corpus.readers import tree
from corpus.readers.pictures import SUFFIXES, PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Turn

# Folder names that say nothing of what is in the pictures.
_PLAIN = ("images", "image", "imgs", "img", "pictures", "photos", "data")
# Names that augmentation gives to its copies, which pose as further patients.
_AUGMENTED = re.compile(r"(^|[_-])(\w*distorted|deformed|\d*rotated\d*|flipped|augmented)[_-]", re.IGNORECASE)
# How masks of what is in the pictures are called, and folders of them.
_MASK = re.compile(r"(^|_)(masks?(_\d+)?|segmentation|superpixels)$", re.IGNORECASE)
_MASKS = re.compile(r"masks?|annotations|segmentations|ground[ _-]?truth|gt", re.IGNORECASE)


def recognises(path: Path) -> bool:
    """A picture, or a folder with one somewhere beneath it."""
    return any(file.suffix.lower() in SUFFIXES for file in tree.walk(path))


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record a picture, labelled with its folder's name.

    Raises:
        FileNotFoundError: there is no picture.
    """
    return tree.read_each(source, recognises, read_picture, "picture")


def read_picture(file: Path, source: Source) -> Iterator[Record | Rejection]:
    """The record of one picture. A folder called train, val or test anywhere above it is its split."""
    place = source.place(file)
    folders = Path(place).parts[:-1]
    if _AUGMENTED.search(file.name):
        yield Rejection(source.name, place, "augmented-copy", "its name is one that augmentation gives to altered copies")
        return
    if _MASK.search(file.stem) or any(map(_MASKS.fullmatch, folders)):
        yield Rejection(source.name, place, "label-picture", "by its name or its folder's a segmentation, not a picture")
        return
    named = [name for name in folders if vocabulary.split(name) is None and name.casefold() not in _PLAIN]
    label = " ".join(re.split(r"[\s_]+", named[-1])).strip() if named else None
    modality = vocabulary.modality(source.modality)
    # A link may lead to any place within the source.
    root = source.top
    yield Record(
        # File names may hold a person's name: what is kept is named by hash.
        id=hashlib.sha256(place.encode(errors="replace")).hexdigest()[:16],
        where=place,
        images=(PictureFile(root, str(file.relative_to(root)), source.max_pixels),),
        patient=place,
        caption=f"{modality} image: {label}." if label and modality else None,
        turns=(Turn("What does this image show?", label, "OPEN"),) if label else (),
        labels={"folder": label} if label else {},
        **source.known(split=next((split for name in folders if (split := vocabulary.split(name))), None)),
    )
