"""De-identification of DICOM headers: the Basic Application Level Confidentiality Profile (DICOM PS3.15 Annex E), as an allow-list.

The standard lists what to remove; here is listed what may stay, so that what nobody thought of (private elements, retired
ones, overlays, curves, nested sequences, text in any field) is gone too. Nothing behind this file sees anything else.
"""

import hmac
import re
from datetime import date, timedelta
from typing import TYPE_CHECKING

from corpus import anatomy

if TYPE_CHECKING:
    from pydicom import Dataset

# PS3.16 CID 7050: the basic profile, and longitudinal information kept with modified dates.
METHOD_CODES = {"113100": "Basic Application Confidentiality Profile", "113107": "Retain Longitudinal Temporal Information Modified Dates Option"}
PROFILE = {"profile": "PS3.15 E basic", "options": list(METHOD_CODES), "method": "allow-list"}

# What decides how stored values become a picture (PS3.3 C.7.6.3, C.11.1, C.11.2, C.7.6.16.2.9/10); numbers and closed terms only.
_NUMBERS = """Rows Columns NumberOfFrames SamplesPerPixel PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation
PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept WindowCenter WindowWidth LUTDescriptor LUTData
RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData""".split()
_SEQUENCES = """ModalityLUTSequence VOILUTSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
PixelValueTransformationSequence FrameVOILUTSequence AnatomicRegionSequence FrameAnatomySequence""".split()
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_DATES = ("StudyDate",)
_MODALITIES = """AR AS AU BDUS BI BMD CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN
    LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT
    RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XC XAPROTOCOL""".split()
# Coded strings can hold anything in a bad file: only the terms of the standard stay.
_TERMS = {
    "Modality": re.compile("|".join(_MODALITIES)),
    "PhotometricInterpretation": re.compile("MONOCHROME[12]|RGB|PALETTE COLOR|YBR_(FULL|FULL_422|PARTIAL_422|PARTIAL_420|ICT|RCT)"),
    "VOILUTFunction": re.compile("LINEAR|LINEAR_EXACT|SIGMOID"),
    "BurnedInAnnotation": re.compile("YES|NO"),
    "ImageType": re.compile("ORIGINAL|DERIVED|PRIMARY|SECONDARY|VOLUME|LABEL|OVERVIEW|THUMBNAIL|LOCALIZER|AXIAL|SCREEN SAVE"),
    "BodyPartExamined": re.compile("|".join(map(re.escape, anatomy.BODY_PARTS))),
    "ViewPosition": re.compile("|".join(anatomy.VIEWS)),
    "CodeValue": re.compile("|".join(map(re.escape, anatomy.REGION_CODES))),
}


def deidentify(header: "Dataset", salt: bytes) -> "Dataset":
    """A new dataset with the allow-listed elements of `header`; no pixels.

    UIDs become keyed ones and dates move by a keyed number of days that is one patient's own; without a salt both are left out.

    Raises:
        ValueError, TypeError: a number is not a number.
    """
    clean = _allowed(header)
    if salt:
        for keyword in _UIDS:
            if header.get(keyword):
                setattr(clean, keyword, keyed_uid(salt, str(header[keyword].value)))
        for keyword in _DATES:
            if moved := shifted_date(salt, patient_of(header), str(header.get(keyword) or "")):
                setattr(clean, keyword, moved)
    if _is_standard(header.get("SOPClassUID")):
        clean.SOPClassUID = header.SOPClassUID
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in METHOD_CODES.items()]
    return clean


def patient_of(header: "Dataset") -> str:
    """What makes one patient: PatientID, as ID|ISSUER if it has one, or else the study's UID, or "". An identifier: never to be stored."""
    patient, issuer = (str(header.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID"))
    if not patient:
        return str(header.get("StudyInstanceUID") or "")
    return f"{patient}|{issuer}" if issuer else patient


def keyed_uid(salt: bytes, uid: str) -> str:
    """A UID under 2.25 (PS3.5 B.2) that stands for `uid`, the same one each time."""
    return f"2.25.{int.from_bytes(hmac.digest(salt, f'uid {uid}'.encode(), 'sha256')[:16])}"


def shifted_date(salt: bytes, patient: str, day: str) -> str | None:
    """`day` (YYYYMMDD) 1 to 3650 days earlier, as many for all dates of a patient; None if it is no date."""
    try:
        parsed = date(int(day[:4]), int(day[4:6]), int(day[6:8]))
        days = 1 + int.from_bytes(hmac.digest(salt, f"date {patient}".encode(), "sha256")[:8]) % 3650
        return (parsed - timedelta(days)).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return None


def _allowed(header: "Dataset") -> "Dataset":
    from pydicom import Dataset

    clean = Dataset()
    clean.set_original_encoding(*header.original_encoding)
    for keyword in _NUMBERS:
        if keyword in header and header[keyword].value not in (None, ""):
            element = header[keyword]
            clean.add_new(element.tag, element.VR, _number(element.value))
    for keyword, pattern in _TERMS.items():
        if terms := _closed(header.get(keyword), pattern):
            setattr(clean, keyword, terms if keyword == "ImageType" else _single(keyword, terms))
    for keyword in _SEQUENCES:
        if header.get(keyword):
            setattr(clean, keyword, [_allowed(item) for item in header[keyword].value])
    return clean


def _number(value: object) -> object:
    if isinstance(value, bytes | int | float):
        return value
    if isinstance(value, str):
        return float(value)
    # One of several may be left blank.
    return [float(v) if isinstance(v, str) else v for v in value if v != ""]


def _closed(value: object, pattern: re.Pattern) -> list[str]:
    values = [value] if isinstance(value, str) else list(value or ())
    terms = [str(v).strip().upper() for v in values]
    return [term for term in terms if pattern.fullmatch(term)]


def _single(keyword: str, terms: list[str]) -> str:
    """The term of an element that should have one alone: the first, but a doubt about burned-in text is a YES."""
    return "YES" if keyword == "BurnedInAnnotation" and "YES" in terms else terms[0]


def _is_standard(uid: object) -> bool:
    return getattr(uid, "name", "") != str(uid or "")


def _code(value: str, meaning: str) -> "Dataset":
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
