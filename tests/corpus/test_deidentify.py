"""De-identification: of a header full of planted identifiers nothing but allow-listed facts comes through."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.datadict import DicomDictionary, keyword_for_tag

from corpus.deidentify import deidentify, keyed_uid, patient_of, shifted_date
from tests.corpus.dicom_making import dataset

SECRET = "ZQXJANEDOE"
TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
BYTES = {"OB", "UN", "OW"}
NUMBERS = {"AS": "037Y", "DA": "19570312", "DT": "19570312101112", "TM": "101112", "DS": "1957.0312", "IS": "19570312", "UI": "1.9.57.3.12"}


def identified() -> Dataset:
    """A header with an identifier in every standard element that can hold one, and in nested, private, repeating and unknown ones."""
    made = dataset(np.zeros((8, 8), np.uint8))
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 > 0x0008 - 1 and keyword and keyword not in made and tag & 0xFFFF and tag >> 16 not in (0x7FE0, 0xFFFE, 0xFFFA, 0xFFFC):
            value = SECRET if vr in TEXTS else SECRET.encode() if vr in BYTES else NUMBERS.get(vr)
            if value is not None:
                made.add_new(tag, vr, value)
            elif vr == "SQ" and tag >> 16 in (0x0008, 0x0010, 0x0018, 0x0040, 0x0088, 0x5200):
                made.add_new(tag, vr, [_nested()])
    block = made.private_block(0x0009, SECRET, create=True)
    block.add_new(1, "LO", SECRET)
    block.add_new(2, "SQ", [_nested()])
    made.add_new(0x50003000, "OB", SECRET.encode())
    made.add_new(0x60003000, "OB", SECRET.encode())
    made.add_new(0x60004000, "LT", SECRET)
    made.add_new(0x60111234, "UN", SECRET.encode())
    return made


def _nested() -> Dataset:
    item, deeper = Dataset(), Dataset()
    deeper.PatientName, deeper.ReferencedSOPInstanceUID = SECRET, "1.9.57.3.12"
    deeper.CodeValue = deeper.LUTExplanation = SECRET
    item.TextValue, item.PersonName, item.Date = SECRET, SECRET, "19570312"
    item.ConceptCodeSequence = [deeper]
    return item


@pytest.fixture(scope="module")
def clean() -> Dataset:
    made = identified()
    assert len(made) > 2500
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames"):
        if keyword in made:
            del made[keyword]
    made.StudyDate, made.PatientID = "20140506", SECRET
    return deidentify(made, b"salt")


def test_no_planted_identifier_comes_through(clean):
    told = clean.to_json()
    for secret in (SECRET, "19570312", "1957", "1.9.57", "037Y", "20140506"):
        assert secret not in told


def test_only_allow_listed_elements_come_through(clean):
    kept = {keyword_for_tag(element.tag) for element in clean}
    tables = {f"{kind}{c}PaletteColorLookupTableData" for kind in ("", "Segmented") for c in ("Red", "Green", "Blue")} | {"LUTData"}
    assert kept - tables <= {
        *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "Modality"),
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "AnatomicRegionSequence"),
        *("PatientIdentityRemoved", "DeidentificationMethodCodeSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    }
    assert not any(element.tag.is_private for element in clean)


def test_it_says_what_was_done(clean):
    assert clean.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in clean.DeidentificationMethodCodeSequence] == ["113100", "113107"]


def test_uids_are_valid_the_same_each_time_and_unlike_under_another_salt():
    assert keyed_uid(b"a", "1.2.3") == keyed_uid(b"a", "1.2.3") != keyed_uid(b"b", "1.2.3")
    from pydicom.uid import UID

    assert UID(keyed_uid(b"a", "1.2.3")).is_valid


def test_dates_move_but_keep_their_distance_within_a_patient():
    days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (shifted_date(b"a", "P1", day) for day in ("20140506", "20140606"))]
    assert days[1] - days[0] == np.timedelta64(31, "D") and days[0] < np.datetime64("2014-05-06")
    assert shifted_date(b"a", "P1", "20140506") != shifted_date(b"a", "P2", "20140506")
    assert shifted_date(b"a", "P1", "Doe") is None


def test_without_a_salt_neither_uids_nor_dates_are_kept():
    made = dataset(np.zeros((8, 8), np.uint8), StudyDate="20140506")
    assert not {"StudyInstanceUID", "SOPInstanceUID", "StudyDate"} & {keyword_for_tag(e.tag) for e in deidentify(made, b"")}


def test_a_patient_without_an_id_is_the_study():
    made = dataset(np.zeros((8, 8), np.uint8), PatientID=" ")
    assert patient_of(made) == "1.2.3"


def test_a_patient_is_the_bare_id_unless_an_issuer_is_named():
    made = dataset(np.zeros((8, 8), np.uint8), PatientID="7 ")
    assert patient_of(made) == "7"
    made.IssuerOfPatientID = "Ward A"
    assert patient_of(made) == "7|Ward A"


def test_of_several_terms_where_one_belongs_the_first_stays():
    made = dataset(np.zeros((8, 8), np.uint8), Modality=["CT", "PT"], BodyPartExamined=["JANE", "CHEST", "HEAD"], ViewPosition=["AP", "PA"])
    made.BurnedInAnnotation, made.ImageType = ["NO", "YES"], ["ORIGINAL", "PRIMARY"]
    clean = deidentify(made, b"")
    assert (clean.Modality, clean.BodyPartExamined, clean.ViewPosition) == ("CT", "CHEST", "AP")
    assert clean.BurnedInAnnotation == "YES" and list(clean.ImageType) == ["ORIGINAL", "PRIMARY"]
