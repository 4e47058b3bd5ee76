"""Tiles of the real medical images that pinned packages ship, each under its own licence."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from corpus.record import Record
from corpus.sample import Turn

SOURCE = "package-images"


def read(tile: int = 96) -> Iterator[Record]:
    """Tiles of scikit-image's slide and fundus, pydicom's CT and MR, nibabel's MR volume."""
    yield from _tiles("ihc", _skimage("ihc.png"), 128, tile, "Histopathology", "tissue", "public-domain", "Human colon, IHC; CMMI, shipped with scikit-image")
    yield from _tiles("retina", _skimage("retina.jpg"), 235, tile, "CFP", "eye", "CC0-1.0", "Fundus; Mikael Häggström, shipped with scikit-image")
    for name, picture, part in (("CT_small", "CT", "chest"), ("MR_small", "MRI", "head")):
        yield from _views(f"pydicom-{name}", _dicom(f"{name}.dcm"), tile, picture, part, "MIT", "pydicom test file")
    yield from _views("nibabel-example4d", _volume("example4d.nii.gz"), tile, "MRI", "head", "PDDL-1.0", "nibabel test volume")


def _skimage(name: str) -> list[Pillow.Image]:
    import skimage

    return [Pillow.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")]


def _dicom(name: str) -> list[Pillow.Image]:
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    return [_windowed(dcmread(get_testdata_file(name, download=False)).pixel_array)]


def _volume(name: str) -> list[Pillow.Image]:
    import nibabel

    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    data = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)[..., 0]
    return [_windowed(np.rot90(data[:, :, z])) for z in range(4, data.shape[2] - 4, 2)]


def _windowed(values: np.ndarray) -> Pillow.Image:
    low, high = np.percentile(values, (0.5, 99.5))
    return Pillow.fromarray((np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8))


def _tiles(name: str, pictures: list[Pillow.Image], step: int, tile: int, *known) -> Iterator[Record]:
    """Neighbouring squares of a large picture; those that are mostly background are left."""
    picture = pictures[0]
    for top in range(0, picture.height - step + 1, step):
        for left in range(0, picture.width - step + 1, step):
            square = picture.crop((left, top, left + step, top + step)).resize((tile, tile), Pillow.Resampling.LANCZOS)
            if np.asarray(square).mean() > 40:
                yield _record(f"{name}-{top}-{left}", name, square, *known)


def _views(name: str, pictures: list[Pillow.Image], tile: int, *known) -> Iterator[Record]:
    for number, picture in enumerate(pictures):
        yield _record(f"{name}-{number}", name, picture.resize((tile, tile), Pillow.Resampling.LANCZOS), *known)


def _record(identifier: str, group: str, picture: Pillow.Image, modality: str, part: str, license: str, attribution: str) -> Record:
    turns = (Turn("Which imaging modality is this?", modality, "OPEN"), Turn("Which part of the body is shown?", part, "OPEN"))
    # All tiles come from a handful of people: one split, so that nobody is in two.
    return Record(identifier, identifier, (lambda: picture,), modality, SOURCE, license, attribution, "train", group, f"{modality} image of the {part}.", turns, labels={"body_part": part})
