"""Does a caption fit its record? What cannot be the caption of this picture is not learned from."""

import re
import unicodedata

# How captions name a kind of picture, and the modalities each name fits. Abbreviations count in capitals only.
_NAMES = {
    r"\bCT\b|(?i:computed tomograph)": ("CT",),
    r"\bMRI?\b|(?i:magnetic resonance)": ("MRI",),
    r"(?i:ultraso|sonogra|echocardiogra)": ("Ultrasound",),
    r"\bOCT\b|(?i:optical coherence)": ("OCT",),
    r"\bCFP\b|(?i:fundus)": ("CFP",),
    r"(?i:endoscop|colonoscop|gastroscop)": ("Endoscopy",),
    r"\bCXR\b|(?i:x-?ray|radiogra)": ("CXR", "X-ray"),
    r"(?i:histolog|histopatholog|microscop|cytolog)|H&E": ("Histopathology", "Microscopy"),
    r"(?i:dermo?scop|dermatoscop)": ("Dermoscopy",),
}
_FITS = [(re.compile(pattern), fits) for pattern, fits in _NAMES.items()]
_FIRST_SENTENCE = re.compile(r".*?[.!?](?=\s|$)|.+", re.DOTALL)


def contradicts(caption: str, modality: str) -> bool:
    """True if the first sentence names other kinds of pictures and not this one. Later ones may compare with anything."""
    first = _FIRST_SENTENCE.match(caption)
    named = [fits for pattern, fits in _FITS if first and pattern.search(first.group())]
    return bool(named) and not any(modality in fits for fits in named)


def in_latin_script(text: str) -> bool:
    """True unless most letters are of another script: the surest sign of another language than those kept."""
    letters = [c for c in text if c.isalpha()]
    return sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) >= len(letters) / 2
