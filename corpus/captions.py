"""Does a caption fit its record? What cannot be the caption of this picture is not learned from."""

import re
import unicodedata
from collections import Counter

# How captions name a kind of picture, and the modalities each name fits. Abbreviations count in capitals only.
_NAMES = {
    r"\bCT\b|(?i:computed tomograph|\bct scan)": ("CT",),
    r"\bMRI?\b|(?i:magnetic resonance|\bmri\b)": ("MRI",),
    r"(?i:ultraso|sonogra|echocardiogra)": ("Ultrasound",),
    r"\bOCT\b|(?i:optical coherence)": ("OCT",),
    # Stomach, uterus and gallbladder have a fundus too.
    r"\bCFP\b|(?i:(?<!gastric )(?<!uterine )(?<!stomach )(?<!uterus )(?<!bladder )\bfundus\b(?! of (the )?(stomach|uterus|gallbladder|bladder)))": ("CFP",),
    r"(?i:endoscop|colonoscop|gastroscop)": ("Endoscopy",),
    r"\bCXR\b|(?i:x-?ray|radiogra)": ("CXR", "X-ray"),
    r"(?i:histolog|histopatholog|microscop|cytolog)|H&E": ("Histopathology", "Microscopy"),
    r"(?i:dermo?scop|dermatoscop)": ("Dermoscopy",),
}
_FITS = [(re.compile(pattern), fits) for pattern, fits in _NAMES.items()]
# Where a kind is named, but not as this picture's: what is denied or compared with, how else something was found or done.
_ELSEWHERE = re.compile(
    r"\b(no|not|non|neither|without|instead|unlike|prior|previous|earlier|compared|than|versus|vs)\b([ -]+(of|with|to|on|in|the|an?|any|prior|previous|earlier))*"
    r"([ -]+(?!n?or\b)[\w&-]+){1,2}([ -]+n?or([ -]+(?!n?or\b)[\w&-]+){1,2})*|\b\w+( scan)?(?= (was|were|is|could|has|had)( been)? not\b)|[\w-]+[ -](guided|proven|confirmed)\b|\b\w+(scop|log|graph)ically\b"
    r"|\bradiographic (evidence|findings|follow-up)|\bmicroscopic (colitis|ha?ematuria|polyangiitis)|\b\w+scopic biops\w+",
    re.IGNORECASE,
)
# The commonest words of languages in Latin script that reports are written in; none is an English or Latin medical word.
_SMALL_WORDS = {
    name: words.split()
    for name, words in {
        "en": "the of and with in is are no on to for at from by this that without shows an as or not be was which",
        "de": "der die und mit des den dem ein eine ist im auf zu nicht von für sich keine oder zeigt bei",
        "fr": "le la les et des du une est dans avec sur pour qui pas sans aux au chez cette montre",
        "es": "el la los las y del una con es en por sin para que se muestra al como más lado",
        "it": "il lo la gli e di del della una con è nel nella per senza che si mostra al sono",
        "pt": "o os e da do das dos uma com é em no na por sem para que não se mostra",
        "nl": "de het een en van met is op voor niet zonder aan te bij door zijn toont geen",
    }.items()
}
# Of each such word, its languages.
_LANGUAGES = {word: tuple(name for name, words in _SMALL_WORDS.items() if word in words) for words in _SMALL_WORDS.values() for word in words}
# How Unicode's names of their letters begin.
_SCRIPTS = dict.fromkeys(_SMALL_WORDS, "LATIN") | {"zh": "CJK"}
_FIRST_SENTENCE = re.compile(r".*?[.!?](?=\s|$)|.+", re.DOTALL)


def contradicts(caption: str, modality: str) -> bool:
    """True if the first sentence names other kinds of pictures and not this one. Later ones may compare with anything."""
    first = _FIRST_SENTENCE.match(caption)
    if not first:
        return False
    named, meant = _named(first.group()), _named(_ELSEWHERE.sub(" ", first.group()))
    return bool(meant) and not any(modality in fits for fits in named)


def _named(sentence: str) -> list[tuple[str, ...]]:
    return [fits for pattern, fits in _FITS if pattern.search(sentence)]


def may_be_in(languages: tuple[str, ...], text: str) -> bool:
    """False if most letters are of another script, or the small words are those of another language, than any of these.

    Of languages that are not known here nothing can be said: with one of them among these, all is True.
    """
    scripts = tuple({_SCRIPTS.get(name, "") for name in languages})
    # As some systems write them, accents stand behind their letters and cut words in two.
    text = unicodedata.normalize("NFC", text)
    return "" in scripts or (_in_script(scripts, text) and not _in_another_language(languages, text))


def _in_another_language(languages: tuple[str, ...], text: str) -> bool:
    """True if one other language has three of its small words or more there, and twice as many as any of these."""
    counts = Counter(name for word in re.findall(r"\w+", text.casefold()) for name in _LANGUAGES.get(word, ()))
    ours = max(counts.pop(name, 0) for name in languages)
    return max(counts.values(), default=0) >= max(3, 2 * ours + 1)


def _in_script(scripts: tuple[str, ...], text: str) -> bool:
    if "LATIN" in scripts and text.isascii():
        return True
    letters = [c for c in text if c.isalpha()]
    return sum(unicodedata.name(c, "").startswith(scripts) for c in letters) >= len(letters) / 2
