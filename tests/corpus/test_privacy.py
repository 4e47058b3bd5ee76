"""Identifiers planted in every channel of a source: none is found in what would be stored, or in what is logged."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import EncapsulatedPDFStorage

from corpus import shards
from corpus.params import CorpusParams
from corpus.readers import dicom, formats, nifti, records
from corpus.readers.source import Source
from tests.conftest import REPO
from tests.corpus.dicom_making import dataset, save
from tests.corpus.taking_in import SALT, take_in
from tests.corpus.test_deidentify import NUMBERS, SECRET, identified

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, at the values planted
SPELLINGS = [form for secret in (SECRET, NUMBERS["DA"], NUMBERS["UI"]) for form in (secret.encode(), secret.encode("utf-16-le"), secret.lower().encode())]


def checked(reader, source, capture, log):
    """What the source becomes, after a search of all that leaves the intake, as stored and decoded, said, warned or logged."""
    capture.readouterr()
    log.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        taken = take_in(reader, source)
    everything = [data for shard in shards.write([taken.samples], CorpusParams().shards) for data in (shard.data, shard.index)]
    everything += [shards.quarantine_bytes(taken.aside), repr([vars(rejection) for rejection in taken.aside]).encode()]
    for sample in taken.samples:
        everything.append(json.dumps(sample.to_row() | {"images": []}, ensure_ascii=False).encode())
        everything += [data for image in sample.images for data in (image.data, image.open().tobytes(), repr(image.open().info).encode())]
    everything += [text.encode() for text in (*capture.readouterr(), log.text, *(str(warning.message) for warning in warned))]
    assert [spelling for spelling in SPELLINGS for data in everything if spelling in data] == []
    return taken


@pytest.fixture(autouse=True)
def loud(caplog):
    caplog.set_level(logging.DEBUG)


def picture(size=64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (size, size), dtype=np.uint8)


def without_numbers(made: Dataset) -> Dataset:
    """Planted numbers in what shapes the picture would only make it unreadable, which is tested apart."""
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames", "VOILUTSequence", "ModalityLUTSequence"):
        if keyword in made:
            del made[keyword]
    return made


@pytest.fixture
def dicom_folder(tmp_path) -> Path:
    folder = tmp_path / f"{SECRET}_19570312"
    folder.mkdir()
    good = without_numbers(identified())
    good.Rows = good.Columns = 64
    good.PixelData = picture().tobytes() + SECRET.encode()
    good.file_meta.SourceApplicationEntityTitle = SECRET
    good.file_meta.PrivateInformationCreatorUID, good.file_meta.PrivateInformation = NUMBERS["UI"], SECRET.encode()
    good.preamble = SECRET.encode().ljust(128, b"\0")
    icon = dataset(picture(8))
    icon.PatientName = SECRET
    good.IconImageSequence = [icon]
    path = save(good, folder / f"{SECRET}.dcm")
    path.write_bytes(path.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\x0a\0\0\0" + SECRET.encode())
    whole = path.read_bytes()
    (folder / f"{SECRET}-cut.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / f"{SECRET}-odd.dcm").write_bytes(whole.replace(b"US\x02\0", b"LO\x02\0", 40))
    (folder / f"{SECRET}.txt").write_text(SECRET)
    bad = dataset(picture(), PatientName=SECRET)
    for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        bad.add_new(keyword, "LO", SECRET)
    save(bad, folder / f"{SECRET}-numbers.dcm")
    letter = Dataset()
    letter.file_meta, letter.SOPClassUID, letter.SOPInstanceUID = good.file_meta, EncapsulatedPDFStorage, "1.2"
    letter.EncapsulatedDocument, letter.PatientName = SECRET.encode() + b"!!", SECRET
    save(letter, folder / f"{SECRET}-letter.dcm")
    return folder


def test_nothing_of_a_dicom_folder(dicom_folder, capfd, caplog):
    taken = checked(dicom, Source(dicom_folder, "s", license="MIT", modality="CT", salt=SALT), capfd, caplog)
    assert len(taken.samples) >= 1 and {"no-pixel-data", "not-dicom", "unreadable-dicom"} <= set(taken.reasons)


def test_nothing_of_what_lies_among_dicom_files(dicom_folder, capfd, caplog):
    """As an archive exports it: a folder a patient, with previews, reports and damaged files, and read as `data add` reads it."""
    export = dicom_folder.parent / "export"
    export.mkdir()
    ward = dicom_folder.rename(export / dicom_folder.name)
    (ward / "JPG").mkdir()
    for place in (f"{SECRET}-preview.jpg", f"JPG/{SECRET}.png"):
        Image.fromarray(picture()).save(ward / place)
    (ward / f"{SECRET}-empty.dcm").touch()
    (ward / f"{SECRET}.xml").write_text("<report/>")
    (export / "cut").mkdir()
    (export / "cut" / f"{SECRET}.dcm").write_bytes(bytes(500))
    (export / f"{SECRET}-2").mkdir()
    Image.fromarray(picture(80)).save(export / f"{SECRET}-2" / "1.png")
    for name in ("a.zip", "b.tar.gz", "c.7z"):
        (export / f"{SECRET}-{name}").write_bytes(b"?")
    os.mkfifo(ward / f"{SECRET}.fifo")
    taken = checked(formats, Source(export, "s", license="MIT", modality="CT", salt=SALT), capfd, caplog)
    assert taken.reasons.count("unnamed-picture") == 3 and taken.reasons.count("unknown-format") == 7


def test_nothing_of_a_medium(tmp_path, capfd, caplog):
    """As a hospital hands it to a patient: scans by number, and whatever else in folders of their own."""
    for place in (".", "cd"):
        root = tmp_path / place.replace(".", "whole") / place
        (root / "DICOM").mkdir(parents=True)
        (root / f"VIEWER/{SECRET}").mkdir(parents=True)
        (root / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR", download=False)).read_bytes())
        save(dataset(picture(), PatientName=SECRET), root / "DICOM" / "1")
        Image.fromarray(picture(80)).save(root / f"VIEWER/{SECRET}/{SECRET}.png")
        (root / f"VIEWER/{SECRET}.xml").write_text("<report/>")
        taken = checked(formats, Source(tmp_path / place.replace(".", "whole"), "s", license="MIT", modality="CT", salt=SALT), capfd, caplog)
        assert sorted(taken.reasons) == ["unknown-format", "unnamed-picture"] and len(taken.samples) == 1


@pytest.mark.parametrize("suffix", ["hdr", "img", "mgz", "mhd", "nrrd", "mnc", "PAR", "REC", "dcm.zip", "nii.bz2", "img.gz"])
def test_nothing_of_scans_that_nobody_reads(tmp_path, capfd, caplog, suffix):
    (tmp_path / f"{SECRET}.{suffix}").write_bytes(b"?")
    assert checked(formats, Source(tmp_path, "s"), capfd, caplog).reasons == ["unknown-format"]


READ = "import pathlib, sys; from corpus.readers import dicom, source; print([r.images[0]().size for r in dicom.read(source.Source(pathlib.Path(sys.argv[1]), 's'))])"


def test_nothing_of_a_header_from_the_process_of_a_decoder(tmp_path):
    made = dcmread(get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False))
    made.add_new("SpecificCharacterSet", "CS", SECRET)
    save(made, tmp_path / "a.dcm")
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "[(100, 100)]\n" and SECRET not in done.stderr


def icc() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", SECRET[:4].encode()) + SECRET.encode()


def test_nothing_of_picture_files(tmp_path, capfd, caplog):
    rng = np.random.default_rng(1)

    def noise() -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x9286] = SECRET, SECRET, SECRET.encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("Name", SECRET)
    text.add_text("Zipped", SECRET, zip=True)
    text.add_itxt("Name", SECRET)
    ways = {
        "a.png": {"pnginfo": text, "exif": exif, "icc_profile": icc()},
        "b.jpg": {"comment": SECRET.encode(), "exif": exif, "icc_profile": icc()},
        "c.gif": {"comment": SECRET.encode()},
        "d.tif": {"description": SECRET, "artist": SECRET, "exif": exif},
        "e.webp": {"exif": exif, "xmp": SECRET.encode(), "lossless": True},
    }
    lines = []
    for name, options in ways.items():
        buffer = io.BytesIO()
        noise().save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper()), **options)
        assert SECRET.encode() in buffer.getvalue() or name == "a.png"
        (tmp_path / name).write_bytes(buffer.getvalue() + SECRET.encode())
        lines.append(json.dumps({"image": name, "modality": "CT", "license": "CC0-1.0", "caption": "CT image.", "patient": SECRET}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    taken = checked(records, Source(tmp_path, "s"), capfd, caplog)
    assert len(taken.samples) == len(ways)


def test_nothing_of_a_nifti_folder(tmp_path, capfd, caplog):
    folder = tmp_path / SECRET
    folder.mkdir()
    header = nibabel.Nifti1Header()
    header["descrip"], header["aux_file"], header["db_name"], header["intent_name"] = (SECRET.encode(),) * 4
    volume = nibabel.Nifti1Image(np.random.default_rng(0).random((40, 40, 5), np.float32), np.eye(4), header)
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nibabel.save(volume, folder / f"{SECRET}.nii")
    whole = (folder / f"{SECRET}.nii").read_bytes()
    assert whole.count(SECRET.encode()) == 5
    (folder / f"{SECRET}-tail.nii").write_bytes(whole + SECRET.encode())
    (folder / f"{SECRET}-cut.nii").write_bytes(whole[:2000])
    taken = checked(nifti, Source(folder, "s", license="CC0-1.0", modality="MRI"), capfd, caplog)
    assert taken.samples and taken.aside


def test_nothing_of_the_numbers_of_a_nifti_header(tmp_path, capfd, caplog):
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((40, 40, 5), np.float32), np.eye(4)), tmp_path / "v.nii")
    whole = (tmp_path / "v.nii").read_bytes()
    kind = int.from_bytes(SECRET[:2].encode(), "little")
    (tmp_path / "v.nii").write_bytes(whole[:70] + SECRET[:2].encode() + whole[72:])
    capfd.readouterr()
    assert take_in(nifti, Source(tmp_path, "s", license="CC0-1.0", modality="MRI")).reasons == ["unreadable-volume"]
    assert str(kind) not in caplog.text + "".join(capfd.readouterr())
