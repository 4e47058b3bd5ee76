"""UniMed-mini: true, the same every time, and split by patient."""

from collections import defaultdict

import numpy as np

from corpus.params import CorpusParams, PhantomParams
from corpus.phantoms import mini
from corpus.release import build
from corpus.shards import write
from corpus.vocabulary import UNIMED_MODALITIES
from infra.store import corpus_store

SMALL = PhantomParams(patients_per_modality=20, images_per_patient=1, image_size=64)


def test_equal_parameters_give_equal_shards():
    first, second = ([(shard.name, shard.rows) for shard in write(([s] for s in mini.samples(SMALL, b"s")), CorpusParams().shards)] for _ in range(2))
    assert first == second


def test_every_modality_and_task_is_there_and_no_patient_in_two_splits():
    samples = list(mini.samples(SMALL, b"s"))
    assert {s.modality for s in samples} == set(UNIMED_MODALITIES)
    assert {s.task for s in samples} == {"understanding", "generation", "interleaved", "text"}
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.patient].add(sample.split)
    assert {len(found) for found in splits.values()} == {1}


def test_answers_follow_from_the_truth():
    for sample in mini.samples(SMALL, b"s"):
        if sample.task == "understanding":
            answers = {t.question: t.answer for t in sample.turns}
            present = next(a for q, a in answers.items() if q.startswith("Is a "))
            assert (present == "yes") == (sample.labels["count"] > 0)
            assert answers["Which imaging modality is this?"] == sample.modality


def test_findings_are_on_the_side_they_are_said_to_be():
    """Against the mean picture without findings, a CT lesion darkens its own half."""
    found = [s for s in mini.samples(PhantomParams(patients_per_modality=40), b"s") if s.task == "generation" and s.modality == "CT"]
    pixels = {s.id: np.asarray(s.images[0].open(), dtype=float) for s in found}
    clear = np.mean([pixels[s.id] for s in found if not s.labels["count"]], axis=0)
    large = [s for s in found if s.labels.get("size") == "large"]
    assert len(large) > 5
    for sample in large:
        darker = np.clip(clear - pixels[sample.id], 0, None) ** 2
        half = darker.shape[1] // 2
        assert (darker[:, :half].sum() > darker[:, half:].sum()) == (sample.labels["side"] == "left")


def test_a_release_is_equal_bytes_for_equal_inputs(tmp_path, s3):
    params = CorpusParams(phantoms=SMALL)
    names = []
    for run in ("one", "two"):
        card = build([{"name": "unimed-mini"}, {"name": "package-images"}], tmp_path / run, params, corpus_store(), b"s", on_step=lambda line: None)
        names.append(sorted(str(p.relative_to(tmp_path / run)) for p in (tmp_path / run).rglob("*.parquet")))
        assert card["expectations"]["held"] == card["expectations"]["of"]
        assert card["samples"] + card["quarantined"] == card["arrived"]
    assert names[0] == names[1]
