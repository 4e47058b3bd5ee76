"""Drift: rarely a false alarm, never blind to a changed scanner."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from corpus.params import PhantomParams
from corpus.phantoms import mini
from flows.traffic import rescanned
from monitoring.drift import detect
from monitoring.params import DriftParams
from monitoring.report import html
from ray_jobs.modality_probe import features

PARAMS = DriftParams()


@pytest.fixture(scope="module")
def pictures():
    samples = mini.samples(PhantomParams(patients_per_modality=60), b"s")
    return [(s.images[0].open(), s.modality) for s in samples if s.task == "generation"]


def rows(pictures, change=lambda picture: picture) -> pd.DataFrame:
    weights = np.random.default_rng(0).standard_normal((len(features(pictures[0][0])), 64)) / 16
    embeddings = [np.tanh(features(change(picture)) @ weights).astype(np.float32) for picture, _ in pictures]
    frame = pd.DataFrame({"embedding": embeddings, "predicted_modality": [m for _, m in pictures], "time": datetime.now(UTC)})
    return frame.assign(prompt_chars=30, prompt_words=5, answer_chars=3, confidence=0.9)


def test_null_windows_are_rarely_flagged(pictures):
    everything, rng, alarms = rows(pictures), np.random.default_rng(1), 0
    for _ in range(100):
        order = rng.permutation(len(everything))
        alarms += detect(everything.iloc[order[:64]], everything.iloc[order[64:264]], "m", PARAMS).verdict == "drift"
    assert alarms <= 5


def test_a_changed_scanner_is_found(pictures):
    order = np.random.default_rng(2).permutation(len(pictures))
    reference, window = ([pictures[i] for i in part] for part in (order[:200], order[200:264]))
    report = detect(rows(window, rescanned), rows(reference), "m", PARAMS)
    assert report.verdict == "drift" and report.score >= PARAMS.min_share


def test_other_questions_are_no_drift(pictures):
    order = np.random.default_rng(3).permutation(len(pictures))
    reference, window = (rows([pictures[i] for i in part]) for part in (order[:200], order[200:280]))
    report = detect(window.assign(prompt_chars=300, prompt_words=50), reference, "m", PARAMS)
    assert report.verdict == "no drift"
    assert next(c for c in report.columns if c.column == "prompt_words").drifted


def test_few_requests_are_no_evidence(pictures):
    assert detect(rows(pictures[:5]), rows(pictures[:200]), "m", PARAMS).verdict == "insufficient"


def test_the_page_is_evidentlys(pictures):
    page = html(rows(pictures[:60]), rows(pictures[60:200]), PARAMS)
    assert len(page) > 100_000 and b"embedding_0" in page


def test_pictures_outside_the_reference_are_found_without_its_components():
    """An embedding that moves only where the reference never varied."""
    rng = np.random.default_rng(4)
    spread = np.diag([3.0] * 6 + [0.05] * 58)
    known, seen = (rng.standard_normal((count, 64)) @ spread for count in (120, 80))
    frame = pd.DataFrame({"time": datetime.now(UTC), "predicted_modality": ["MRI"] * 120, "prompt_chars": 30, "prompt_words": 5, "answer_chars": 3, "confidence": 0.9})
    reference = frame.assign(embedding=list(known))
    assert detect(frame[:80].assign(embedding=list(seen)), reference, "m", PARAMS).drifted == []
    report = detect(frame[:80].assign(embedding=list(seen + np.eye(64)[40])), reference, "m", PARAMS)
    assert report.verdict == "drift" and report.drifted == ["outside_reference"]
