"""NIfTI: slices as radiologists hang them, one window a volume, and every damaged or foreign file kept aside."""

import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from corpus.readers import formats, nifti
from corpus.readers.source import Source
from corpus.record import Record
from tests.corpus.taking_in import take_in

SHIPPED = Path(nibabel.__file__).parent / "tests" / "data"


def records(path, **options):
    return list(nifti.read(Source(path, "s", license="CC0-1.0", modality="mr", **options)))


def save(path, values, affine=None, header=None):
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine, header), path)
    return path


@pytest.fixture
def volume():
    """(40, 50, 30) towards right, anterior, superior; brighter towards the right and darker towards the front."""
    x, y, z = np.meshgrid(np.arange(40), np.arange(50), np.arange(30), indexing="ij")
    return (1000 + 10 * x - 4 * y + z).astype(np.float32)


@pytest.mark.parametrize("name, slices", [("anatomical.nii", 16), ("example4d.nii.gz", 16), ("functional.nii", 3), ("resampled_anat_moved.nii", 3)])
def test_shipped_volumes(name, slices):
    found = records(SHIPPED / name)
    assert len(found) == slices and all(record.images[0]().mode == "L" and record.caption == "MRI image." for record in found)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SLA"])
def test_axes_stored_in_any_order_show_the_same_picture(tmp_path, volume, axes):
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    turned = nibabel.orientations.apply_orientation(volume, turn)
    save(tmp_path / "v.nii", turned, np.eye(4) @ inv_ornt_aff(turn, volume.shape))
    shown = np.asarray(records(tmp_path / "v.nii")[0].images[0](), dtype=int)
    assert shown.shape == (50, 40)
    # The patient's right is on the left of the picture, the front on top.
    assert shown[25, 0] > shown[25, -1] and shown[0, 20] < shown[-1, 20]


def test_pixels_are_made_square(tmp_path, volume):
    save(tmp_path / "v.nii", volume, np.diag([1, 1, 3, 1]))
    assert records(tmp_path, plane="coronal")[0].images[0]().size == (40, 90)
    assert records(tmp_path, plane="sagittal")[0].images[0]().size == (50, 90)
    assert records(tmp_path, plane="axial")[0].images[0]().size == (40, 50)


def test_one_window_serves_the_whole_volume(tmp_path):
    values = np.zeros((40, 40, 4), np.float32)
    values[..., 1], values[..., 2], values[..., 3] = 100, 200, 400
    shades = [np.asarray(record.images[0]()).max() for record in records(save(tmp_path / "v.nii.gz", values + np.random.default_rng(0).random(values.shape, np.float32)))]
    assert len(shades) == 3 and shades[0] < shades[1] < shades[2]


@pytest.mark.parametrize("odd, meant", [((np.nan, -np.inf), np.min), ((np.inf, np.inf), np.max)])
def test_what_is_not_finite_does_not_stretch_the_window(tmp_path, volume, odd, meant):
    volume[:20, :25], volume[:20, 25:] = odd
    shown = np.asarray(records(save(tmp_path / "v.nii", volume), views=1)[0].images[0](), dtype=float)
    volume[:20] = meant(volume[20:])
    low, high = np.percentile(volume, (0.5, 99.5))
    expected = np.clip((volume[::-1, ::-1, 15].T - low) / (high - low), 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51


def test_pixels_are_square_by_the_axes_that_count(tmp_path, volume):
    """The sizes beside the axes may be others."""
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.set_sform(np.diag([1, 1, 3, 1]), 1)
    image.header["pixdim"][1:4] = 1
    nibabel.save(image, tmp_path / "v.nii")
    assert nibabel.load(tmp_path / "v.nii").header.get_zooms() == (1, 1, 1)
    assert records(tmp_path, plane="coronal")[0].images[0]().size == (40, 90)


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path, volume):
    save(tmp_path / "v.nii", volume).rename(tmp_path / "v.img1")
    (tmp_path / "v.txt").write_text("no volume")
    (shown,), (told,) = (formats.read(Source(tmp_path / name, "s", views=1), "nifti") for name in ("v.img1", "v.txt"))
    assert shown.images[0]().size == (40, 50) and told.reason == "unreadable-volume" and "v." not in shown.where + told.where


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "V.Nii", "V.NII.gz", "v.nii.GZ"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
def test_a_volume_may_be_gzipped_whatever_its_name_says(tmp_path, volume, name, kind, packed):
    whole = kind(volume, np.eye(4)).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(whole, 1) if packed else whole)
    (record,) = formats.read(Source(tmp_path, "s", views=1), "auto")
    assert record.patient.casefold() == "v" and record.images[0]().size == (40, 50)


def test_further_dimensions_of_one_are_none(tmp_path, volume):
    flat, filled = (records(save(tmp_path / f"{len(more)}.nii", volume.reshape(*volume.shape, *more))) for more in ((), (1, 1, 1, 1)))
    assert len(flat) == len(filled) and all(np.array_equal(np.asarray(a.images[0]()), np.asarray(b.images[0]())) for a, b in zip(flat, filled))


def test_extensions_of_any_size_are_not_read(tmp_path, volume):
    """Zeros take next to nothing in a gzipped file."""
    header = bytearray(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()[:352])
    header[108:112] = np.float32(2**28).tobytes()
    header[348:] = b"\1\0\0\0"
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(bytes(header) + (2**28 - 352).to_bytes(4, "little") + bytes(2**28 - 356) + volume.tobytes(), 1))
    tracemalloc.start()
    (told,) = nifti.read(Source(tmp_path, "s"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told.reason == "unreadable-volume" and most < 2**24


def test_empty_slices_are_left_and_the_others_spread(tmp_path, volume):
    volume[:, :, :10] = 0
    indices = [record.labels["slice"] for record in records(save(tmp_path / "v.nii", volume), views=4)]
    assert indices == [12, 17, 22, 27]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_slice_costs_no_copy_of_its_volume(tmp_path, plane):
    volume = np.random.default_rng(0).random((128, 128, 128), np.float32)
    first, second = records(save(tmp_path / "v.nii", volume), plane=plane, views=2)
    shown = first.images[0]()
    tracemalloc.start()
    second.images[0]()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shown.size == (128, 128) and most < volume.nbytes / 8


def test_a_file_that_shrinks_after_it_was_read_takes_nothing_down(tmp_path, volume):
    found = records(save(tmp_path / "v.nii", volume))
    shown = np.asarray(found[0].images[0]())
    os.truncate(tmp_path / "v.nii", 4096)
    assert (np.asarray(found[0].images[0]()) == shown).all()


def test_patients_are_bids_subjects_or_files(tmp_path, volume):
    folder = tmp_path / "sub-03" / "anat"
    folder.mkdir(parents=True)
    first = records(save(folder / "sub-03_ses-1_T1w.nii.gz", volume))[0]
    save(folder / "other.nii", volume)
    assert {first.patient, *(record.patient for record in records(tmp_path))} == {"sub-03"} and first.modality == "MRI"
    assert records(save(tmp_path / "scan7.nii", volume))[0].patient == "scan7"


@pytest.mark.parametrize("format", ["auto", "nifti"])
@pytest.mark.parametrize(
    "names, patients",
    [
        (("sub-01/anat/T1w.nii.gz", "sub-02/anat/T1w.nii.gz"), {"sub-01", "sub-02"}),
        (("a/image.nii.gz", "b/image.nii", "image.nii"), {"a/image", "b/image", "image"}),
    ],
)
def test_patients_whose_files_have_one_name_are_not_one(tmp_path, volume, format, names, patients):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, volume)
    assert {record.patient for record in formats.read(Source(tmp_path, "s"), format)} == patients


def damaged(path, volume):
    whole = save(path, volume + np.random.default_rng(0).random(volume.shape, np.float32)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def labelled(path, volume):
    save(path, (volume > 1200).astype(np.uint8))


def coloured(path, volume):
    save(path, np.zeros((40, 40, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


@pytest.mark.parametrize(
    "make, expected",
    [
        (damaged, "unreadable-volume"),
        (labelled, "label-volume"),
        (lambda path, volume: save(path, np.full_like(volume, np.nan)), "empty-volume"),
        (lambda path, volume: save(path, np.full_like(volume, np.inf)), "empty-volume"),
        (coloured, "not-a-volume"),
        (lambda path, _: save(path, np.linspace(0, 1, 2000, dtype=np.float32).reshape(10, 10, 5, 2, 2)), "not-a-volume"),
        (lambda path, _: path.write_bytes(gzip.compress(b"not a volume" * 99)), "unreadable-volume"),
        (lambda path, _: path.write_bytes(b""), "unreadable-volume"),
        (lambda path, volume: save(path, np.tile(volume, (5, 1, 1))), "too-large"),
    ],
)
def test_kept_aside_with_its_reason(tmp_path, volume, make, expected):
    make(tmp_path / "v.nii.gz", volume)
    assert take_in(nifti, Source(tmp_path, "s", license="CC0-1.0", modality="MRI", max_pixels=8000)).reasons == [expected]


@pytest.mark.parametrize("name", ["sub-1_label-GM_probseg", "sub-1_desc-aparcaseg_dseg", "aparc+aseg", "BraTS_001_seg", "mask", "labelsTr/la_003", "Segmentations/1"])
@pytest.mark.parametrize("format", ["auto", "nifti"])
def test_segmentations_are_told_by_name(tmp_path, volume, format, name):
    """Probabilities and fine atlases have as many values as a picture."""
    file = tmp_path / f"{name}.nii.gz"
    file.parent.mkdir(exist_ok=True)
    save(file, volume)
    taken = take_in(nifti if format == "nifti" else formats, Source(tmp_path, "s", license="CC0-1.0", modality="MRI"))
    assert taken.reasons == ["label-volume"]


def test_the_modality_that_bids_names_is_not_overruled(tmp_path, volume):
    taken = take_in(nifti, Source(save(tmp_path / "sub-1_pet.nii", volume), "s", license="CC0-1.0", modality="MRI"))
    assert set(taken.reasons) == {"unknown-modality"}


def test_extreme_voxels_are_refused(tmp_path, volume):
    found = take_in(nifti, Source(save(tmp_path / "v.nii", volume, np.diag([1, 1e5, 1, 1])), "s", license="CC0-1.0", modality="MRI"))
    assert set(found.reasons) == {"too-large"}


def test_which_paths_are_recognised(tmp_path, volume):
    assert not nifti.recognises(tmp_path)
    save(tmp_path / "v.nii.gz", volume)
    assert nifti.recognises(tmp_path) and nifti.recognises(tmp_path / "v.nii.gz")
    assert all(isinstance(found, Record) for found in records(tmp_path))
