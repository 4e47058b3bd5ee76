"""Captions that do not fit their pictures score low, and go where params say so."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus import alignment, release, shards
from corpus.params import CorpusParams
from corpus.readers import records
from corpus.readers.source import Source
from corpus.record import Rejection
from corpus.words import Words
from infra.store import corpus_store
from tests.corpus.test_releases import PARAMS, SALT, entry, record, take_in

SHARE = 0.9


def with_alignment(**more) -> CorpusParams:
    quality = PARAMS.quality.model_copy(update={"alignment": PARAMS.quality.alignment.model_copy(update=more)})
    few = PARAMS.expectations.model_copy(update={"modalities": ("CT",), "min_per_split": 1})
    return PARAMS.model_copy(update={"quality": quality, "expectations": few})


@pytest.fixture(scope="module")
def swapped(shared_data, s3):
    """Real pictures of one source of which 24 carry the caption of another body part: (source, swapped ids)."""
    read = [r for r in records.read(Source(shared_data / "mednist", "mednist")) if not isinstance(r, Rejection)]
    part = {"AbdomenCT": "abdomen", "HeadCT": "head", "ChestCT": "chest"}
    chosen = [r for r in read if r.where.split("/")[-2:][0] in part or any(name in r.id for name in part)][::4]
    kind = {r.id: next(text for name, text in part.items() if name in r.id) for r in chosen}
    wrong = {r.id for r in chosen[::8]}
    other = {"abdomen": "head", "head": "chest", "chest": "abdomen"}
    told = {name: other[true] if name in wrong else true for name, true in kind.items()}
    splits = ("test", "val", "train", "train", "train")
    made = [replace(r, source="bodies", caption=f"CT image of the {told[r.id]}.", turns=(), split=splits[n % 5]) for n, r in enumerate(chosen)]
    return take_in("bodies", made), {f"bodies/{name}#g" for name in wrong}


def build(taken, out, params, make=Words):
    card = release.build([entry(taken)], out, params, corpus_store(), SALT, lambda line: None, scorer=make)
    return card, {row["id"]: row for row in pq.read_table(out / "alignment.parquet").to_pylist()}, shards.read_quarantine((out / "quarantine.parquet").read_bytes())


def test_swapped_captions_score_low(swapped, tmp_path):
    taken, wrong = swapped
    card, scores, aside = build(taken, tmp_path, with_alignment(keep_share={"bodies": 1.0}))
    assert card["samples"] == len(scores) == taken["samples"]["kept"] and not [r for r in aside if r.reason == "poor-alignment"]
    values = np.array([row["score"] for row in scores.values()])
    found = [scores[name]["score"] for name in wrong & scores.keys()]
    assert np.mean([(value < values[[name not in wrong for name in scores]]).mean() for value in found]) > 0.9
    assert all(0 <= row["agreement"] <= 1 and abs(row["score"] - 0.5 * row["agreement"] - row["similarity"]) < 1e-6 for row in scores.values())


def test_the_best_share_of_training_pairs_is_kept(swapped, tmp_path):
    taken, wrong = swapped
    card, scores, aside = build(taken, tmp_path, with_alignment(keep_share={"*": SHARE}))
    gone = [r for r in aside if r.reason == "poor-alignment"]
    training = sum(counts["train"] for counts in card["counts"]["generation"].values()) + len(gone)
    assert 0.5 * (1 - SHARE) * training <= len(gone) <= (1 - SHARE) * training + 1
    assert sum(r.where in wrong for r in gone) >= 0.7 * len(gone) and "caption agreement" in gone[0].detail
    assert card["counts"]["generation"]["CT"]["test"] + card["counts"]["generation"]["CT"]["val"] == len(scores) - training


def test_a_pair_is_scored_once(s3, tmp_path):
    class Counted:
        name, seen = "counted", []

        def __init__(self, reference):
            pass

        def score(self, pairs):
            self.seen.extend(pair.id for pair in pairs)
            return np.array([[1.0, float(pair.id.split("/r")[1][:3])] for pair in pairs])

    params = with_alignment(keep_share={"made": 0.5})
    taken = take_in("counted", map(record, range(40)))
    first, _, _ = build(taken, tmp_path, params, Counted)
    assert first["reasons"] == {"poor-alignment": 10} and len(Counted.seen) == 40
    again = take_in("counted", map(record, range(42)))
    build(again, tmp_path, params, Counted)
    assert sorted(Counted.seen[40:]) == ["made/r040#g", "made/r041#g"]


def test_a_source_that_nobody_named_costs_nothing(s3, tmp_path):
    taken = take_in("unnamed", map(record, range(40)))
    card, scores, _ = build(taken, tmp_path, with_alignment(), None)
    assert card["samples"] == 80 and not scores
    with pytest.raises(ValueError, match="is not there"):
        build(taken, tmp_path, with_alignment(keep_share={"*": 1.0}), None)
    with pytest.raises(ValueError, match="above 0"):
        alignment.AlignmentParams(keep_share={"a": 0})


def test_a_share_of_a_source_that_is_none_is_told(s3, tmp_path):
    taken, told = take_in("whole", map(record, range(40))), []
    release.build([entry(taken)], tmp_path, with_alignment(keep_share={"*": 1.0, "Made": 0.5}), corpus_store(), SALT, told.append, scorer=Words)
    assert [line for line in told if "keep_share" in line] == ["corpus.quality.alignment.keep_share names Made, which is the source of no sample; these are: made"]


def test_one_caption_on_very_many_pictures_is_told(s3, tmp_path):
    params = PARAMS.model_copy(update={"quality": PARAMS.quality.model_copy(update={"same_caption": 20})})
    taken = take_in("parrot", [record(n, source="parrot", caption="CT image of the chest." if n < 30 else f"CT number {n}.") for n in range(60)])
    card, _, _ = build(taken, tmp_path, params)
    assert card["doubts"] == {"caption-repeated": 1} and card["samples"] == 120
    assert "30 pictures" in shards.read_quarantine((tmp_path / "doubts.parquet").read_bytes())[0].detail
