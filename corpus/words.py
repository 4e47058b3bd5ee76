"""The scorer that needs no network: captions of look-alikes, and a projection from what pictures look like to words.

S compares a caption with those of the five pictures of other patients that look most alike; M is the cosine of a caption's
words with the words that ridge regression expects of the picture. Neither is ever learned from the pair's own patient. It
finds captions that were swapped between unlike pictures, not wrong findings.
"""

import re
from collections import Counter

import numpy as np

from corpus import index
from corpus.sample import Sample
from infra.records import digest

_CAPTIONS, _FOLDS, _WORDS, _RIDGE = 5, 5, 512, 3.0


class Words:
    """A scorer fitted on some pairs of a source."""

    def __init__(self, reference: list[Sample]):
        reference = [sample for sample in reference if "features" in sample.quality]
        counts = Counter(word for sample in reference for word in set(_words(caption(sample))))
        # Words of a single picture say nothing of any other.
        self.words = {word: place for place, (word, count) in enumerate(sorted(counts.items(), key=lambda wc: (-wc[1], wc[0]))[:_WORDS]) if count > 1}
        self.weight = np.log((1 + len(reference)) / (1 + np.array([counts[word] for word in self.words] or [0]))) + 0.01
        self.patients = np.array([index.hash64(sample.patient) for sample in reference], dtype=np.uint64)
        looks = _looks(reference)
        self.mean, self.spread = (looks.mean(axis=0), looks.std(axis=0) + 1) if len(looks) else (0.0, 1.0)
        self.looks, self.texts = self._standard(looks), self._texts(reference)
        self.projections = [self._fitted(self.patients % np.uint64(_FOLDS) != fold) for fold in range(_FOLDS)]
        self.name = f"words-{digest([[sample.id, index.content(sample)] for sample in reference])[:16]}"

    def score(self, pairs: list[Sample]) -> np.ndarray:
        """(S, M) of each pair [n, 2], both cosines; NaN for a picture that was not measured, or where there is nothing to compare with."""
        values = np.full((len(pairs), 2), np.nan, dtype=np.float32)
        measured = [i for i, sample in enumerate(pairs) if "features" in sample.quality]
        if not measured or len(set(self.patients.tolist())) <= _CAPTIONS:
            return values
        pairs = [pairs[i] for i in measured]
        patients = np.array([index.hash64(sample.patient) for sample in pairs], dtype=np.uint64)
        looks, texts = self._standard(_looks(pairs)), self._texts(pairs)
        for i, row in enumerate(measured):
            distance = np.where(self.patients == patients[i], np.inf, ((self.looks - looks[i]) ** 2).sum(axis=1))
            alike = np.argpartition(distance, _CAPTIONS - 1)[:_CAPTIONS]
            expected = np.append(looks[i], 1) @ self.projections[int(patients[i] % np.uint64(_FOLDS))]
            values[row] = (self.texts[alike] @ texts[i]).max(), expected @ texts[i] / max(np.linalg.norm(expected), 1e-9)
        return values

    def _fitted(self, rows: np.ndarray) -> np.ndarray:
        x = np.concatenate([self.looks[rows], np.ones((rows.sum(), 1))], axis=1)
        return np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ self.texts[rows])

    def _standard(self, looks: np.ndarray) -> np.ndarray:
        return (looks - self.mean) / self.spread

    def _texts(self, samples: list[Sample]) -> np.ndarray:
        """Weighted words [n, words], each row of length 1."""
        found = np.zeros((len(samples), max(1, len(self.words))))
        for row, sample in enumerate(samples):
            for word in _words(caption(sample)):
                if word in self.words:
                    found[row, self.words[word]] = self.weight[self.words[word]]
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def caption(sample: Sample) -> str:
    return next(part.text for part in sample.parts if part.text)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.casefold())


def _looks(samples: list[Sample]) -> np.ndarray:
    measured = b"".join(bytes.fromhex(str(sample.quality["features"])) for sample in samples)
    return np.frombuffer(measured, dtype=np.uint8).reshape(len(samples), index.FEATURES).astype(np.float64)
