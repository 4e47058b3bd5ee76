"""The words the corpus agrees on: modalities, splits and licences, the spellings met for each, and names of built-in sources."""

import re
from functools import lru_cache

UNIMED_MODALITIES = ("CFP", "CXR", "CT", "Histopathology", "MRI", "OCT", "Ultrasound", "Endoscopy")
EXTRA_MODALITIES = ("X-ray", "Dermoscopy", "Microscopy")
MODALITIES = UNIMED_MODALITIES + EXTRA_MODALITIES
# What stands in the place of one where there is no picture, and none is named.
NO_PICTURE = "Text"

_MODALITY_ALIASES = {
    "CFP": ("fundus", "fundus photography", "color fundus photography", "colour fundus photography", "retinal photography"),
    "CXR": ("chest x-ray", "chest xray", "chest radiograph", "chest radiography"),
    "CT": ("computed tomography",),
    "Histopathology": ("histology", "histopathological", "histological", "his", "pathology", "h&e", "he", "hematoxylin and eosin", "haematoxylin and eosin", "ihc", "immunohistochemistry", "whole slide", "wsi"),
    "MRI": ("mr", "magnetic resonance", "magnetic resonance imaging"),
    "OCT": ("optical coherence tomography",),
    "Ultrasound": ("us", "ultrasonography", "sonography", "sonogram", "echography", "echocardiography", "echocardiogram"),
    "Endoscopy": ("colonoscopy", "gastroscopy", "endoscopic"),
    "X-ray": ("xray", "x ray", "xr", "radiograph", "radiography", "mammography", "mammogram"),
    "Dermoscopy": ("dermatoscopy", "dermatoscope", "dermoscopic"),
    "Microscopy": ("microscope", "cytology", "blood smear"),
}
# Words beside a modality that leave no doubt of it: what is shown (of stomach and uterus a fundus is none of the eye), how, and what it is called.
_CHEST = "chest|lungs?|thorax"
_BODY = (
    "abdomen|abdominal|ankle|brain|breast|cardiac|cervical|cranial|dental|elbow|eye|fetal|foot|hand|head|heart|hip|kidney|knee|liver|lumbar|musculoskeletal|neck"
    "|pelvic|pelvis|prostate|renal|retina|retinal|shoulder|skin|skull|spine|teeth|thyroid|whole[ -]body|wrist"
)
_HOW = (
    "ap|axial|colou?r|contrast([ -]enhanced)?|coronal|digital|doppler|flair|frontal|intravascular|lateral|non[ -]?contrast|pa|panoramic|plain|portable|sagittal|sd"
    r"|spectral[ -]domain|stain(ed|ing)?|t[12]w?|thin|weighted|with|[23]d"
)
_CALLED = "and|an?|camera|frames?|images?|imaging|of|photographs?|photos?|pictures?|scans?|sections?|slices?|slides?|the|tissue|views?"
_BESIDE = re.compile(rf"\b({_CHEST}|{_BODY}|{_HOW}|{_CALLED})\b")
_SPLIT_ALIASES = {"train": ("training",), "val": ("validation", "validate", "valid", "dev", "eval", "evaluation"), "test": ("testing",)}

# Names that no source from outside may have.
BUILT_IN = ("unimed-mini", "package-images")

LICENSES = (
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "ODC-BY-1.0",
    "PDDL-1.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Apache-2.0",
    "ICBM-MNI-permissive",
    "public-domain",
)
# How licences are called beside their identifiers: words for words, and words that tell nothing.
_LICENSE_WORDS = (
    (r"https?://(www\.)?creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)(/(deed|legalcode).*)?/?", r"cc \2 \3"),
    (r"https?://(www\.)?creativecommons\.org/publicdomain/zero/1\.0(/(deed|legalcode).*)?/?", "cc0 1.0"),
    (r"https?://(www\.)?opensource\.org/licen[cs]es?/([a-z0-9.-]+)/?", r"\2"),
    (r"https?://(www\.)?apache\.org/licenses/license-2\.0(\.txt|\.html)?", "apache 2.0"),
    (r"creative commons zero|cc zero", "cc0"),
    (r"open data commons", "odc"),
    (r"creative commons", "cc"),
    (r"attribution", "by"),
    (r"non[ -]?commercial", "nc"),
    (r"share[ -]?alike", "sa"),
    (r"no[ -]?deriv(ative)?s", "nd"),
    (r"public domain dedication and licen[cs]e|public domain dedication|licen[cs]e[ds]?|\b(the|version|international|unported|universal|new|or|revised|simplified)\b", " "),
)
# Characters of a modality, or of a licence's name or address; what is longer is a text of its own, and costs the square of its length.
_LONGEST = 255
# Of these there is one version.
_ONLY_VERSION = {("cc0",): ("1.0", "cc0"), ("by", "odc"): ("1.0", "by", "odc"), ("pddl",): ("1.0", "pddl")}


def _lookup(aliases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {spelling.casefold(): name for name, others in aliases.items() for spelling in (name, *others)}


_MODALITY_OF, _SPLIT_OF = _lookup(_MODALITY_ALIASES), _lookup(_SPLIT_ALIASES)
# Spellings as words of a text, the longest first. Of abbreviations there is no plural: Mrs is no MR.
_NAMED = re.compile(rf"(?<!\w)({'|'.join(re.escape(name) for name in sorted(_MODALITY_OF, key=len, reverse=True))})(?:(?<=\w{{3}})s)?(?!\w)")
# "test set", "trainset", "test-a", "ISIC-2017_Test_v2_Data", "unseen test"; not "test tube".
_OF_PART = r"(?:set|data|images?|inputs?|split|part)"
_PART = re.compile(rf"(?:.*[ -])?({'|'.join(_SPLIT_OF)}){_OF_PART}?\d*(?:[ -](?:{_OF_PART}|v?\d+|[a-z]))*")


def modality(name: object) -> str | None:
    """The canonical modality for a spelling, or None if it is not known. What stands in brackets behind it may go, and words that leave no doubt of it."""
    plain = _plain(name)
    return _MODALITY_OF.get(plain) or (_evident(re.split(r"[(（]", plain)[0].strip()) if len(plain) <= _LONGEST else None)


@lru_cache(maxsize=1024)
def _evident(said: str) -> str | None:
    """The one modality that is named in words which say no more than where and how a picture was taken: "brain MRI", and not "PET-CT"."""
    named, others = {_MODALITY_OF[found[1]] for found in _NAMED.finditer(said)}, _NAMED.sub(" ", said)
    if not named or re.search(r"\w", _BESIDE.sub(" ", others)):
        return None
    chest, elsewhere = (re.search(rf"\b({words})\b", others) for words in (_CHEST, _BODY))
    if named <= {"X-ray", "CXR"} and (chest or "CXR" in named):
        return None if elsewhere else "CXR"
    return named.pop() if len(named) == 1 else None


def split(name: object) -> str | None:
    """"train", "val" or "test" for a spelling, or None."""
    part = _PART.fullmatch(_plain(name))
    return _SPLIT_OF.get(part[1]) if part else None


def license_id(name: object, allowed: tuple[str, ...]) -> str | None:
    """The allowed licence meant by a spelling such as "CC BY 4.0", "MIT License" or its address, or None."""
    plain = _plain(name)
    if len(plain) > _LONGEST:
        return None
    title, inner = re.fullmatch(r"(.*?)(?:\((.*)\)(?: *public domain dedication)?)?", plain).groups()
    wanted = _license_words(title)
    # A title with its short form: the same licence twice, or it is two.
    if inner and _license_words(inner) not in (wanted, tuple(sorted((*wanted, "cc")))):
        return None
    wanted = _license_words(inner) if inner else wanted
    return next((known for known in allowed if _license_words(_plain(known)) == wanted), None) if wanted else None


@lru_cache(maxsize=1024)
def _license_words(plain: str) -> tuple[str, ...]:
    for spelling, word in _LICENSE_WORDS:
        plain = re.sub(spelling, word, plain)
    # 4, v4 and 4.0 are one version.
    words = [re.sub(r"^v?(\d+)(\.\d+)?$", lambda number: number[1] + (number[2] or ".0"), word) for word in re.findall(r"\w+(?:\.\w+)*", plain)]
    found = tuple(sorted(words))
    return _ONLY_VERSION.get(found, found)


def _plain(name: object) -> str:
    return " ".join(str(name or "").replace("_", " ").split()).casefold()
