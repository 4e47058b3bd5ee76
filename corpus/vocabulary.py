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
    "Histopathology": ("histology", "his", "pathology", "h&e", "he", "ihc", "whole slide", "wsi"),
    "MRI": ("mr", "magnetic resonance", "magnetic resonance imaging"),
    "OCT": ("optical coherence tomography",),
    "Ultrasound": ("us", "ultrasonography", "sonography", "echography"),
    "Endoscopy": ("colonoscopy", "gastroscopy", "endoscopic"),
    "X-ray": ("xray", "x ray", "xr", "radiograph", "radiography"),
    "Dermoscopy": ("dermatoscopy", "dermatoscope", "dermoscopic"),
    "Microscopy": ("microscope", "cytology", "blood smear"),
}
_PICTURES = re.compile(r" (images?|scans?)$")
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
# Characters of a licence's name or address; what is longer is a text of its own, and costs the square of its length.
_LONGEST_LICENSE = 255
# Of these there is one version.
_ONLY_VERSION = {("cc0",): ("1.0", "cc0"), ("by", "odc"): ("1.0", "by", "odc"), ("pddl",): ("1.0", "pddl")}


def _lookup(aliases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {spelling.casefold(): name for name, others in aliases.items() for spelling in (name, *others)}


_MODALITY_OF, _SPLIT_OF = _lookup(_MODALITY_ALIASES), _lookup(_SPLIT_ALIASES)
# "test set", "trainset", "test-a", "ISIC-2017_Test_v2_Data", "unseen test"; not "test tube".
_OF_PART = r"(?:set|data|images?|inputs?|split|part)"
_PART = re.compile(rf"(?:.*[ -])?({'|'.join(_SPLIT_OF)}){_OF_PART}?\d*(?:[ -](?:{_OF_PART}|v?\d+|[a-z]))*")


def modality(name: object) -> str | None:
    """The canonical modality for a spelling, or None if it is not known. What stands in brackets behind it, and "images", may go."""
    plain = _plain(name)
    bare = re.split(r"[(（]", plain)[0].strip()
    return next((known for spelling in (plain, bare, _PICTURES.sub("", bare)) if (known := _MODALITY_OF.get(spelling))), None)


def split(name: object) -> str | None:
    """"train", "val" or "test" for a spelling, or None."""
    part = _PART.fullmatch(_plain(name))
    return _SPLIT_OF.get(part[1]) if part else None


def license_id(name: object, allowed: tuple[str, ...]) -> str | None:
    """The allowed licence meant by a spelling such as "CC BY 4.0", "MIT License" or its address, or None."""
    plain = _plain(name)
    if len(plain) > _LONGEST_LICENSE:
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
