"""DICOM: every kind of file becomes the picture it means, or is kept aside with its reason."""

import io
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, EncapsulatedPDFStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, SecondaryCaptureImageStorage, VLWholeSlideMicroscopyImageStorage

from corpus.readers import dicom, formats
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable
from tests.corpus import dicom_table
from tests.corpus.dicom_making import dataset, save
from tests.corpus.taking_in import SALT, take_in

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, at values that are meant to be wrong
GRADIENT = np.arange(64 * 64).reshape(64, 64)


def records(path, **options):
    return list(dicom.read(Source(path, "s", license="MIT", salt=SALT, **options)))


def picture(tmp_path, made, **options):
    return np.asarray(records(save(made, tmp_path / "x.dcm"), **options)[0].images[0](), dtype=float)


def item(**elements) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def test_each_shipped_file_becomes_what_the_docs_say():
    rows = [line.strip("| ").split(" | ") for line in dicom_table.DOCS.read_text().splitlines() if line.startswith("| ")][2:]
    assert {name: outcome for name, outcome in rows} == {name: dicom_table.outcome(path) for name, path in dicom_table.files().items()}


@pytest.mark.parametrize("name", ["MR_small.dcm", "693_J2KI.dcm", "examples_overlay.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_windows_are_those_of_an_independent_computation(name):
    path = get_testdata_file(name, download=False)
    header = dcmread(path)
    top = 2 ** header.BitsStored - 1
    voi = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header, index=0)
    low = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    expected = (voi - (low * slope + intercept)) / (top * slope) * 255
    assert np.abs(np.asarray(records(dicom_table.files()[name])[0].images[0]()) - expected).max() <= 0.51


def test_without_a_window_values_keep_their_bits_until_quality_control(tmp_path):
    shown = picture(tmp_path, dataset(GRADIENT.astype(np.int16) - 1000, RescaleSlope=2, RescaleIntercept=-7))
    assert (shown == (GRADIENT - 1000) * 2 - 7).all()


def test_monochrome1_is_inverted(tmp_path):
    made = dataset(GRADIENT.astype(np.uint16), PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    shown = picture(tmp_path, made)
    assert shown[0, 0] == 255 and shown[-1, -1] == 0
    assert picture(tmp_path, dataset(GRADIENT.astype(np.uint16), PhotometricInterpretation="MONOCHROME1"))[0, 0] == 0


@pytest.mark.parametrize("centre, width", [(2048, -4096), (2048, "NaN"), (["", ""], ["", ""])])
def test_a_window_that_is_none_is_no_threshold(tmp_path, centre, width):
    made = dataset(GRADIENT.astype(np.uint16))
    for keyword, value in (("WindowCenter", centre), ("WindowWidth", width)):
        made.add_new(keyword, "LO" if value == "NaN" else "DS", value)
    assert (picture(tmp_path, made) == GRADIENT).all()


def test_of_several_windows_one_may_be_blank(tmp_path):
    made = dataset(GRADIENT.astype(np.uint16), WindowCenter=["2048", ""], WindowWidth=["4096", ""])
    assert np.abs(picture(tmp_path, made) - GRADIENT / 4095 * 255).max() <= 0.51


def test_a_window_of_floating_point_may_be_narrower_than_one(tmp_path):
    made = dataset((GRADIENT / 4095).astype(np.float32), WindowCenter=0.5, WindowWidth=1 / 1.001)
    assert np.abs(picture(tmp_path, made) - GRADIENT / 4095 * 255).max() <= 1


@pytest.mark.parametrize("kind, slope, inverted", [("MONOCHROME2", -1, True), ("MONOCHROME1", -1, False), ("MONOCHROME2", 2, False)])
def test_a_falling_slope_inverts_bytes(tmp_path, kind, slope, inverted):
    stored = (GRADIENT % 256).astype(np.uint8)
    made = dataset(stored, PhotometricInterpretation=kind, RescaleSlope=slope, RescaleIntercept=255)
    assert (picture(tmp_path, made) == (255 - stored if inverted else stored)).all()


def test_twelve_bits_in_sixteen_ignore_what_is_in_the_others(tmp_path):
    made = dataset((GRADIENT | 0xA000).astype(np.uint16), BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    assert picture(tmp_path, made)[0, 0] == 0


@pytest.mark.parametrize("lowest", [0, -2048])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_twelve_bits_may_be_the_high_ones(tmp_path, lowest, syntax):
    made = dataset((((GRADIENT + lowest) << 4) | 5).astype(np.int16 if lowest else np.uint16), WindowCenter=2048 + lowest, WindowWidth=4096)
    if syntax == RLELossless:
        made.compress(syntax, generate_instance_uid=False)
    made.BitsStored = 12
    assert np.abs(picture(tmp_path, made) - GRADIENT / 4095 * 255).max() <= 0.51


def test_a_voi_table_counts_before_a_window(tmp_path):
    table = item(LUTDescriptor=[4096, 0, 8], LUTData=bytes(255 - i // 16 for i in range(4096)))
    made = dataset(GRADIENT.astype(np.uint16), VOILUTSequence=[table], WindowCenter=2048, WindowWidth=4096)
    made.VOILUTSequence[0]["LUTData"].VR = "OW"
    shown = picture(tmp_path, made)
    assert shown[0, 0] == 255 and shown[-1, -1] == 0


@pytest.mark.parametrize("stored, intercept", [(np.uint16, -1024), (np.int16, 0)])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_voi_table_may_begin_below_zero(tmp_path, stored, intercept, syntax):
    table, entries = Dataset(), np.arange(4096)[::-1] * 16
    table.add_new("LUTDescriptor", "US", [4096, 2**16 - 1024, 16])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    made = dataset((GRADIENT - 1024 - intercept).astype(stored), VOILUTSequence=[table], RescaleSlope=1, RescaleIntercept=intercept)
    made.file_meta.TransferSyntaxUID = syntax
    assert np.abs(picture(tmp_path, made) - entries[GRADIENT] / 65535 * 255).max() <= 0.51


@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
@pytest.mark.parametrize("bits, words", [(8, "u1"), (8, "<u2"), (12, "<u2")])
def test_a_modality_table_may_hold_bytes(tmp_path, stored, bits, words):
    entries = np.arange(256)[::-1] * 2**bits // 256
    table = item(LUTDescriptor=[256, 0, bits])
    table.add_new("LUTData", "OW", entries.astype(words).tobytes())
    made = dataset((GRADIENT % 256).astype(stored), ModalityLUTSequence=[table])
    assert np.abs(picture(tmp_path, made) - entries[GRADIENT % 256]).max() < 1e-3


def test_the_first_of_several_windows_counts(tmp_path):
    shown = picture(tmp_path, dataset(GRADIENT.astype(np.uint16), WindowCenter=[2048, 10], WindowWidth=[4096, 2]))
    assert abs(shown[32, 0] - 127.5) < 1


@pytest.mark.parametrize("function, middle", [("LINEAR_EXACT", 127.5), ("SIGMOID", 127.5), ("LINEAR", 127.5)])
def test_window_functions(tmp_path, function, middle):
    shown = picture(tmp_path, dataset(GRADIENT.astype(np.uint16), WindowCenter=2048, WindowWidth=1000, VOILUTFunction=function))
    assert abs(shown[32, 0] - middle) < 1 and shown[0, 0] < 2 and shown[-1, -1] > 253


def test_windows_of_single_frames(tmp_path):
    windows = [item(FrameVOILUTSequence=[item(WindowCenter=c, WindowWidth=2)]) for c in (1, 100000)]
    made = dataset(np.stack([GRADIENT, GRADIENT]).astype(np.uint16), PerFrameFunctionalGroupsSequence=windows)
    first, second = (np.asarray(record.images[0]()) for record in records(save(made, tmp_path / "x.dcm")))
    assert first[-1, -1] == 255 and second[-1, -1] == 0


@pytest.mark.parametrize(
    "sequence, window",
    [("VOILUTSequence", {}), ("ModalityLUTSequence", {"WindowCenter": 32768, "WindowWidth": 65536})],
)
def test_tables_of_all_frames_beside_transformations_of_single_ones(tmp_path, sequence, window):
    entries = np.arange(4096)[::-1] * 16
    table = item(LUTDescriptor=[4096, 0, 16])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    groups = [item(FrameVOILUTSequence=[item(**window)]) for _ in range(2)]
    made = dataset(np.stack([GRADIENT, GRADIENT]).astype(np.uint16), PerFrameFunctionalGroupsSequence=groups, **{sequence: [table]})
    assert np.abs(picture(tmp_path, made) - entries[GRADIENT] / 65535 * 255).max() < 1


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_tables_of_single_frames(tmp_path, groups):
    """As enhanced angiography may have them in place of a window (PS3.3 C.7.6.16.2.10b)."""
    entries = np.arange(4096)[::-1] * 16
    table = item(LUTDescriptor=[4096, 0, 16])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    made = dataset(np.stack([GRADIENT]).astype(np.uint16), **{groups: [item(FrameVOILUTSequence=[item(VOILUTSequence=[table])])]})
    assert np.abs(picture(tmp_path, made) - entries[GRADIENT] / 65535 * 255).max() < 1


@pytest.mark.parametrize(
    "words, bits, syntax",
    [
        ("<u2", 16, ExplicitVRLittleEndian),
        (">u2", 16, ExplicitVRBigEndian),
        ("u1", 8, ExplicitVRLittleEndian),
        ("<u2", 8, ExplicitVRLittleEndian),
        (">u2", 8, ExplicitVRBigEndian),
    ],
)
def test_palettes_of_bytes_and_words(tmp_path, words, bits, syntax):
    made, rng = dataset((GRADIENT % 256).astype(words), PhotometricInterpretation="PALETTE COLOR"), np.random.default_rng(0)
    made.file_meta.TransferSyntaxUID = syntax
    entries = rng.integers(0, 2**bits, (3, 256))
    for name, values in zip(("Red", "Green", "Blue"), entries):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(made, f"{name}PaletteColorLookupTableData", values.astype(words).tobytes())
    assert np.abs(picture(tmp_path, made) - np.moveaxis(entries[:, GRADIENT % 256], 0, -1) / (2**bits - 1) * 255).max() <= 0.51


@pytest.mark.parametrize("words, bits, syntax", [("<u2", 16, ExplicitVRLittleEndian), (">u2", 16, ExplicitVRBigEndian), ("u1", 8, ExplicitVRLittleEndian)])
def test_palettes_in_segments(tmp_path, words, bits, syntax):
    made, top = dataset((GRADIENT % 256).astype(words), PhotometricInterpretation="PALETTE COLOR"), 2**bits - 1
    made.file_meta.TransferSyntaxUID = syntax
    # Of each colour the first entry as it is, then a straight line to the last.
    for name, first, last in (("Red", 0, top), ("Green", top, 0), ("Blue", 7, 7)):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(made, f"Segmented{name}PaletteColorLookupTableData", np.array([0, 1, first, 1, 255, last], words).tobytes())
    ramp = GRADIENT % 256
    assert np.abs(picture(tmp_path, made) - np.stack([ramp, 255 - ramp, np.full_like(ramp, round(7 / top * 255))], axis=-1)).max() <= 1


def test_colour_by_plane(tmp_path):
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 0] = 200
    made = dataset(rgb, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    assert (picture(tmp_path, made)[5, 5] == (200, 0, 0)).all()


@pytest.mark.parametrize("coded", [{"subsampling": 2}, {"subsampling": 1}, {"keep_rgb": True}])
def test_a_jpeg_that_tells_its_colours_is_believed(tmp_path, coded):
    """Devices write RGB for what they compressed to subsampled YCbCr; without JFIF's and Adobe's segments the codestream alone tells."""
    ramp = np.linspace(0, 255, 64)
    rgb = np.stack([np.add.outer(ramp, ramp) / 2, np.add.outer(ramp, 255 - ramp) / 2, np.add.outer(255 - ramp, 0 * ramp + 80) / 2], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, **coded)
    data = stream.getvalue()
    while 0xE0 <= data[3] <= 0xEF:
        data = data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]
    made = dataset(rgb, PixelData=encapsulate([data]))
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    assert np.abs(picture(tmp_path, made) - rgb).max() < 6
    made.Columns = 128
    with pytest.raises((ValueError, AttributeError)):
        picture(tmp_path, made)


def test_floating_point_pixels(tmp_path):
    assert picture(tmp_path, dataset((GRADIENT / 10).astype(np.float32)))[0, 5] == 0.5


def test_single_bits_are_black_and_white():
    shown = np.asarray(records(dicom_table.files()["liver_1frame.dcm"])[0].images[0]())
    assert set(np.unique(shown)) == {0, 255}


def test_frames_of_single_bits_may_begin_inside_a_byte(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (5, 10, 11), dtype=np.uint8)
    packed = np.packbits(bits, bitorder="little").tobytes() + b"\0"
    made = dataset(bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed)
    shown = [np.asarray(record.images[0]()) for record in records(save(made, tmp_path / "x.dcm"))]
    assert (np.stack(shown) == bits * 255).all()


def many_frames(kind: str) -> tuple[np.ndarray, Dataset]:
    """A thousand frames of 64 x 64, and an object that holds them in this way."""
    values = np.random.default_rng(0).integers(0, 2 if kind == "bits" else 256, (1000, 64, 64), dtype=np.uint8)
    if kind == "bits":
        return values * 255, dataset(values, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=np.packbits(values, bitorder="little").tobytes())
    made = dataset(values)
    if kind == "rle":
        made.PixelData = encapsulate([RLELosslessEncoder.encode(frame.tobytes(), rows=64, columns=64, **_OF_BYTES) for frame in values])
        made.file_meta.TransferSyntaxUID = RLELossless
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return values, made


_OF_BYTES = {"samples_per_pixel": 1, "number_of_frames": 1, "bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}


@pytest.mark.parametrize("kind", ["bytes", "bits", "rle"])
def test_of_many_frames_one_is_in_memory(tmp_path, kind):
    values, made = many_frames(kind)
    first, second = (save(made, tmp_path / name) for name in ("1.dcm", "2.dcm"))
    records(first)[0].images[0]()
    found = records(second, views=3)
    tracemalloc.start()
    shown = [np.asarray(record.images[0]()) for record in found]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (np.stack(shown) == values[[record.labels["frame"] - 1 for record in found]]).all()
    assert most < second.stat().st_size / 2


def test_fewer_pixels_than_the_header_says_are_none_of_what_follows_them(tmp_path):
    made = dataset(np.zeros((8, 256, 256), np.uint8), NumberOfFrames=9)
    made.add_new(0xFFFCFFFC, "OB", b"\xff" * 2**17)
    assert {reason for reason in take_in(dicom, Source(save(made, tmp_path / "x.dcm"), "s", license="MIT")).reasons} == {"unreadable-image"}


def test_padding_does_not_stretch_the_window(tmp_path):
    values = GRADIENT.astype(np.int16)
    values[0] = -2000
    assert picture(tmp_path, dataset(values, PixelPaddingValue=-2000)).min() == 64


def test_padding_of_signed_pixels_may_be_written_as_an_unsigned_number(tmp_path):
    values = GRADIENT.astype(np.int16)
    values[0] = -2000
    made = dataset(values)
    made.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert picture(tmp_path, made).min() == 64


@pytest.mark.parametrize("count", [0, -3])
def test_a_senseless_number_of_frames_loses_nothing(tmp_path, count):
    assert len(records(save(dataset(GRADIENT.astype(np.uint8), NumberOfFrames=count), tmp_path / "x.dcm"))) == 1


def test_frames_are_spread_evenly(tmp_path):
    path = save(dataset(np.zeros((100, 64, 64), np.uint8)), tmp_path / "x.dcm")
    assert [record.labels["frame"] for record in records(path, views=4)] == [13, 38, 63, 88]


def test_labels_of_slides_are_set_aside(tmp_path):
    made = dataset(np.zeros((64, 64, 3), np.uint8), SOPClassUID=VLWholeSlideMicroscopyImageStorage, Modality="SM", ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    assert [found.reason for found in records(save(made, tmp_path / "x.dcm"))] == ["slide-label"]
    made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    assert records(save(made, tmp_path / "x.dcm"))[0].modality == "Histopathology"


def test_huge_pictures_are_refused_before_decoding(tmp_path):
    path = save(dataset(GRADIENT.astype(np.uint8), Rows=60000, Columns=60000), tmp_path / "x.dcm")
    with pytest.raises(Unreadable) as refused:
        records(path)[0].images[0]()
    assert refused.value.reason == "too-large"


@pytest.mark.parametrize(
    "elements, stated, expected, caption",
    [
        ({"Modality": "DX", "BodyPartExamined": "CHEST"}, None, "CXR", "CXR image of the chest."),
        ({"Modality": "DX", "AnatomicRegionSequence": [("51185008", "SCT")]}, None, "CXR", "CXR image of the chest."),
        ({"Modality": "CR", "BodyPartExamined": "HAND"}, None, "X-ray", "X-ray image of the hand."),
        ({"Modality": ["DX", "CT"], "BodyPartExamined": ["CHEST", "ABDOMEN"]}, None, "CXR", "CXR image of the chest."),
        ({"Modality": "XA"}, None, "X-ray", "X-ray image."),
        ({"Modality": "OP"}, None, "CFP", "CFP image."),
        ({"Modality": "ES", "BodyPartExamined": "JANE DOE'S COLON"}, "ct", "Endoscopy", "Endoscopy image."),
        ({"Modality": ""}, "mr", "MRI", "MRI image."),
        ({"Modality": ""}, None, None, None),
        ({"Modality": "NM"}, "ct", "NM", None),
        ({"Modality": "SMITH"}, None, None, None),
    ],
)
def test_modality_and_caption_come_from_coded_values(tmp_path, elements, stated, expected, caption):
    if regions := elements.get("AnatomicRegionSequence"):
        elements = elements | {"AnatomicRegionSequence": [item(CodeValue=code, CodingSchemeDesignator=scheme) for code, scheme in regions]}
    record = records(save(dataset(GRADIENT.astype(np.uint8), **elements), tmp_path / "x.dcm"), modality=stated)[0]
    assert (record.modality, record.caption) == (expected, caption)


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_the_body_part_of_an_enhanced_object_is_in_its_frames(tmp_path, groups):
    """PS3.3 C.7.6.16.2.8: enhanced CT and MR have no other coded one."""
    parts = [item(FrameAnatomySequence=[item(AnatomicRegionSequence=[item(CodeValue=code)])]) for code in ("69536005", "45048000")]
    made = dataset(np.stack([GRADIENT, GRADIENT]).astype(np.uint16), **{groups: parts[: 1 if "Shared" in groups else 2]})
    first, second = records(save(made, tmp_path / "x.dcm"))
    assert first.caption == "CT image of the head." and second.caption == ("CT image of the head." if "Shared" in groups else "CT image of the neck.")


def test_secondary_captures_and_declared_text_are_known_to_quality_control(tmp_path):
    save(dataset(GRADIENT.astype(np.uint8), BurnedInAnnotation="YES"), tmp_path / "a.dcm")
    assert take_in(dicom, Source(tmp_path, "s", license="MIT")).reasons == ["burned-in-text"]
    record = records(save(dataset(GRADIENT.astype(np.uint8), SOPClassUID=SecondaryCaptureImageStorage), tmp_path / "a.dcm"))[0]
    assert record.labels["image_class"] == "secondary capture"


def test_a_patient_is_one_person_of_one_issuer(tmp_path):
    def patient(**elements):
        return records(save(dataset(GRADIENT.astype(np.uint8), **elements), tmp_path / "x.dcm"))[0].patient

    assert patient(PatientID="7", IssuerOfPatientID="A") == patient(PatientID="7 ", IssuerOfPatientID="A", StudyInstanceUID="9.9")
    assert patient(PatientID="7", IssuerOfPatientID="A") != patient(PatientID="7", IssuerOfPatientID="B")
    assert patient(PatientID="") == "1.2.3"


@pytest.mark.parametrize("size", [100, 140, 300, 700, 1500])
def test_truncated_files_are_set_aside(tmp_path, size):
    whole = save(dataset(GRADIENT.astype(np.uint16)), tmp_path / "x.dcm").read_bytes()
    (tmp_path / "x.dcm").write_bytes(whole[:size])
    taken = take_in(dicom, Source(tmp_path / "x.dcm", "s", license="MIT"))
    assert not taken.samples and set(taken.reasons) <= {"not-dicom", "no-pixel-data", "unreadable-dicom", "unreadable-image", "unknown-modality"}


def test_an_image_cut_inside_its_header_is_not_told_as_a_report(tmp_path):
    made = dataset(GRADIENT.astype(np.uint16))
    whole = save(made, tmp_path / "x.dcm").read_bytes()
    for size in (whole.index(b"1.2.3.4"), whole.index(b"MONOCHROME2"), whole.index(b"\xe0\x7f\x10\0")):
        (tmp_path / "x.dcm").write_bytes(whole[:size])
        assert [(found.reason, "cut off" in found.detail) for found in records(tmp_path)] == [("no-pixel-data", True)]
    made.SOPClassUID = EncapsulatedPDFStorage
    del made.PixelData
    assert [(found.reason, "report" in found.detail) for found in records(save(made, tmp_path / "x.dcm"))] == [("no-pixel-data", True)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_zeros_after_the_last_element_are_no_elements(tmp_path, syntax):
    """As in files that were made longer than what was written to them."""
    made = dataset(GRADIENT.astype(np.uint16), WindowCenter=2048, WindowWidth=4096)
    made.file_meta.TransferSyntaxUID = syntax
    whole = save(made, tmp_path / "x.dcm").read_bytes()
    if syntax == DeflatedExplicitVRLittleEndian:
        start = 144 + dcmread(tmp_path / "x.dcm").file_meta.FileMetaInformationGroupLength
        stretch = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        whole = whole[:start] + stretch.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS) + bytes(2**24)) + stretch.flush()
    else:
        whole += bytes(2**24)
    (tmp_path / "x.dcm").write_bytes(whole)
    begun = time.process_time()
    (record,) = records(tmp_path / "x.dcm")
    assert np.abs(np.asarray(record.images[0](), dtype=float) - GRADIENT / 4095 * 255).max() <= 0.51 and time.process_time() - begun < 1


def test_a_deflated_file_that_would_fill_the_memory_is_refused(tmp_path):
    made = dataset(GRADIENT.astype(np.uint16))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = save(made, tmp_path / "x.dcm").read_bytes()
    start = 144 + dcmread(tmp_path / "x.dcm").file_meta.FileMetaInformationGroupLength
    stretch = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    begun = stretch.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS)) + stretch.flush(zlib.Z_FULL_FLUSH)
    zeros = stretch.compress(bytes(2**20)) + stretch.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "x.dcm").write_bytes(whole[:start] + begun + 2**10 * zeros + stretch.flush())
    tracemalloc.start()
    outcomes = [(r.reason, "deflated" in r.detail) for r in records(tmp_path / "x.dcm")]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcomes == [("too-large", True)] and most < 2**28


def test_noise_never_raises(tmp_path):
    whole, rng = bytearray(save(dataset(GRADIENT.astype(np.uint16)), tmp_path / "x.dcm").read_bytes()), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(132, 1200, 12):
            damaged[place] = rng.integers(256)
        (tmp_path / "x.dcm").write_bytes(damaged)
        take_in(dicom, Source(tmp_path, "s", license="MIT"))


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm"])
def test_damaged_compressed_pictures_never_take_the_process_down(tmp_path, name):
    whole, rng = dicom_table.files()[name].read_bytes(), np.random.default_rng(0)
    start = whole.index(b"\xe0\x7f\x10\x00") + 12
    for _ in range(12):
        damaged = bytearray(whole)
        for place in rng.integers(start, min(len(whole), start + 400), 6):
            damaged[place] = rng.integers(256)
        (tmp_path / "x.dcm").write_bytes(damaged)
        take_in(dicom, Source(tmp_path, "s", license="MIT", modality="CT"))
    assert len(take_in(dicom, Source(dicom_table.files()[name], "s", license="MIT", modality="CT")).samples) == 1


def test_which_paths_are_recognised(tmp_path):
    assert dicom.recognises(dicom_table.files()["no_meta_group_length.dcm"]) and not dicom.recognises(dicom_table.files()["README.txt"])
    (tmp_path / "notes.txt").write_text("nothing")
    assert not dicom.recognises(tmp_path)
    save(dataset(GRADIENT.astype(np.uint8)), tmp_path / "x.dcm")
    assert dicom.recognises(tmp_path)
    assert [type(found) for found in records(tmp_path)] == [Rejection, Record]


@pytest.mark.parametrize("keyword, value", [("InstanceCreationDate", "20200101"), ("InstanceCreationTime", "1200"), ("InstanceCreatorUID", "1.2")])
def test_without_a_preamble_any_first_element_will_do(tmp_path, keyword, value):
    made = dataset(GRADIENT.astype(np.uint8), **{keyword: value})
    del made.file_meta
    made.save_as(tmp_path / "x", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "x").read_bytes()[:2] == b"\x08\0" and dicom.recognises(tmp_path / "x")
    assert len(records(tmp_path / "x")) == 1


@pytest.mark.parametrize("first", ["FileMetaInformationVersion", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID"])
def test_without_a_preamble_the_header_of_the_file_may_be_incomplete(tmp_path, first):
    """As pydicom writes it unless it is told to keep to the standard."""
    made = dataset(GRADIENT.astype(np.uint8))
    meta = {"FileMetaInformationVersion": b"\0\1", "MediaStorageSOPClassUID": made.SOPClassUID, "MediaStorageSOPInstanceUID": "1.2", "TransferSyntaxUID": ExplicitVRLittleEndian}
    for keyword in list(meta)[list(meta).index(first) :]:
        setattr(made.file_meta, keyword, meta[keyword])
    made.save_as(tmp_path / "x", enforce_file_format=False)
    assert (tmp_path / "x").read_bytes()[:2] == b"\2\0" and dicom.recognises(tmp_path / "x")
    assert np.array_equal(np.asarray(records(tmp_path / "x")[0].images[0]()), GRADIENT.astype(np.uint8))


def test_transfer_syntaxes_that_can_be_decoded():
    from pydicom import uid
    from pydicom.pixels import get_decoder

    lossless = (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian)
    lossy = (uid.JPEGBaseline8Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
    assert all(get_decoder(syntax).is_available for syntax in lossless + lossy)


def test_a_file_is_named_by_its_place_only_among_others(tmp_path):
    """Where each file is read by itself, each would be the first of one."""
    for name in ("a.dcm", "b.dcm"):
        save(dataset(GRADIENT.astype(np.uint8), PatientID=name), tmp_path / name)
    told = {reader: [record.where.partition(" ")[2] for record in reader.read(Source(tmp_path, "s", license="MIT", modality="CT", salt=SALT))] for reader in (dicom, formats)}
    assert told == {dicom: ["(file 1 of 2)", "(file 2 of 2)"], formats: ["", ""]}
