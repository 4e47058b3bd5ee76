"""What coded DICOM values say in plain words: modality, part of the body, view. Free text is never read."""

# Defined terms of BodyPartExamined (PS3.16 Annex L) met in practice.
BODY_PARTS = {
    "ABDOMEN": "abdomen",
    "ABDOMENPELVIS": "abdomen and pelvis",
    "ANKLE": "ankle",
    "BRAIN": "head",
    "BREAST": "breast",
    "CHEST": "chest",
    "CHESTABDOMEN": "chest and abdomen",
    "CLAVICLE": "clavicle",
    "COLON": "colon",
    "CSPINE": "cervical spine",
    "ELBOW": "elbow",
    "EXTREMITY": "limb",
    "EYE": "eye",
    "FEMUR": "thigh",
    "FINGER": "finger",
    "FOOT": "foot",
    "FOREARM": "forearm",
    "HAND": "hand",
    "HEAD": "head",
    "HEADNECK": "head and neck",
    "HEART": "heart",
    "HIP": "hip",
    "HUMERUS": "upper arm",
    "KIDNEY": "kidney",
    "KNEE": "knee",
    "LEG": "leg",
    "LIVER": "liver",
    "LSPINE": "lumbar spine",
    "LUNG": "chest",
    "NECK": "neck",
    "PELVIS": "pelvis",
    "PROSTATE": "prostate",
    "RETINA": "eye",
    "SHOULDER": "shoulder",
    "SKIN": "skin",
    "SKULL": "head",
    "SPINE": "spine",
    "STOMACH": "stomach",
    "THORAX": "chest",
    "THYROID": "thyroid",
    "TSPINE": "thoracic spine",
    "UTERUS": "uterus",
    "WHOLEBODY": "whole body",
    "WHOLE BODY": "whole body",
    "WRIST": "wrist",
}
# Codes of AnatomicRegionSequence (SNOMED CT and its SRT forms, PS3.16 CID 4031).
REGION_CODES = {
    "51185008": "chest",
    "T-D3000": "chest",
    "818981001": "abdomen",
    "113345001": "abdomen",
    "T-D4000": "abdomen",
    "69536005": "head",
    "T-D1100": "head",
    "12738006": "head",
    "T-A0100": "head",
    "45048000": "neck",
    "T-D1600": "neck",
    "816092008": "pelvis",
    "12921003": "pelvis",
    "T-D6000": "pelvis",
    "76752008": "breast",
    "T-04000": "breast",
    "80891009": "heart",
    "T-32000": "heart",
    "10200004": "liver",
    "T-62000": "liver",
    "64033007": "kidney",
    "T-71000": "kidney",
    "81745001": "eye",
    "T-AA000": "eye",
    "5665001": "eye",
    "T-AA610": "eye",
    "71854001": "colon",
    "T-59300": "colon",
    "72696002": "knee",
    "T-D9200": "knee",
    "85562004": "hand",
    "T-D8700": "hand",
}
VIEWS = ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAO", "RAO", "CC", "MLO", "ML", "LM")

# PS3.3 C.7.3.1.1.1; what is not here (SEG, RTDOSE, NM, PT ...) has no place in the vocabulary.
_MODALITIES = {
    "CT": "CT",
    "MR": "MRI",
    "US": "Ultrasound",
    "IVUS": "Ultrasound",
    "OP": "CFP",
    "OPT": "OCT",
    "IVOCT": "OCT",
    "OCT": "OCT",
    "ES": "Endoscopy",
    "SM": "Histopathology",
    "GM": "Microscopy",
    "DMS": "Dermoscopy",
}
_RADIOGRAPHS = ("CR", "DX", "RG", "MG", "PX", "IO", "RF", "XA")


def modality(code: str, part: str | None) -> str | None:
    """The corpus's modality for a DICOM Modality; a plain radiograph of the chest is a CXR. None if it has none."""
    if code in _RADIOGRAPHS:
        return "CXR" if part == "chest" and code in ("CR", "DX", "RG") else "X-ray"
    return _MODALITIES.get(code)


def caption(name: str | None, part: str | None) -> str | None:
    """What may be said of a picture of which only the modality and perhaps the part of the body is known."""
    return (f"{name} image of the {part}." if part else f"{name} image.") if name else None
