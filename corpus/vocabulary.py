"""The words the corpus agrees on: modalities, splits and licences, and the spellings met for each."""

import re

UNIMED_MODALITIES = ("CFP", "CXR", "CT", "Histopathology", "MRI", "OCT", "Ultrasound", "Endoscopy")
EXTRA_MODALITIES = ("X-ray", "Dermoscopy", "Microscopy")
MODALITIES = UNIMED_MODALITIES + EXTRA_MODALITIES

_MODALITY_ALIASES = {
    "CFP": ("fundus", "fundus photography", "color fundus photography", "colour fundus photography", "retinal photography"),
    "CXR": ("chest x-ray", "chest xray", "chest radiograph", "chest radiography"),
    "CT": ("computed tomography", "ct scan"),
    "Histopathology": ("histology", "his", "pathology", "h&e", "he", "ihc", "whole slide image", "wsi"),
    "MRI": ("mr", "magnetic resonance", "magnetic resonance imaging", "mri scan"),
    "OCT": ("optical coherence tomography",),
    "Ultrasound": ("us", "ultrasonography", "sonography", "echography"),
    "Endoscopy": ("colonoscopy", "gastroscopy", "endoscopic image"),
    "X-ray": ("xray", "x ray", "radiograph", "radiography"),
    "Dermoscopy": ("dermatoscopy", "dermatoscope"),
    "Microscopy": ("microscope", "cytology", "blood smear"),
}
_SPLIT_ALIASES = {"train": ("training",), "val": ("validation", "validate", "valid", "dev", "eval", "evaluation"), "test": ("testing",)}
# "test set", "trainset", "test-a"; not "test tube".
_PART = re.compile(r"([a-z]+?)([ -]?(set|data|images?|split)|[ -][a-z0-9])")

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


def _lookup(aliases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {spelling.casefold(): name for name, others in aliases.items() for spelling in (name, *others)}


_MODALITY_OF, _SPLIT_OF = _lookup(_MODALITY_ALIASES), _lookup(_SPLIT_ALIASES)


def modality(name: object) -> str | None:
    """The canonical modality for a spelling, or None if it is not known."""
    return _MODALITY_OF.get(_plain(name))


def split(name: object) -> str | None:
    """"train", "val" or "test" for a spelling, or None."""
    plain = _plain(name)
    part = _PART.fullmatch(plain)
    return _SPLIT_OF.get(part[1] if part else plain)


def license_id(name: object, allowed: tuple[str, ...]) -> str | None:
    """The allowed licence meant by a spelling such as "CC BY 4.0", or None."""
    wanted = _plain(name).replace(" ", "-")
    return next((known for known in allowed if _plain(known).replace(" ", "-") == wanted), None)


def _plain(name: object) -> str:
    return " ".join(str(name or "").replace("_", " ").split()).casefold()
