"""The loader on a real store: order, restarts, passes, mixture, packing, and what is damaged, gone or silent."""

import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch

from corpus.reader import ReleaseReader
from corpus.shard_cache import ShardCache
from flows.steps import refuse_mixtures
from infra.store import StoreUnavailable, corpus_store
from model.curriculum import Dropout, StageParams
from model.fused import compiled
from model.preprocess import target_size
from ray_jobs.loader import Loader
from ray_jobs.mixture import MixtureError
from ray_jobs.place import alone
from ray_jobs.plans import Planner
from ray_jobs.validation import PACKS, Validation
from tests.ray_jobs.made_release import picture, publish, sample, torn
from tests.ray_jobs.outage import Wire, files_at_most

STREAMS = 6
STAGE = StageParams(name="mixed", steps=10, learning_rate=1e-3, tokens_per_pack=256, lookahead=8, mixture={"understanding": 3, "generation": 1})
TALK = STAGE.model_copy(update={"mixture": {"understanding": 1}})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from model import UniMedVL
    from model.testing import make_tiny

    torch.set_num_threads(1)
    return UniMedVL.from_pretrained(make_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def record(s3):
    """90 samples to talk about in 9 shards of two sources, and 30 to draw in 3 more."""
    talk = [sample(n, source="one" if n < 60 else "two", words=1 + n % 9) for n in range(90)]
    return publish([*talk, *(sample(n, "generation", source="three") for n in range(30))], corpus_store())


def reader(record: dict, folder, gib: float = 1.0, minutes: float = 0.0, store=None) -> ReleaseReader:
    return ReleaseReader(record, ShardCache(store or corpus_store(), folder, gib * 2**30, minutes))


def begin(record, folder, model, stage=STAGE, numbers=range(STREAMS), streams=STREAMS, **known) -> Loader:
    return Loader(reader(record, folder, **{key: known.pop(key) for key in ("gib", "minutes", "store") if key in known}), Planner(model, stage), stage, 5, list(numbers), streams, **known)


def taken(loader: Loader, batches: int) -> list:
    try:
        return list(islice(loader, batches))
    finally:
        loader.close()


def seen(batches) -> dict[str, list[tuple[int, str]]]:
    """(position, sample) in the order they were packed, by stream."""
    found: dict[str, list] = {}
    for batch in batches:
        for key in batch.drawn:
            found.setdefault(key.stream, []).append((key.position, key.sample))
    return found


def test_a_picture_to_be_understood_is_moved_and_one_to_be_edited_is_not(model):
    talk, most = sample(3), 2
    still, moving = (Planner(model, TALK.model_copy(update={"shift_pixels": shift, "dropout": Dropout(text=0, vit=0, vae=0)})) for shift in (0, most))
    whole = still.plan(talk, Random(0))[0].pixels
    wide = torch.nn.functional.pad(whole.float(), (most,) * 4, mode="replicate").to(torch.uint8)
    height, width = whole.shape[1:]
    places = {(top, left): wide[:, top : top + height, left : left + width] for top in range(2 * most + 1) for left in range(2 * most + 1)}
    found = Counter()
    for seed in range(200):
        pixels = moving.plan(talk, Random(seed))[0].pixels
        (place,) = (place for place, window in places.items() if torch.equal(window, pixels))
        found[place] += 1
    assert set(found) == set(places)
    edit = replace(sample(3, "generation"), task="interleaved", parts=(replace(talk.parts[0], views=("vae", "vit")), *sample(3, "generation").parts))
    assert torch.equal(moving.plan(edit, Random(0))[1].pixels, whole)


def test_pictures_of_one_question_share_the_pixels_they_may_have(model, monkeypatch):
    rule = model.config.image.vit.model_copy(update={"max_pixels": 56 * 56})
    image = model.config.image.model_copy(update={"vit": rule})
    monkeypatch.setattr(model, "config", model.config.model_copy(update={"image": image}))
    one = sample(3)
    two = replace(one, images=one.images * 2, parts=(one.parts[0], replace(one.parts[0], image=1), *one.parts[1:]))
    planner = Planner(model, TALK.model_copy(update={"shift_pixels": 0, "dropout": Dropout(text=0, vit=0, vae=0)}))
    for asked in (one, two, one):
        size = target_size(one.images[0].width, one.images[0].height, rule, len(asked.images))
        assert {item.pixels.shape[:0:-1] for item in planner.plan(asked, Random(0))[: len(asked.images)]} == {size}
    assert target_size(64, 64, rule, 2) < target_size(64, 64, rule)


def shown(planner: Planner, number: int, damaged: bool = False) -> torch.Tensor:
    """The picture of a sample as it is planned; a damaged file shows whether it is read again."""
    one = sample(number)
    if damaged:
        one = replace(one, images=(replace(one.images[0], data=b"torn"),))
    return planner.plan(one, Random(0))[0].pixels


def test_a_picture_is_decoded_once_more_before_it_is_held(model):
    planner = Planner(model, TALK)
    once = shown(planner, 3)
    with pytest.raises(OSError):
        shown(planner, 3, damaged=True)
    assert torch.equal(shown(planner, 3), once)
    assert torch.equal(shown(planner, 3, damaged=True), once)


def test_pictures_that_are_held_stay_and_take_no_more_than_they_may(model):
    # Half is for pictures to be drawn: what is left holds one and its edges, not two.
    planner = Planner(model, TALK, cached_bytes=3 * shown(Planner(model, TALK), 3).numel())
    for number in (3, 3, 4, 4):
        shown(planner, number)
    shown(planner, 3, damaged=True)
    with pytest.raises(OSError):
        shown(planner, 4, damaged=True)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_order_does_not_depend_on_the_number_of_workers(record, model, tmp_path, workers):
    alone = taken(begin(record, tmp_path, model), 4)
    together = [taken(begin(record, tmp_path, model, numbers=range(rank, STREAMS, workers)), 4) for rank in range(workers)]
    assert seen(alone) == {name: keys for batches in together for name, keys in seen(batches).items()}
    for step, batch in enumerate(alone):
        for name, pack in batch.packs.items():
            other = together[int(name) % workers][step].packs[name]
            assert torch.equal(pack.text_ids, other.text_ids) and torch.equal(pack.vit_patches, other.vit_patches) and torch.equal(pack.timestep_draws, other.timestep_draws)


def test_a_restart_goes_on_with_what_was_handed_out(record, model, tmp_path):
    whole = taken(begin(record, tmp_path, model), 9)
    first = begin(record, tmp_path, model)
    list(islice(first, 4))
    time.sleep(0.3)  # so that batches were made ahead
    states = first.state_dict()
    first.close()
    assert all(state["waiting"] for state in states.values()) and states == whole[3].states
    for workers in (1, 4):
        for rank in range(workers):
            again = begin(record, tmp_path, model, numbers=range(rank, STREAMS, workers))
            again.load_state_dict(states)
            assert again.state_dict() == {name: states[name] for name in map(str, range(rank, STREAMS, workers))}
            for batch, expected in zip(taken(again, 5), whole[4:]):
                for name, pack in batch.packs.items():
                    assert torch.equal(pack.text_ids, expected.packs[name].text_ids) and torch.equal(pack.vit_patches, expected.packs[name].vit_patches)
                    assert batch.states[name] == expected.states[name]


def test_a_pass_visits_every_sample_once(record, model, tmp_path):
    stage = TALK.model_copy(update={"lookahead": 1})
    loader = begin(record, tmp_path, model, stage, streams=3, numbers=range(3))
    groups = loader._streams[0].mixture.groups
    for group in groups.values():
        drawn = [group.at(stream, turn) for turn in range(2 * len(group) // 3) for stream in range(3)]
        one, two = drawn[: len(group)], drawn[len(group) :]
        assert sorted(one) == sorted(two) == sorted(group.positions.tolist()) and one != two
    assert {len(group) for group in groups.values()} == {60, 30}


def test_nothing_is_lost_on_the_way_into_packs(record, model, tmp_path):
    """Every draw is packed, waits, or was passed over and counted; nobody waits for ever."""
    batches = taken(begin(record, tmp_path, model), 12)
    for name, keys in seen(batches).items():
        state, positions = batches[-1].states[name], [position for position, _ in keys]
        waiting = [position for position, _ in state["waiting"]]
        assert sorted(positions + waiting) == list(range(state["position"])) and len(waiting) <= STAGE.lookahead
        assert all(positions.index(p) <= p + STAGE.lookahead * 8 for p in positions)


def test_a_damaged_sample_is_passed_over_and_told(s3, model, tmp_path):
    good = [sample(n, words=1 + n % 9) for n in range(40)]
    spoilt = [replace(s, images=(torn(s.images[0]),)) if n in (3, 17) else s for n, s in enumerate(good)]
    stage = TALK.model_copy(update={"lookahead": 1})
    clean, found = (taken(begin(publish(samples, corpus_store()), tmp_path, model, stage, streams=1, numbers=[0]), 40) for samples in (good, spoilt))
    passed = {entry["sample"] for batch in found for entry in batch.skipped}
    assert passed == {"made/understanding-3", "made/understanding-17"} and not [s for batch in clean for s in batch.skipped]
    assert set(found[0].__dict__) == set(clean[0].__dict__)
    entry = next(entry for batch in found for entry in batch.skipped)
    assert set(entry) == {"stream", "position", "sample", "reason"} and entry["reason"]
    # Shards are named by content, so the order of another release is another one; each pass still holds all the others.
    assert {key.sample for batch in found for key in batch.drawn} == {s.id for s in good} - passed


def test_a_damaged_sample_changes_nothing_for_the_others(record, model, tmp_path):
    class Blind(Planner):
        def plan(self, sample, rng):
            if sample.id == "one/understanding-7":
                raise OSError("broken data stream")
            return super().plan(sample, rng)

    stage = STAGE.model_copy(update={"lookahead": 1})
    plain = Loader(reader(record, tmp_path), Planner(model, stage), stage, 5, [0], 1)
    spoilt = Loader(reader(record, tmp_path), Blind(model, stage), stage, 5, [0], 1)
    one, other = taken(plain, 60), taken(spoilt, 60)
    without = [key for key in seen(one)["0"] if key[1] != "one/understanding-7"]
    assert len(without) < len(seen(one)["0"]) and seen(other)["0"][: len(without)] == without[: len(seen(other)["0"])]


def test_samples_that_are_too_long_are_told_and_end_a_stage_that_has_no_others(s3, model, tmp_path):
    mixed = publish([sample(n, words=60 if n % 5 == 0 else 2) for n in range(40)], corpus_store())
    stage = TALK.model_copy(update={"tokens_per_sample": 80})
    batches = taken(begin(mixed, tmp_path, model, stage), 6)
    long = {f"made/understanding-{n}" for n in range(0, 40, 5)}
    assert long & {entry["sample"] for batch in batches for entry in batch.skipped} and not long & {key.sample for batch in batches for key in batch.drawn}
    loader = begin(mixed, tmp_path, model, TALK.model_copy(update={"tokens_per_sample": 16}))
    with pytest.raises(ValueError, match="tokens"):
        taken(loader, 1)


def test_what_is_wrong_with_the_machine_is_no_damaged_sample(record, model, tmp_path):
    class Full(Planner):
        def plan(self, sample, rng):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        taken(Loader(reader(record, tmp_path), Full(model, STAGE), STAGE, 5, [0], 1), 1)


def test_only_indexes_come_when_a_release_is_opened(record, tmp_path):
    reader(record, tmp_path)
    assert {path.name for path in tmp_path.glob("*.parquet")} == {f"{file['md5']}.parquet" for file in record["shards"] if file["path"].endswith(".index.parquet")}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data))])
def test_a_file_of_the_cache_that_was_damaged_is_fetched_again(record, model, tmp_path, damage):
    """As when the machine lost power: indexes and shards alike."""
    whole = seen(taken(begin(record, tmp_path, model), 4))
    for path in (*tmp_path.glob("*.parquet"), *tmp_path.glob("*.json"), *tmp_path.glob("*.arrow")):
        path.write_bytes(damage(path.read_bytes()))
    assert seen(taken(begin(record, tmp_path, model), 4)) == whole


def test_a_shard_that_vanished_or_is_damaged_is_named(s3, model, tmp_path):
    from infra.store import MissingObject

    store = corpus_store()
    made = publish([sample(n, source="lost") for n in range(200, 240)], store)
    gone = next(file for file in made["shards"] if not file["path"].endswith(".index.parquet"))
    whole = store.get(gone["key"])
    store.delete(gone["key"])
    with pytest.raises(Exception, match=gone["path"]) as told:
        taken(begin(made, tmp_path / "gone", model, TALK), 60)
    assert not isinstance(told.value, (MissingObject, StoreUnavailable)) and "verify" in str(told.value)
    store.put(gone["key"], whole[:-1] + b"x")
    with pytest.raises(Exception, match=f"{gone['path']}.*damaged"):
        taken(begin(made, tmp_path / "damaged", model, TALK), 60)


def test_a_store_that_is_away_is_waited_for(s3, record, model, tmp_path):
    wire = Wire(s3)
    away = begin(record, tmp_path / "a", model, minutes=1, store=corpus_store_at(wire))
    wire.cut()
    threading.Timer(3, wire.mend).start()
    assert seen(taken(away, 2)) == seen(taken(begin(record, tmp_path / "b", model), 2))
    wire.cut()


def test_a_store_that_stays_away_is_told(s3, record, model, tmp_path):
    wire = Wire(s3)
    lost = begin(record, tmp_path, model, minutes=0, store=corpus_store_at(wire))
    wire.cut()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        taken(lost, 1)


def test_a_silent_store_does_not_keep_a_loader_from_closing(s3, record, model, tmp_path):
    wire = Wire(s3)
    away = begin(record, tmp_path, model, minutes=5, store=corpus_store_at(wire))
    start = away.state_dict()
    wire.cut()
    away._begin()
    begun = time.monotonic()
    away.close()
    assert time.monotonic() - begun < 8
    away.load_state_dict(start)
    wire.mend()
    assert seen(taken(away, 1)) == seen(taken(begin(record, tmp_path / "b", model), 1))
    wire.cut()


def corpus_store_at(wire: Wire):
    from infra.store import ObjectStore

    return ObjectStore(wire.settings.bucket_corpus, wire.settings)


def test_the_cache_keeps_within_its_bound(record, model, tmp_path):
    """Three workers of a folder that holds half of the release read all of it, in the same order."""
    sizes = [file["size"] for file in record["shards"] if not file["path"].endswith(".index.parquet")]
    bound = sum(sizes) / 2
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.is_set():
            held = 0
            for path in tmp_path.glob("*.arrow"):
                try:
                    held += path.stat().st_size
                except FileNotFoundError:
                    pass
            most = max(most, held)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaders = [begin(record, tmp_path, model, numbers=range(rank, STREAMS, 3), gib=bound / 2**30) for rank in range(3)]
    found: dict = {}
    threads = [threading.Thread(target=lambda loader=loader: found.update(seen(taken(loader, 8)))) for loader in loaders]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    done.set()
    watcher.join()
    assert found == seen(taken(begin(record, tmp_path / "whole", model), 8))
    assert 0 < most <= bound


def test_on_a_full_disk_a_release_is_read_from_memory(record, model, tmp_path):
    """Indexes and shards alike: neither can be written."""
    with files_at_most(100):
        found = seen(taken(begin(record, tmp_path / "full", model), 4))
    assert found == seen(taken(begin(record, tmp_path / "empty", model), 4))
    assert not [path for path in (tmp_path / "full").iterdir() if path.is_file() and path.stat().st_size > 100]


def test_a_shard_that_finds_no_room_is_not_fetched_ahead_again_with_every_draw(s3, tmp_path):
    from infra.store import ObjectStore

    class Counting(ObjectStore):
        fetched = 0

        def get(self, key):
            self.fetched += 1
            return super().get(key)

    store = Counting(corpus_store().bucket)
    made = publish([sample(n, source="roomless") for n in range(8)], store)
    opened = reader(made, tmp_path, gib=1e-9, store=store)
    before = store.fetched
    for _ in range(50):
        opened.fetch_ahead(0)
        time.sleep(0.01)
    assert store.fetched == before + 1
    assert opened.load(0).source == "roomless"


def shares(batches, of) -> dict[str, float]:
    found = Counter(of(key.sample) for batch in batches for key in batch.drawn)
    return {name: count / sum(found.values()) for name, count in found.items()}


def test_modalities_within_a_task_come_by_weight(s3, model, tmp_path):
    made = publish([sample(n, modality=m, source=m) for m, count in (("CT", 60), ("MRI", 20), ("CXR", 10)) for n in range(count)], corpus_store())
    stage = TALK.model_copy(update={"modalities": {"understanding": {"CT": 1, "MRI": 3, "CXR": 0}}})
    found = shares(taken(begin(made, tmp_path, model, stage), 40), lambda id: id.split("/")[0])
    assert found["MRI"] == pytest.approx(0.75, abs=0.05) and "CXR" not in found
    with pytest.raises(ValueError, match="modalities.understanding names OCT.*it has CT, CXR, MRI"):
        begin(made, tmp_path, model, stage.model_copy(update={"modalities": {"understanding": {"OCT": 1}}}))


def test_a_modality_may_be_too_rare_to_be_validated(s3, model, tmp_path):
    """All its patients are in training: the others are validated by their weights."""
    made = [sample(n, modality=m, source=m, split=split) for m, split in (("CT", "train"), ("CT", "val"), ("MRI", "val"), ("OCT", "train")) for n in range(8)]
    held = reader(publish(made, corpus_store()), tmp_path)
    for weights in ({"CT": 1, "OCT": 3}, {"OCT": 1}):
        stage = TALK.model_copy(update={"modalities": {"understanding": weights}})
        assert len(Validation(held, model, stage, 5, [0], 1, alone(), sharded=False).packs) == PACKS


def test_tasks_come_by_weight(record, model, tmp_path):
    found = shares(taken(begin(record, tmp_path, model), 40), lambda id: id.split("/")[1].split("-")[0])
    assert found["generation"] == pytest.approx(0.25, abs=0.05)
    less = begin(record, tmp_path, model, STAGE.model_copy(update={"mixture": {"understanding": 3, "generation": 1, "interleaved": 36, "text": 0}}))
    assert "no train sample of interleaved (90.0% of the mixture); generation, understanding" in less.absent
    assert shares(taken(less, 40), lambda id: id.split("/")[1].split("-")[0]) == found
    with pytest.raises(ValueError, match="no train sample of.*it has"):
        begin(record, tmp_path, model, STAGE.model_copy(update={"mixture": {"interleaved": 1}}))


def test_a_stage_that_the_release_cannot_feed_is_refused_before_any_is_trained(s3, request):
    made = [sample(n, task, split=split) for task, split in (("understanding", "train"), ("understanding", "val"), ("text", "train")) for n in range(3)]
    release = publish(made, corpus_store(), tag="corpus/2000-02-02.1")
    corpus_store().put_json("releases/2000-02-02.1.json", release)
    request.addfinalizer(lambda: corpus_store().delete("releases/2000-02-02.1.json"))
    text = TALK.model_copy(update={"name": "last", "mixture": {"text": 1}})
    refuse_mixtures([TALK.model_copy(update={"evaluate_every": 5}), text], release)
    for told, last in (
        ("stage 'last': modalities.understanding names OCT.*it has CT", TALK.model_copy(update={"name": "last", "modalities": {"understanding": {"OCT": 1}}})),
        ("stage 'last': the release has no train sample of", text.model_copy(update={"mixture": {"interleaved": 1}})),
        ("stage 'last': the release has no val sample of", text.model_copy(update={"evaluate_every": 5})),
    ):
        with pytest.raises(MixtureError, match=told):
            refuse_mixtures([TALK, last], release)


def test_replay_mixes_old_with_new(s3, model, tmp_path):
    old = publish([sample(n, source="old") for n in range(60)], corpus_store())
    both = publish([*(sample(n, source="old") for n in range(60)), *(sample(n, source="fresh") for n in range(10))], corpus_store())
    stage = TALK.model_copy(update={"replay": 0.3})
    mixed = begin(both, tmp_path, model, stage, known=reader(both, tmp_path).held_by(old))
    found = shares(taken(mixed, 40), lambda id: id.split("/")[0])
    assert found["old"] == pytest.approx(0.3, abs=0.05) and mixed.absent == ""
    alone = begin(old, tmp_path, model, stage, known=reader(old, tmp_path).held_by(old))
    assert shares(taken(alone, 4), lambda id: id.split("/")[0]) == {"old": 1.0} and "all are old, so replay=0.3" in alone.absent


def test_a_task_without_new_samples_is_told_where_a_stage_replays(s3, model, tmp_path):
    """Its draws are all old, so the share is not the stage's."""
    had = [*(sample(n) for n in range(20)), *(sample(n, "text") for n in range(20))]
    old, now = publish(had, corpus_store()), publish([*had, *(sample(n, source="fresh") for n in range(10))], corpus_store())
    stage = STAGE.model_copy(update={"replay": 0.3, "mixture": {"understanding": 1, "text": 1}})
    told = begin(now, tmp_path, model, stage, known=reader(now, tmp_path).held_by(old)).absent
    assert told == "of its train samples of text all are old, so replay=0.3 has nothing to mix there"


def test_what_was_learned_is_old_in_a_shard_that_was_written_anew(s3, tmp_path):
    """As forgetting a patient does. What was edited since is new."""
    old = publish([sample(n, source="old") for n in range(20)], corpus_store(), rows=20)
    stay = [sample(n, source="old", words=9 if n == 7 else 3) for n in range(1, 20)]
    now = publish([*stay, *(sample(n, source="fresh") for n in range(5))], corpus_store(), rows=20)
    found = reader(now, tmp_path)
    assert {found.index.id(at) for at in np.flatnonzero(~found.held_by(old))} == {"old/understanding-7", *(f"fresh/understanding-{n}" for n in range(5))}


@pytest.mark.parametrize("tokens", [1024, 18000])
def test_packs_are_full_of_real_tokens(s3, model, tmp_path, tokens):
    """Dropped conditions take no room: what counts is what is in the pack."""
    lengths = [3, 9, 20, 45, 80]
    made = publish([sample(n, task, source=task, words=lengths[n % 5], image=picture(n % 7)) for task in ("understanding", "generation", "text") for n in range(60)], corpus_store(), rows=60)
    stage = STAGE.model_copy(update={"tokens_per_pack": tokens, "lookahead": 32, "mixture": {"understanding": 5, "generation": 4, "text": 1}, "dropout": Dropout(text=0.3, vit=0.05)})
    batches = taken(begin(made, tmp_path, model, stage, numbers=[0, 1], streams=2), 8 if tokens < 2000 else 3)
    assert all(pack.length <= tokens for batch in batches for pack in batch.packs.values())
    assert all(batch.tokens == sum(pack.length for pack in batch.packs.values()) and batch.capacity == 2 * tokens for batch in batches)
    assert sum(batch.tokens for batch in batches) / sum(batch.capacity for batch in batches) >= 0.97


def test_the_real_mixture_fills_packs(s3, shared_data, model, tmp_path):
    """Phantoms, MedNIST and UniMed-real in the published last stage's mixture, at a small, the usual and the published budget."""
    from corpus import quality
    from corpus.params import PhantomParams, QualityParams
    from corpus.phantoms import mini
    from corpus.readers import records
    from corpus.readers.source import Source
    from corpus.record import Rejection

    read = [r for name in ("mednist", "unimed-real") for r in list(records.read(Source(shared_data / name, name)))[::20] if not isinstance(r, Rejection)]
    looked_at = [quality.examine(r, QualityParams(max_side=256), b"salt") for r in read]
    samples = [*mini.samples(PhantomParams(patients_per_modality=4, images_per_patient=1, image_size=64), b"salt"), *(s for found in looked_at if not isinstance(found, Rejection) for s in found)]
    made = publish(samples, corpus_store(), rows=100)
    stage = STAGE.model_copy(update={"lookahead": 32, "mixture": {"text": 3, "generation": 35, "understanding": 37, "interleaved": 25}, "dropout": Dropout()})
    planner, opened = Planner(model, stage), reader(made, tmp_path)
    for tokens, steps in ((512, 10), (1024, 10), (18000, 2)):
        budget = stage.model_copy(update={"tokens_per_pack": tokens})
        batches = taken(Loader(opened, planner, budget, 5, [0], 1), steps)
        assert sum(batch.tokens for batch in batches) / sum(batch.capacity for batch in batches) >= 0.97


def test_pictures_are_encoded_once_nothing_is_being_compiled(model):
    """The compiler's tracer replaces, in all threads, what modules do."""
    planner, planned = Planner(model, STAGE), []
    drawn = threading.Thread(target=lambda: planned.append(planner.plan(sample(1, "generation"), Random(1))))

    class Traced(torch.nn.Module):
        def forward(self, x):
            drawn.start()
            drawn.join(0.5)
            return x + 1

    def backend(graph, inputs):
        torch.fx.symbolic_trace(Traced())
        return graph.forward

    compiled(torch.neg)
    torch.compile(lambda x: 2 * x, backend=backend)(torch.ones(2))
    drawn.join(30)
    assert len(planned) == 1
