"""The loader over a real release in a real store: its order, its state, and what it does when something is wrong."""

import hashlib
import threading
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from corpus import release, shards
from corpus.params import CorpusParams
from corpus.phantoms import mini
from corpus.reader import ReleaseReader
from corpus.sample import Image, Sample
from corpus.shard_cache import ShardCache
from infra.store import ObjectStore, StoreUnavailable, corpus_store
from model import UniMedVL
from model.curriculum import StageParams
from model.testing import make_tiny
from ray_jobs.loader import Loader
from ray_jobs.order import Passes
from ray_jobs.plans import Planner
from tests.ray_jobs.outage import Wire

PARAMS = CorpusParams.model_validate(
    {"phantoms": {"image_size": 64, "patients_per_modality": 12, "images_per_patient": 2}, "shards": {"target_bytes": 2**17, "row_group": 16}, "expectations": {"min_per_modality": 4, "min_per_split": 4}}
)
STAGE = StageParams(name="loading", steps=10, mixture={"text": 5, "generation": 25, "understanding": 45, "interleaved": 25}, learning_rate=1e-3)


@pytest.fixture(scope="module")
def made(s3, tmp_path_factory) -> dict:
    """A release of phantoms in many small shards, as its record tells it."""
    out = tmp_path_factory.mktemp("release")
    release.build([{"name": "unimed-mini"}], out, PARAMS, corpus_store(), b"salt", on_step=lambda line: None)
    return published(out)


def published(out) -> dict:
    def put(path) -> dict:
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        corpus_store().put(f"loading/{md5}", path.read_bytes())
        return {"path": path.relative_to(out).as_posix(), "md5": md5, "key": f"loading/{md5}", "size": path.stat().st_size}

    return {"tag": "corpus/loading", "removed": put(out / "removed.json"), "shards": [put(path) for path in sorted((out / "shards").rglob("*.parquet"))]}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> UniMedVL:
    return UniMedVL.from_pretrained(make_tiny(tmp_path_factory.mktemp("tiny")))


def opened(record: dict, folder, **limits) -> ReleaseReader:
    return ReleaseReader(record, ShardCache(corpus_store(), folder, **limits))


def loader(record, model, folder, numbers=(0, 1), streams=2, stage=STAGE, **kw) -> Loader:
    return Loader(opened(record, folder), Planner(model, stage), stage, 7, numbers, streams, **kw)


def keys(batches) -> list[tuple]:
    return [(d.stream, d.position, d.sample) for batch in batches for d in batch.drawn]


def take(source: Loader, count: int) -> list:
    return list(islice(source, count))


def test_the_order_does_not_depend_on_the_number_of_workers(made, model, tmp_path):
    def seen(workers: int) -> list[tuple]:
        found = []
        for rank in range(workers):
            part = loader(made, model, tmp_path, range(rank, 6, workers), 6)
            found += keys(take(part, 3))
            part.close()
        return sorted(found)

    assert seen(1) == seen(2) == seen(3)


def test_a_restored_loader_goes_on_as_if_nothing_had_happened(made, model, tmp_path):
    whole = loader(made, model, tmp_path)
    before, state, after = take(whole, 3), whole.state_dict(), take(whole, 3)
    whole.close()
    assert all(part["waiting"] for part in state.values()), "samples wait"
    again = loader(made, model, tmp_path)
    again.load_state_dict(state)
    repeated = take(again, 3)
    assert keys(repeated) == keys(after) and again.state_dict() == whole.state_dict()
    for one, other in zip(repeated, after):
        for name, pack in one.packs.items():
            assert np.array_equal(pack.text_ids, other.packs[name].text_ids) and np.array_equal(pack.vit_patches, other.packs[name].vit_patches)
            assert np.array_equal(pack.timestep_draws, other.packs[name].timestep_draws)
    again.load_state_dict(before[-1].states)
    assert keys(take(again, 3)) == keys(after), "a loader can be set back"
    again.close()


def test_a_pass_visits_every_row_once_over_all_streams():
    rows = np.arange(1000, 1101)
    passes = Passes(rows, np.repeat([0, 1, 2, 3, 4], [20, 20, 20, 20, 21]), "key", streams=3)
    drawn = [passes.at(i % 3, i // 3) for i in range(303)]
    assert [sorted(drawn[start : start + 101]) for start in (0, 101, 202)] == [rows.tolist()] * 3
    assert drawn[:101] != drawn[101:202]


def test_shuffling_reads_a_few_shards_at_a_time():
    shards_of = np.repeat(np.arange(20), 50)
    passes = Passes(np.arange(1000), shards_of, "key", streams=1)
    windows = [{int(shards_of[passes.at(0, i)]) for i in range(start, start + 200)} for start in range(0, 1000, 200)]
    assert all(len(window) == 4 for window in windows) and len(set.union(*windows)) == 20


def test_packs_are_full_and_hold_no_more_than_they_may(made, model, tmp_path):
    full = loader(made, model, tmp_path)
    batches = take(full, 20)
    full.close()
    assert max(pack.length for batch in batches for pack in batch.packs.values()) <= STAGE.tokens_per_pack
    assert sum(b.tokens for b in batches) / sum(b.capacity for b in batches) >= 0.97
    assert all(b.tokens == sum(pack.length for pack in b.packs.values()) for b in batches)


def test_no_sample_is_lost_or_repeated_within_a_pass(made, model, tmp_path):
    source = loader(made, model, tmp_path)
    batches = take(source, 12)
    source.close()
    positions = Counter((d.stream, d.position) for b in batches for d in b.drawn)
    assert set(positions.values()) == {1}
    for name, state in batches[-1].states.items():
        taken = {position for stream, position in positions if stream == name} | {position for position, _ in state["waiting"]}
        assert taken == set(range(state["position"]))


def test_the_mixture_is_what_the_stage_says(made, model, tmp_path):
    stage = StageParams(name="mixed", steps=1, mixture={"understanding": 3, "generation": 1}, modalities={"generation": {"CT": 1, "MRI": 3}}, learning_rate=1e-3)
    reader = opened(made, tmp_path)
    source = Loader(reader, Planner(model, stage), stage, 7, [0, 1], 2)
    known = {entry.id: entry for entry in reader.index}
    drawn = [known[d.sample] for b in take(source, 60) for d in b.drawn]
    source.close()
    tasks, modalities = Counter(e.task for e in drawn), Counter(e.modality for e in drawn if e.task == "generation")
    assert tasks["understanding"] / len(drawn) == pytest.approx(0.75, abs=0.06)
    assert set(modalities) == {"CT", "MRI"} and modalities["MRI"] / tasks["generation"] == pytest.approx(0.75, abs=0.1)


def test_modalities_that_are_not_there_are_told(made, model, tmp_path):
    stage = StageParams(name="odd", steps=1, mixture={"generation": 1}, modalities={"generation": {"CT": 1, "PET": 1}}, learning_rate=1e-3)
    with pytest.raises(ValueError, match="PET.*it has .*CT"):
        loader(made, model, tmp_path, stage=stage)


def test_replay_mixes_what_was_known_with_what_is_new(made, model, tmp_path):
    reader = opened(made, tmp_path)
    old = frozenset(reader.shards[: len(reader.shards) // 2])
    stage = STAGE.model_copy(update={"replay": 0.2})
    source = Loader(reader, Planner(model, stage), stage, 7, [0, 1], 2, known=old)
    place = {entry.id: reader.shards[entry.shard] in old for entry in reader.index if entry.split == "train"}
    drawn = [place[d.sample] for b in take(source, 60) for d in b.drawn]
    source.close()
    assert np.mean(drawn) == pytest.approx(0.2, abs=0.06)


def test_samples_that_cannot_be_used_are_skipped_and_told(s3, model, tmp_path):
    samples = list(mini.samples(PARAMS.phantoms, b"salt"))
    good = [s for s in samples if s.split == "train" and s.task == "understanding"][:40]
    broken = [Sample(**{**vars(s), "id": f"broken-{n}", "images": (Image(s.images[0].data[:60], 64, 64, f"{n:064x}"),)}) for n, s in enumerate(good[:4])]
    folder = tmp_path / "out"
    shard = shards.make("made", [(s, 0) for s in good + broken], PARAMS.shards)
    for suffix, data in ((".parquet", shard.data), (".index.parquet", shard.index)):
        path = folder / "shards" / f"{shard.name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "removed.json").write_text("{}")
    record, stage = published(folder), StageParams(name="skips", steps=1, mixture={"understanding": 1}, learning_rate=1e-3, lookahead=8)
    source = loader(record, model, tmp_path / "cache", stage=stage)
    batches = take(source, 10)
    source.close()
    skipped = [s for b in batches for s in b.skipped]
    assert {s["sample"] for s in skipped} == {f"broken-{n}" for n in range(4)} and "cannot be planned" in skipped[0]["reason"]
    assert not {d.sample for b in batches for d in b.drawn} & {f"broken-{n}" for n in range(4)}
    short = StageParams(name="skips", steps=1, mixture={"understanding": 1}, learning_rate=1e-3, tokens_per_sample=60)
    source = loader(record, model, tmp_path / "cache", stage=short)
    assert any("a sample may have 60" in s["reason"] for s in next(source).skipped)
    source.close()


def test_a_shard_that_vanished_or_changed_is_named(made, model, tmp_path):
    record = {**made, "shards": [dict(file) for file in made["shards"]]}
    data = next(file for file in record["shards"] if not file["path"].endswith(".index.parquet"))
    data["key"] = "loading/nothing"
    stage = STAGE.model_copy(update={"lookahead": 2000})
    with pytest.raises(OSError, match=f"{data['path']} has vanished"):
        next(loader(record, model, tmp_path / "a", stage=stage))
    corpus_store().put("loading/changed", b"PAR1" + b"x" * 100)
    data["key"] = "loading/changed"
    with pytest.raises(OSError, match=f"{data['path']} .*is damaged"):
        next(loader(record, model, tmp_path / "b", stage=stage))


def test_the_cache_keeps_to_its_limit_and_brings_shards_when_they_are_needed(made, model, tmp_path):
    sizes = [file["size"] for file in made["shards"] if not file["path"].endswith(".index.parquet")]
    limit = 3 * max(sizes) + sum(file["size"] for file in made["shards"] if file["path"].endswith(".index.parquet"))
    reader = ReleaseReader(made, ShardCache(corpus_store(), tmp_path, limit=limit))
    assert not [path for path in tmp_path.glob("*.parquet") if path.stat().st_size >= min(sizes)], "opening brings no shard"
    source = Loader(reader, Planner(model, STAGE), STAGE, 7, [0, 1], 2)
    take(source, 20)
    source.close()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) <= limit < sum(sizes)


def test_a_silent_store_is_waited_for(made, model, tmp_path, s3):
    wire = Wire(s3)
    store = ObjectStore(s3.bucket_corpus, wire.settings)
    patient, hasty = (ReleaseReader(made, ShardCache(store, tmp_path / name, outage_minutes=minutes)) for name, minutes in (("patient", 1), ("hasty", 0)))
    wire.cut()
    threading.Timer(3, wire.mend).start()
    source = Loader(patient, Planner(model, STAGE), STAGE, 7, [0, 1], 2)
    assert next(source).tokens
    source.close()
    wire.cut()
    with pytest.raises(StoreUnavailable):
        next(Loader(hasty, Planner(model, STAGE), STAGE, 7, [0, 1], 2))
