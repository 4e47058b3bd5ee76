"""MedMNIST: one .npz file a set, with images and labels of three splits."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from corpus import vocabulary
from corpus.readers import npz, textfiles, tree
from corpus.readers.med_mnist_sets import SETS, Set
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable
from corpus.sample import SPLITS, Turn

ATTRIBUTION = "MedMNIST (Yang et al., Scientific Data 2023)"
# Of a volume, the slices at these shares of its first axis are shown together.
SLICES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class _Picture:
    """Opens one array of 8-bit grey (rows, columns) or RGB (rows, columns, 3)."""

    pixels: np.ndarray = field(repr=False)

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.pixels.nbytes

    def __call__(self) -> Pillow.Image:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim not in (2, 3) or self.pixels.shape[2:] not in ((), (3,)):
            raise Unreadable("unreadable-image", f"an array of {self.pixels.dtype} {self.pixels.shape} is no 8-bit picture")
        return Pillow.fromarray(self.pixels)


def recognises(path: Path) -> bool:
    """An .npz file with the name of a set, such as pathmnist.npz or pathmnist_224.npz."""
    return textfiles.named(path, ".npz") and _set_name(path) in SETS


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record an image, or a volume. The set's own licence stands, whatever the source says: DermaMNIST's is not the others'."""
    return tree.read_each(source, recognises, _read_file, "MedMNIST .npz")


def _set_name(file: Path) -> str:
    return re.split(r"[_.]", file.name.casefold())[0]


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    known = SETS.get(_set_name(file))
    if known is None:
        raise Unreadable("unknown-set", f"its name is none of MedMNIST's: {', '.join(SETS)}")
    place, arrays = source.place(file), npz.names(file)
    there = sorted({name.rpartition("_")[0] for name in arrays if name.endswith(("_images", "_labels"))}, key=lambda name: (_order(name), name))
    if not there:
        raise Unreadable("unreadable-file", f"no images and labels of a split; found {', '.join(sorted(arrays))[:200]}")
    counts: dict[str, int] = {}
    for name in there:
        try:
            counts[name] = _count(file, name, arrays, source.max_pixels)
        except Unreadable as error:
            yield Rejection(source.name, f"{place}:{name}", error.reason, str(error))
    altered = _altered(counts, known)
    for name, told in altered.items():
        yield Rejection(source.name, f"{place}:{name}", "altered-mirror", told)
    for name in counts:
        try:
            pairs = zip(npz.rows(file, f"{name}_images"), npz.rows(file, f"{name}_labels"))
            for number, (image, label) in enumerate(pairs):
                yield _record(image, label, f"{place}:{name}:{number}", vocabulary.split(name), known, source, bool(altered))
        except Unreadable as error:
            yield Rejection(source.name, f"{place}:{name}", error.reason, str(error))


def _order(name: str) -> int:
    """Train, val, test, and last what is no split."""
    return (*SPLITS, None).index(vocabulary.split(name))


def _count(file: Path, name: str, arrays: set[str], max_pixels: int) -> int:
    """How many images a split has. Raises Unreadable: it is none, or cannot be read, or too large."""
    if vocabulary.split(name) is None:
        raise Unreadable("unreadable-file", "arrays of no known split")
    for kind in ("images", "labels"):
        if f"{name}_{kind}" not in arrays:
            raise Unreadable("unreadable-file", f"a split without {kind}")
    count, *size = npz.shape(file, f"{name}_images")
    if prod(size) > max_pixels * (3 if size[-1:] == [3] else 1):
        raise Unreadable("too-large", f"images of {'x'.join(map(str, size))} exceed the limit of {max_pixels:,} pixels")
    if npz.shape(file, f"{name}_labels")[0] != count:
        raise Unreadable("unreadable-file", "not as many labels as images")
    return count


def _altered(counts: dict[str, int], known: Set) -> dict[str, str]:
    """What is told of each split that has not the published number of images."""
    published = {name: [edition[_order(name)] for edition in known.counts] for name in counts}
    return {
        name: f"{count:,} {vocabulary.split(name)} images where {known.title} has {' or '.join(f'{number:,}' for number in published[name])}"
        for name, count in counts.items()
        if count not in published[name]
    }


def _record(image: np.ndarray, label: np.ndarray, place: str, split: str, known: Set, source: Source, altered: bool) -> Record | Rejection:
    named = _named(np.atleast_1d(label), known)
    if named is None:
        return Rejection(source.name, place, "malformed-record", f"its label is none of {known.title}'s {len(known.classes)} classes")
    volume = known.title.endswith("3D")
    # Copies, so that the volume itself is not held.
    shown = [image[int(share * len(image))].copy() for share in SLICES] if volume and image.ndim else [image]
    answer = ", ".join(named) or "none"
    options = "" if known.many else f" One of: {'; '.join(known.classes)}."
    return Record(
        id=place,
        where=place,
        images=tuple(_Picture(np.squeeze(pixels)) for pixels in shown),
        patient=place,
        caption=f"{known.modality} image, {known.topic}: {answer}." if known.modality and not volume else None,
        turns=(Turn(f"What {'are' if known.many else 'is'} the {known.topic}?{options}", answer, "OPEN" if known.many else "CLOSED"),),
        labels={"set": known.title, "classes": named} | ({"altered_mirror": True} if altered else {}),
        **source.known(modality=known.modality, license=known.license, attribution=ATTRIBUTION, split=split),
    )


def _named(label: np.ndarray, known: Set) -> list[str] | None:
    """Names of the classes, or None if the label is none of the set's."""
    if known.many:
        whole = len(label) == len(known.classes) and np.all((label == 0) | (label == 1))
        return [name for name, present in zip(known.classes, label) if present] if whole else None
    index = int(label[0]) if label.size == 1 and label.dtype.kind in "iu" else -1
    return [known.classes[index]] if 0 <= index < len(known.classes) else None
