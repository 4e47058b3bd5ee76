"""What the benchmarks ask of a model, on samples made for the purpose."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from corpus.reader import ReleaseReader
from corpus.shard_cache import ShardCache
from infra.store import corpus_store
from model import UniMedVL
from model.config import ModelConfig
from model.testing import make_tiny
from ray_jobs.benchmarks import evenly, pairs, questions
from ray_jobs.evaluate_params import EvaluationParams
from tests.ray_jobs.made_release import publish, sample


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = ModelConfig()
    few = config.model_copy(update={"sampling": config.sampling.model_copy(update={"steps": 3})})
    return UniMedVL.from_pretrained(make_tiny(tmp_path_factory.mktemp("tiny"), config=few))


def reader(*sizes):
    """A release of pairs of these (input, true) sizes."""

    def picture(size, i):
        return SimpleNamespace(open=lambda: Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)))

    parts = [SimpleNamespace(kind="text", text="CT image of the abdomen.")]
    samples = [SimpleNamespace(id=f"s{i}", labels={}, images=[picture(given, i), picture(true, 99 - i)], parts=parts) for i, (given, true) in enumerate(sizes)]
    return SimpleNamespace(select=lambda split, task: range(len(samples)), load=samples.__getitem__)


def scores(model, *sizes, **params):
    return [(item.id, item.score) for item in pairs(model, reader(*sizes), EvaluationParams(**params), seed=5)]


def test_pairs_of_unequal_pictures_are_scored_in_their_order(model):
    square, wide = (64, 64), (96, 64)
    found = scores(model, (square, square), (wide, wide), (square, wide), (square, square))
    assert [name for name, _ in found] == ["s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3"]
    alone = scores(model, (square, square))
    assert [score for _, score in found[:2]] == pytest.approx([score for _, score in alone], rel=1e-3)
    assert np.isfinite([score for _, score in found]).all()


def test_no_pairs_are_asked_for_no_drawing(model):
    assert scores(model, ((64, 64), (64, 64)), max_pairs=0) == []


def asking(number: int, source: str, turns: int, split: str = "val"):
    made = sample(number, source=source, split=split)
    return replace(made, parts=made.parts[:1] + made.parts[1:] * turns)


def test_questions_are_spread_over_a_split_and_no_other_samples_are_loaded(s3, tmp_path, monkeypatch):
    made = [asking(number, source, turns=1 + number % 3) for source in ("one", "two") for number in range(20)]
    others = [asking(number + 50, "one", turns=2, split="train") for number in range(5)] + [sample(number, "generation", split="val") for number in range(5)]
    reader = ReleaseReader(publish([*others, *made], corpus_store(), tag="corpus/2000-07-07.1"), ShardCache(corpus_store(), tmp_path))
    held = [reader.load(position) for position in reader.select("val", "understanding")]
    loaded, load = [], reader.load
    monkeypatch.setattr(reader, "load", lambda position: loaded.append(position) or load(position))
    found = questions(reader, "val", limit=7)
    for source in ("one", "two"):
        asked = [(one.id, turn) for one in held if one.source == source for turn in range(len(one.turns))]
        assert [(one.id, turn) for one, turn in found[source]] == evenly(asked, 7)
    assert list(found) == ["one", "two"] and len(loaded) == 14
