"""Scores of short answers, and confidence intervals."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from math import sqrt

import numpy as np

_ARTICLES = {"a", "an", "the"}
# Of dots, those of a decimal number stay: one with a digit behind it, and neither a letter nor a dot before it.
# Of hyphens, those that are a number's sign: one with a digit behind it, and no word before it.
_PUNCTUATION = re.compile(r"[^\w\s%.\-]|_|(?<=[^\W\d]|\.)\.|\.(?!\d)|(?<=\w)-|-(?!\.?\d)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBERS = {word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())}

_OPTION_NOISE = re.compile(r"[.()\[\],:;!*#{}]")
# A small letter in the midst of a sentence may be the article.
_ANSWER_IS = re.compile(r"(?i:answer is):?\s*\(?(?:([A-Z])\b|([a-z])(?=[).\],:;]|\s*$))")
_REFUSAL = re.compile(r"(can['’]t|cannot) (help with images|process this|determine the answer)|without the image provided|failed to obtain answer", re.IGNORECASE)


def normalise_answer(text: str) -> str:
    """Lower case, punctuation and articles stripped, numbers up to ten as digits, blanks collapsed: the VQA evaluation's convention.

    Characters are compared as NFKC writes them, a minus sign as a hyphen. Text that is nothing but articles or punctuation stays.
    """
    return " ".join(_tokens(text))


def _tokens(text: str, kept: Collection[str] = ()) -> list[str]:
    """The normalised words; one written as in `kept` is no article."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    words = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text)).split() or text.split()
    found = [word.casefold() for word in words if word in kept or word.casefold() not in _ARTICLES] or [word.casefold() for word in words]
    return [_NUMBERS.get(word, word) for word in found]


def exact_match(answer: str, truth: str) -> bool:
    """Equal after normalisation."""
    return normalise_answer(answer) == normalise_answer(truth)


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of token precision and recall after normalisation; 1 where both are blank."""
    given, wanted = _tokens(answer), _tokens(truth)
    if given == wanted:
        return 1.0
    common = sum(min(given.count(token), wanted.count(token)) for token in set(given))
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def token_recall(answer: str, truth: str) -> float:
    """Share of the truth's tokens that the answer holds: how LLaVA-Med and its kin score open questions."""
    given, wanted = _tokens(answer), _tokens(truth)
    if given == wanted:
        return 1.0
    return sum(min(given.count(token), wanted.count(token)) for token in set(wanted)) / len(wanted) if wanted else 0.0


def closed_match(answer: str, truth: str, choices: Sequence[str] = ("yes", "no")) -> bool:
    """Whether the first choice that the answer names, as words of its own, is the true one: the convention for closed questions.

    A choice that is also an article, such as A, is named where it is written as the choice is.
    """
    said = f" {' '.join(_tokens(answer, kept=choices))} "
    places = {choice: said.find(f" {normalise_answer(choice)} ") for choice in choices}
    named = [choice for choice, place in places.items() if place >= 0]
    return bool(named) and exact_match(min(named, key=lambda choice: (places[choice], -len(choice))), truth)


def option_match(answer: str, options: dict[str, str]) -> str | None:
    """The letter of the chosen option, or None: VLMEvalKit's rules without a judge.

    None for a refusal. One option letter standing alone among the answer's last words; else "answer is X"; else
    the one option whose text the answer holds, unless the answer is over twice as long as all options together.

    Args:
        options: letter to text.
    """
    answer = unicodedata.normalize("NFKC", answer)
    if _REFUSAL.search(answer):
        return None
    words = _OPTION_NOISE.sub(" ", answer).split()
    letters = [word for word in words if word in options]
    if len(set(letters)) == 1 and (letters[0] in words[-4:] or len(words) <= 4):
        return letters[0]
    said = _ANSWER_IS.search(answer)
    if said and said[said.lastindex].upper() in options:
        return said[said.lastindex].upper()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    held = [letter for letter, text in options.items() if text and normalise_answer(text) in normalise_answer(answer)]
    return held[0] if len(held) == 1 else None


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson score); (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: np.ndarray, z: float = 1.96) -> tuple[float, float]:
    """Normal 95 % interval of a mean."""
    values = np.asarray(values, dtype=np.float64)
    half = z * values.std(ddof=1) / sqrt(len(values)) if len(values) > 1 else float("inf")
    return float(values.mean() - half), float(values.mean() + half)
