"""Scores of long texts against references: BLEU, ROUGE and METEOR, by the packages of the field."""

import re
import unicodedata
from collections.abc import Sequence


def bleu(reports: Sequence[str], references: Sequence[str], n: int = 4) -> float:
    """Corpus BLEU with uniform weights up to n-grams, in [0, 1] (NLTK, its smoothing method 1).

    Raises:
        ValueError: there are no reports, or not as many references.
    """
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    pairs = [([_words(truth)], _words(report)) for report, truth in zip(reports, references, strict=True)]
    _require(pairs, "BLEU")
    return float(corpus_bleu([truth for truth, _ in pairs], [found for _, found in pairs], [1 / n] * n, SmoothingFunction().method1))


def rouge(reports: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming (rouge-score), each in [0, 1].

    Raises:
        ValueError: there are no reports, or not as many references.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=_Stems())
    scores = [scorer.score(truth, report) for report, truth in zip(reports, references, strict=True)]
    _require(scores, "ROUGE")
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}


def meteor(reports: Sequence[str], references: Sequence[str]) -> float:
    """Mean METEOR in [0, 1] with exact and stem matches (NLTK).

    Synonyms need WordNet, which is not in any package index; scores are a little below those that use it.

    Raises:
        ValueError: there are no reports, or not as many references.
    """
    from nltk.translate.meteor_score import single_meteor_score

    scores = [single_meteor_score(_words(truth), _words(report), wordnet=_NoSynonyms()) for report, truth in zip(reports, references, strict=True)]
    _require(scores, "METEOR")
    return float(sum(scores) / len(scores))


def _require(reports: Sequence, score: str) -> None:
    if not reports:
        raise ValueError(f"{score} of no reports is not defined")


class _NoSynonyms:
    """Stands where NLTK looks up WordNet."""

    def synsets(self, word: str) -> list:
        return []


class _Stems:
    """Words as rouge-score cuts and stems them, which knows no letters but a to z, in any script."""

    def __init__(self):
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 else word for word in _words(text, r"[^\W_]+")]


def _words(text: str, pattern: str = r"\w+|[^\w\s]") -> list[str]:
    return re.findall(pattern, unicodedata.normalize("NFC", text.lower()))
