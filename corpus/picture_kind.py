"""Does a picture look like its modality? A small classifier over index columns judges each label without having seen its patient.

Ridge regression on random Fourier features (Rahimi and Recht, NeurIPS 2007), one fit a fold of patients: closed form, so that
equal indexes give equal verdicts, and cheap enough to be fitted anew at every release. docs/data.md gives its rates.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from corpus import index
from corpus.index import FEATURES
from corpus.params import ModalityParams

# Names of one kind of picture: a chest X-ray is an X-ray, and both of the last come from a microscope.
_KINDS = {"CXR": "X-ray", "Histopathology": "Microscopy"}
_FOLDS, _WAVES, _WIDTH, _RIDGE = 5, 512, 0.5, 0.3
# Pictures of one source and kind that are learned from; more of the same teach nothing new.
_LEARNED = 400
# Rows that are judged in one product, and folds at a time: what is in memory.
_CHUNK, _AT_ONCE = 2**13, min(_FOLDS, os.cpu_count() or 1)


@dataclass(frozen=True)
class Verdict:
    """A picture whose label the classifier disagrees with; `margin` is how much more it believes in `looks_like` (0 to about 1)."""

    row: int
    looks_like: str
    margin: float
    certain: bool


def kind(modality: str) -> str:
    """The kind of picture a modality makes."""
    return _KINDS.get(modality, modality)


def disagreements(table: pa.Table, params: ModalityParams) -> list[Verdict]:
    """Rows of an index whose picture looks like another modality than they name.

    A picture is judged by a classifier that has not seen its patient. Kinds of which there are fewer than
    `params.min_pictures`, or of which it recognises less than `params.recognised`, are not known: nothing is said of pictures
    that are called so; nor of two kinds that it takes for each other. Where more than
    `params.max_share` of a source's pictures disagree it is the classifier that does not know them: no verdict is certain.
    """
    data = _Pictures.of(table)
    enough = np.bincount(data.kind[data.first], minlength=len(data.kinds)) >= params.min_pictures
    known = enough[data.kind]
    if enough.sum() < 2:
        return []
    learned = data.learned(known)
    # One thread a product: the matrices are small, and threads that wait for a busy core take many times as long.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_AT_ONCE) as pool:
        scores = _scores(data.features, data.fold, learned, data.kind[learned], len(data.kinds), pool)
    best = np.argmax(scores, axis=1)
    margin = scores[np.arange(len(scores)), best] - scores[np.arange(len(scores)), data.kind]
    trusted = _trusted(data.kind[data.first], best[data.first], params, len(data.kinds))
    suspect = known & trusted[data.kind, best] & (margin >= params.doubted)
    share = np.bincount(data.source[suspect], minlength=len(data.source)) / np.maximum(1, np.bincount(data.source, minlength=len(data.source)))
    certain = (margin >= params.disagrees) & (share[data.source] <= params.max_share)
    return [Verdict(int(data.rows[i]), data.kinds[best[i]], round(float(margin[i]), 2), bool(certain[i])) for i in np.flatnonzero(suspect)]


def _trusted(kind: np.ndarray, best: np.ndarray, params: ModalityParams, kinds: int) -> np.ndarray:
    """Whether to believe that what is called one kind looks like another, [called, looks like]; by pictures that were not learned from."""
    looks = np.zeros((kinds, kinds))
    np.add.at(looks, (kind, best), 1)
    looks /= np.maximum(1, looks.sum(axis=1, keepdims=True))
    # Wrong labels make one kind look like others, but not those like it; kinds that cannot be told apart look like each other.
    return (np.diag(looks) >= params.recognised)[:, None] & (looks.T <= params.confused)


@dataclass(frozen=True)
class _Pictures:
    """The rows whose picture was measured, as arrays."""

    rows: np.ndarray
    features: np.ndarray
    picture: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    source: np.ndarray
    fold: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "_Pictures":
        # What a pair ends with may be of another modality than it starts with.
        rows = np.flatnonzero(pc.and_(pc.is_valid(table["features"]), pc.not_equal(table["task"], "interleaved")).combine_chunks().to_numpy(zero_copy_only=False))
        table = table.take(pa.array(rows))
        measured = np.frombuffer(b"".join(table["features"].to_pylist()), dtype=np.uint8).reshape(len(rows), FEATURES)
        names = [kind(name) for name in table["modality"].combine_chunks().dictionary.to_pylist()]
        kinds = sorted({*names})
        codes = np.array([kinds.index(name) for name in names], dtype=np.int64)[index.column(table, "modality")]
        # Patient keys are evenly spread already.
        head = pc.utf8_slice_codeunits(table["patient"], 0, 2).combine_chunks().dictionary_encode()
        fold = np.array([index.hash64(text) % _FOLDS for text in head.dictionary.to_pylist()] or [0])[head.indices.to_numpy(zero_copy_only=False)]
        return cls(rows, measured, index.column(table, "picture"), codes, kinds, index.column(table, "source"), fold)

    @property
    def first(self) -> np.ndarray:
        """A row of each picture."""
        return np.unique(self.picture, return_index=True)[1]

    def learned(self, known: np.ndarray) -> np.ndarray:
        """The rows that are learned from: of each source and kind those with the smallest hashes, so that new pictures change little."""
        rows = self.first[known[self.first]]
        group = self.source[rows].astype(np.int64) * len(self.kinds) + self.kind[rows]
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
        place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        return rows[order[place < _LEARNED]]


def _scores(x: np.ndarray, fold: np.ndarray, learned: np.ndarray, kind: np.ndarray, kinds: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """How much each row of features looks like each kind [n, kinds], by what was learned from the other folds. Folds go side by side."""
    wave = _Waves(x[learned])
    target = np.eye(kinds)[kind]
    weight = 1 / np.sqrt(np.bincount(kind, minlength=kinds)[kind])
    weight /= weight.mean()
    scores = np.empty((len(x), kinds), dtype=np.float32)

    def summed(f: int) -> tuple[np.ndarray, np.ndarray]:
        part = fold[learned] == f
        waves = wave(x[learned[part]]).astype(np.float64)
        weighted = (waves * weight[part, None]).T
        return weighted @ waves, weighted @ target[part]

    gram, moment = map(np.array, zip(*pool.map(summed, range(_FOLDS))))
    ridge = _RIDGE * np.eye(gram.shape[1])

    def judge(f: int) -> None:
        solved = np.linalg.solve(gram.sum(axis=0) - gram[f] + ridge, moment.sum(axis=0) - moment[f]).astype(np.float32)
        rows = np.flatnonzero(fold == f)
        for some in (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)):
            scores[some] = wave(x[some]) @ solved

    list(pool.map(judge, range(_FOLDS)))
    return scores


class _Waves:
    """Random Fourier features of a Gaussian kernel over standardised features."""

    def __init__(self, x: np.ndarray):
        rng = np.random.default_rng(0)
        frequency = rng.standard_normal((x.shape[1], _WAVES)) * np.sqrt(2 * _WIDTH / x.shape[1]) / (x.std(axis=0) + 1)[:, None]
        # Standardising is part of the frequencies. Single precision: a million pictures are judged at each release.
        self.frequency = frequency.astype(np.float32)
        self.phase = (rng.uniform(0, 2 * np.pi, _WAVES) - x.mean(axis=0) @ frequency).astype(np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        waves = np.ones((len(x), _WAVES + 1), dtype=np.float32)
        np.cos(x.astype(np.float32) @ self.frequency + self.phase, out=waves[:, :-1])
        waves[:, :-1] *= np.float32(np.sqrt(2 / _WAVES))
        return waves
