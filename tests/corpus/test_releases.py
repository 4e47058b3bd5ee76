"""Sources taken in twice, and releases that follow them: only what changed is written, and a forgotten patient is gone."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from corpus import changes, data_docs, forgotten, index, intake, quality, release, shards, taken_in
from corpus.params import CorpusParams
from corpus.patients import patient_key
from corpus.readers.pictures import PictureBytes
from corpus.record import Record
from corpus.sample import Turn
from flows.releases import make_release
from infra.store import ObjectStore, corpus_store
from ray_jobs.ingest import EmptySource, add_source

SALT = b"salt"
# Pictures of noise are of no kind, so none is judged to be of another.
PARAMS = CorpusParams.model_validate(
    {"quality": {"modality": {"min_pictures": 10_000}}, "shards": {"target_bytes": 2**17, "row_group": 16}, "expectations": {"modalities": ["CT"], "min_per_modality": 10, "min_per_split": 5}}
)
SPLITS = ("train", "train", "val", "test")


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int, seed: int | None = None, **known) -> Record:
    pixels = np.random.default_rng(number if seed is None else seed).integers(0, 255, (40, 40), dtype=np.uint8)
    fields = {
        "id": f"r{number:03d}",
        "where": f"line {number}",
        "images": (PictureBytes(encoded(pixels), 10**6),),
        "modality": "CT",
        "source": "made",
        "license": "CC0-1.0",
        "attribution": "",
        "split": SPLITS[number % 4],
        "patient": f"Jane Doe {number // 4 * 4 + number % 4}",
        "caption": f"CT image number {number}.",
        "turns": (Turn("Which picture is this?", str(number), "OPEN"),),
    }
    return Record(**fields | known)


def take_in(name: str, records) -> dict:
    return intake.add(name, iter(records), PARAMS, corpus_store(), SALT)


def entry(taken: dict) -> dict:
    return {key: taken[key] for key in ("name", "shards", "removed", "quarantine")}


def live(taken: dict):
    store = corpus_store()
    removed = store.get_json(taken["removed"])
    return index.join([index.read(store.get(s["index_key"]), s["shard"], removed.get(s["shard"], ())) for s in taken["shards"]])


def bytes_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids_of(folder) -> list[str]:
    """Ids of the samples that a release's folder holds and that count."""
    removed = json.loads((folder / release.REMOVED).read_text())
    names = {path.relative_to(folder / "shards").as_posix().removesuffix(shards.INDEX): path for path in folder.rglob(f"*{shards.INDEX}")}
    return index.join([index.read(path.read_bytes(), name, removed.get(name, ())) for name, path in names.items()])["id"].to_pylist()


@pytest.fixture
def taken(s3, request):
    return take_in(request.node.name.replace("_", "-"), map(record, range(120)))


def test_a_changed_source_writes_what_changed_alone(taken):
    edited = [record(n, seed=1000) if n == 7 else record(n) for n in range(121) if n != 30]
    again = take_in(taken["name"], edited)
    assert again["how"] == "replaced" and again["samples"]["kept"] == 240
    new = [s for s in again["shards"] if s not in taken["shards"]]
    assert sum(s["rows"] for s in new) == 4, "two samples of the edited record, two of the added one"
    found = changes.compare(live(taken), live(again))
    assert (found.added, found.removed, found.edited, found.unchanged) == (2, 2, 2, 236)
    assert found.examples["removed"] == ["made/r030#u", "made/r030#g"]
    back = take_in(taken["name"], map(record, range(120)))
    assert changes.compare(live(taken), live(back)).unchanged == 240


def test_a_difference_says_what_was_edited(taken):
    labels = record(0).labels | {"reader": "two"}
    known = {7: {"seed": 1000}, 8: {"caption": "CT of the head."}, 9: {"turns": (Turn("Which picture is this?", "the ninth", "OPEN"),)}, 10: {"modality": "MRI", "caption": "MRI."}}
    known |= {11: {"license": "CC-BY-4.0"}, 12: {"split": "val"}, 13: {"labels": labels}}
    before, after = live(taken), live(take_in(taken["name"], [record(n, **known.get(n, {})) for n in range(120)]))
    found = changes.compare(before, after)
    assert (found.edited, found.added, found.removed, found.moved) == (12, 0, 0, {"train -> val": 2})
    assert found.edits == {"picture": 2, "caption": 2, "modality": 2, "split": 2, "license": 2, "questions": 1, "other": 2}
    sizes = [dict(zip(table["id"].to_pylist(), table["bytes"].to_pylist())) for table in (before, after)]
    assert [found.bytes_removed, found.bytes_added] == [2 * size["made/r007#u"] for size in sizes], "the picture that was there, and the one that came for it"


def test_an_unchanged_record_is_not_decoded_again(taken):
    again = intake.add(taken["name"], (record(n) for n in range(120)), PARAMS, corpus_store(), SALT, lambda records: pytest.fail("examined") if list(records) else iter(()))
    assert again["how"] == "up to date"


def test_a_change_of_parameters_is_looked_at_once(taken):
    params = PARAMS.model_copy(update={"quality": PARAMS.quality.model_copy(update={"max_text": PARAMS.quality.max_text + 1})})
    examined = []

    def noted(records):
        for r in records:
            examined.append(r.id)
            yield quality.examine(r, params.quality, SALT)

    def again(count: int) -> dict:
        examined.clear()
        return intake.add(taken["name"], map(record, range(count)), params, corpus_store(), SALT, noted)

    assert again(120)["how"] == "up to date" and len(examined) == 120
    assert again(120)["how"] == "up to date" and not examined
    assert again(121)["how"] == "replaced" and len(examined) == 1, "one is new"
    assert again(121)["how"] == "up to date" and not examined
    assert take_in(taken["name"], map(record, range(120)))["shards"] == taken["shards"]


def test_an_interrupted_reading_goes_on_where_it_was(s3):
    def until(stop: int):
        for n in range(stop):
            yield record(n)
        raise KeyboardInterrupt

    examined = []

    def noted(records):
        for r in records:
            examined.append(r.id)
            yield quality.examine(r, PARAMS.quality, SALT)

    with pytest.raises(KeyboardInterrupt):
        intake.add("interrupted", until(119), PARAMS, corpus_store(), SALT)
    assert "interrupted" not in {s["name"] for s in taken_in.sources(corpus_store())}
    after = intake.add("interrupted", map(record, range(120)), PARAMS, corpus_store(), SALT, noted)
    assert after["samples"]["kept"] == 240 and 0 < len(examined) < 60
    undisturbed = take_in("undisturbed", map(record, range(120)))
    assert changes.compare(live(undisturbed), live(after)).unchanged == 240


def test_a_reading_that_ended_early_costs_no_sample_that_it_found_unchanged(taken):
    edited = [record(n, caption=f"CT image number {n}, read again.") for n in range(120)]

    def until_stopped():
        yield from edited[:119]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(taken["name"], until_stopped())
    again = take_in(taken["name"], edited)
    assert again["samples"] == {"kept": 240, "quarantined": 0}, "the questions are in shards that were there, the captions in new ones"
    assert take_in(taken["name"], edited)["how"] == "up to date"


def test_samples_of_a_record_that_lie_beside_a_forgotten_patient_are_not_lost(taken):
    edited = [record(n, caption=f"CT image number {n}, read again.") for n in range(120)]
    again = take_in(taken["name"], edited)
    gone = {patient_key(SALT, "made", "Jane Doe 1")}
    old = next(s for s in again["shards"] if s in taken["shards"])
    beside = index.read(corpus_store().get(old["index_key"]), "")["patient"].to_pylist()[-1]
    for patient in ({beside}, gone):
        forgotten.without_patient(taken["name"], patient, PARAMS, corpus_store())
    stay = [r for r in edited if patient_key(SALT, r.source, r.patient) not in {beside, *gone}]
    assert take_in(taken["name"], stay)["samples"]["kept"] == 2 * len(stay)


def test_a_reading_that_ended_early_while_it_wrote_shards_anew_takes_nothing_for_a_copy(taken, monkeypatch):
    few = [record(n) for n in range(120) if n % 3 == 0]
    with monkeypatch.context() as stopped:
        stopped.setattr(taken_in, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            take_in(taken["name"], few)
    assert take_in(taken["name"], few)["samples"] == {"kept": 2 * len(few), "quarantined": 0}


def test_the_same_lines_twice_stay_as_many_however_often_they_are_read(s3):
    first, *_, last = [take_in("lines-twice", [record(n) for n in (*range(50), *range(50))]) for _ in range(3)]
    assert first["samples"] == last["samples"] == {"kept": 100, "quarantined": 100} and last["how"] == "up to date"


def test_of_a_shard_that_comes_twice_in_a_source_one_counts(s3):
    apart = PARAMS.model_copy(update={"shards": PARAMS.shards.model_copy(update={"target_bytes": 1})})
    taken = intake.add("shard-twice", [record(0), record(0)], apart, corpus_store(), SALT)
    assert len(live(taken)) == taken["samples"]["kept"] == 2


def test_of_a_shard_that_comes_twice_without_a_patient_one_counts(s3):
    lines = [record(n, turns=()) for n in (1, 0, 0)]
    pairs = PARAMS.model_copy(update={"shards": PARAMS.shards.model_copy(update={"target_bytes": 3000})})
    taken = intake.add("pair-and-one", lines, pairs, corpus_store(), SALT)
    assert [shard["rows"] for shard in taken["shards"]] == [2, 1] and taken["samples"]["kept"] == 2
    rest, _ = forgotten.without_patient(taken["name"], {patient_key(SALT, "made", lines[0].patient)}, PARAMS, corpus_store())
    assert len(live(rest)) == rest["samples"]["kept"] == 1


def test_a_shard_that_hardly_counts_is_written_anew(taken):
    few = [n for n in range(120) if n % 3 == 0]
    again = take_in(taken["name"], map(record, few))
    assert again["samples"]["kept"] == 2 * len(few) == sum(s["rows"] for s in again["shards"])
    assert take_in(taken["name"], map(record, few))["how"] == "up to date"


def test_the_order_of_records_decides_nothing_but_the_order(taken):
    again = take_in(taken["name"], reversed([record(n) for n in range(120)]))
    assert again["how"] == "up to date"


def test_equal_sources_give_equal_releases_and_what_is_there_stays(taken, tmp_path):
    cards = [release.build([entry(taken)], tmp_path / run, PARAMS, corpus_store(), SALT, print) for run in ("a", "b")]
    assert cards[0] == cards[1] and bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "shards").rglob("*.parquet")}
    again = take_in(taken["name"], [*map(record, range(120)), record(500)])
    release.build([entry(again)], tmp_path / "a", PARAMS, corpus_store(), SALT, print)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "shards").rglob("*.parquet")}
    assert before.items() <= after.items() and len(after) == len(before) + 2


def damaged(data: bytes) -> bytes:
    """As many bytes, the last of which are others."""
    return data[:-9] + bytes(9)


def test_a_source_that_is_removed_while_it_is_read_is_told(s3):
    def until_removed():
        yield record(0)
        taken_in.remove("fleeting", corpus_store())
        yield record(1)

    intake.add("fleeting", [record(0)], PARAMS, corpus_store(), SALT)
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        intake.add("fleeting", until_removed(), PARAMS, corpus_store(), SALT)
    assert intake.add("fleeting", [record(0), record(1)], PARAMS, corpus_store(), SALT)["how"] == "added"
    taken_in.remove("fleeting", corpus_store())


def test_a_source_that_is_removed_while_sources_are_listed_is_none(s3, monkeypatch):
    take_in("passing", [record(0)])
    plain = ObjectStore.list

    def removed_then(store, prefix):
        found = list(plain(store, prefix))
        store.delete("intake/passing.json")
        return found

    monkeypatch.setattr(ObjectStore, "list", removed_then)
    assert "passing" not in [source["name"] for source in taken_in.sources(corpus_store())]


@pytest.mark.parametrize("which, told", [("key", "its name is of other content"), ("index_key", "magic bytes")])
def test_what_is_damaged_in_the_store_ends_the_release_by_name(taken, tmp_path, which, told):
    store, key = corpus_store(), taken["shards"][0][which]
    whole = store.get(key)
    store.put(key, damaged(whole))
    with pytest.raises(ValueError, match=told) as refused:
        release.build([entry(taken)], tmp_path / "r", PARAMS, store, SALT, print)
    assert f"delete it, `unimed data remove {taken['name']}` and add the source again" in str(refused.value) and key in str(refused.value)
    store.delete(key)
    taken_in.remove(taken["name"], corpus_store())
    assert take_in(taken["name"], map(record, range(120)))["shards"] == taken["shards"] and store.get(key) == whole


def test_what_was_cut_short_in_the_folder_comes_again_and_so_does_an_index_that_is_another(taken, tmp_path):
    release.build([entry(taken)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    before = bytes_of(tmp_path / "r")
    shard = tmp_path / "r" / "shards" / taken["shards"][0]["shard"]
    shard.with_suffix(shards.DATA).write_bytes(b"PAR1")
    shard.with_suffix(shards.INDEX).write_bytes(damaged(shard.with_suffix(shards.INDEX).read_bytes()))
    release.build([entry(taken)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    assert bytes_of(tmp_path / "r") == before


def test_a_release_settles_what_its_sources_disagree_on(taken, tmp_path):
    copy = take_in(f"{taken['name']}-copy", [record(3, source="copy"), record(4, source="copy", split="test"), record(900, source="copy")])
    card = release.build([entry(taken), entry(copy)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    assert card["reasons"] == {"duplicate": 4} and card["samples"] == 240 + 6 - 4
    aside = shards.read_quarantine((tmp_path / "r" / "quarantine.parquet").read_bytes())
    assert sorted(r.where for r in aside) == ["copy/r003#g", "copy/r003#u", "made/r004#g", "made/r004#u"]


def test_texts_that_were_taken_in_before_their_words_were_kept_are_told_apart_when_they_come_again(s3, monkeypatch):
    talks = [record(n, images=(), caption=None, turns=(Turn("What is a node?", "A lump.", "OPEN"),), split=split) for n, split in enumerate(("train", "test"))]
    with monkeypatch.context() as older:
        older.setattr(index, "_caption", lambda sample, texts: 0)
        assert take_in("talks", talks)["samples"]["kept"] == 2
    for how in ("replaced", "up to date"):
        again = take_in("talks", talks)
        assert (again["how"], again["samples"]["kept"], again["reasons"]) == (how, 1, {"duplicate": 1})


def test_text_that_names_no_modality_is_released(taken, tmp_path):
    talk = record(500, images=(), caption=None, modality=None, turns=(Turn("What is a node?", "A lump.", "OPEN"),))
    talks = take_in("talks", [talk])
    card = release.build([entry(taken), entry(talks)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    assert card["samples"] == 241 and card["counts"]["text"] == {"Text": {"train": 1}}


def test_the_same_under_two_names_is_released_once(taken, tmp_path):
    copy = take_in(f"{taken['name']}-copy", map(record, range(120)))
    assert [s["shard"] for s in copy["shards"]] == [s["shard"] for s in taken["shards"]]
    less = take_in(taken["name"], (record(n) for n in range(120) if n != 30))
    card = release.build([entry(less), entry(copy)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    assert card["samples"] == 240 and card["reasons"] == {"duplicate-id": 238}
    assert sorted(ids_of(tmp_path / "r")) == sorted(live(copy)["id"].to_pylist())


def test_a_release_that_breaks_an_expectation_leaves_the_folder_alone(taken, tmp_path):
    release.build([entry(taken)], tmp_path / "r", PARAMS, corpus_store(), SALT, print)
    before = bytes_of(tmp_path / "r")
    strict = PARAMS.model_copy(update={"expectations": PARAMS.expectations.model_copy(update={"min_per_split": 1000})})
    with pytest.raises(ValueError, match="breaks"):
        release.build([entry(taken)], tmp_path / "r", strict, corpus_store(), SALT, print)
    assert {k: v for k, v in bytes_of(tmp_path / "r").items() if k != "validation.json"} == {k: v for k, v in before.items() if k != "validation.json"}


def test_a_source_whose_balance_shifts_is_refused_and_a_new_source_is_not(taken, tmp_path):
    strict = PARAMS.model_copy(update={"expectations": PARAMS.expectations.model_copy(update={"balance_from": 40})})

    def build(entries: list[dict], before: dict | None) -> dict:
        return release.build(entries, tmp_path / "r", strict, corpus_store(), SALT, print, before)

    first = build([entry(taken)], None)
    assert first["by_source"]["made"]["modality"] == {"CT": 240} and first["expectations"]["of"] == 23
    other = take_in(f"{taken['name']}-mri", [record(n, seed=2000 + n, source="other", modality="MRI", caption=None) for n in range(400, 480)])
    assert build([entry(taken), entry(other)], first["by_source"])["samples"] == 320
    shifted = take_in(taken["name"], [record(n, modality="MRI" if n % 3 else "CT", caption=None, turns=record(n).turns) for n in range(120)])
    with pytest.raises(ValueError, match=r"balance, shift: .*max_shift.*made / modality / CT"):
        build([entry(shifted)], first["by_source"])
    report = json.loads((tmp_path / "r" / "validation.json").read_text())
    moved = {(row["of"], row["value"]): row["shift"] for row in report["tables"]["balance"]}
    assert moved["modality", "CT"] == pytest.approx(2 / 3, abs=0.01) and moved["split", "test"] == 0
    assert build([entry(shifted)], None)["samples"] == 120


def test_the_data_docs_tell_every_expectation_and_no_patient(taken, tmp_path):
    strict = PARAMS.model_copy(update={"quality": PARAMS.quality.model_copy(update={"min_side": 41})})
    with pytest.raises(ValueError, match="groups, smallest_side: is at least 41: 1 failing, e.g. made / CT"):
        release.build([entry(taken)], tmp_path / "r", strict, corpus_store(), SALT, print)
    report = json.loads((tmp_path / "r" / "validation.json").read_text())
    page = data_docs.page("corpus/2026-01-01.1 <b>", report)
    assert page.count("<span class=held>held") == sum(r["success"] for r in report["results"]) and page.count(">broken</span>") == 2
    assert all(r["description"] in page for r in report["results"]) and "made/r000#u" in page
    assert "<b>" not in page and "http" not in page and "<script" not in page
    assert not [key for key in live(taken)["patient"].unique().to_pylist() if key in page]


def test_a_forgotten_patient_is_gone_and_does_not_come_back(taken, tmp_path):
    store, key = corpus_store(), patient_key(SALT, "made", "Jane Doe 8")
    picture = record(8).images[0]().tobytes()
    forgotten.remember({key}, store)
    after, anew = forgotten.without_patient(taken["name"], {key}, PARAMS, store)
    assert anew == 1 and not {s["key"] for s in after["shards"]} & set(forgotten.holding({key}, store))
    assert after["samples"]["kept"] == 238 and key not in live(after)["patient"].to_pylist()
    release.build([entry(after)], tmp_path / "r", PARAMS, store, SALT, print)
    rows = [row for path in (tmp_path / "r" / "shards").rglob("*.parquet") if "index" not in path.name for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 238 and key not in {row["patient"] for row in rows}
    assert picture not in {Image.open(io.BytesIO(i["data"])).tobytes() for row in rows for i in row["images"]}
    again = take_in(taken["name"], map(record, range(120)))
    assert again["reasons"] == {"forgotten": 1} and again["samples"]["kept"] == 238
    assert "Jane" not in str(shards.read_quarantine(store.get(again["quarantine"])))
    assert forgotten.without_patient(taken["name"], {key}, PARAMS, store)[1] == 0


def test_who_turns_out_to_be_one_with_a_forgotten_patient_is_in_no_later_shard(s3):
    store, key = corpus_store(), patient_key(SALT, "kin", "Jane Doe 9")
    take_in("kin", [record(n, source="kin") for n in range(20)])
    forgotten.remember({patient_key(SALT, "kin", "Jane Roe")}, store)
    again = take_in("kin", [record(n, source="kin", **({"linked": ("Jane Roe",)} if n == 9 else {})) for n in range(20)])
    assert again["reasons"] == {"forgotten": 1} and again["samples"]["kept"] == 38
    assert not {s["key"] for s in again["shards"]} & set(forgotten.holding({key}, store))


def test_who_counts_as_one_is_known_of_a_reading_that_did_not_come_to_its_end(s3):
    store, (one, other) = corpus_store(), (patient_key(SALT, "stopped", name) for name in ("Jane Doe 0", "Jane Roe"))

    def stops():
        yield from (record(n, source="stopped", linked=("Jane Roe",)) for n in range(120))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in("stopped", stops())
    assert forgotten.holding({one}, store) and not forgotten.holding({other}, store)
    assert one in forgotten.known_as(other, store)


def test_a_source_that_vanished_is_not_emptied_unless_that_is_meant(s3, tmp_path):
    picture = tmp_path / "class" / "1.png"
    picture.parent.mkdir()
    picture.write_bytes(record(1).images[0].data)

    def add(empty: bool = False) -> dict:
        return add_source(tmp_path, "vanishing", modality="CT", license="CC0-1.0", empty=empty)

    before = add()
    picture.unlink()
    (tmp_path / "class" / "notes.xyz").write_text("nothing that is read")
    with pytest.raises(EmptySource, match="--empty"):
        add()
    assert next(s for s in taken_in.sources(corpus_store()) if s["name"] == "vanishing")["shards"] == before["shards"]
    assert (after := add(empty=True))["how"] == "replaced" and not after["samples"]["kept"] and after["records"]["seen"] == 1
    assert add()["how"] == "up to date"


def test_long_samples_of_many_sources_share_no_shard(s3):
    taken = take_in("several", [replace(record(n), source=f"site {n % 3}") for n in range(60)])
    assert {s["shard"].split("/")[0] for s in taken["shards"]} == {"site 0", "site 1", "site 2"}


@pytest.mark.parametrize(
    "text, told",
    [("sources:", "no list `sources`"), ("", "no list `sources`"), ("- unimed-mini", "no list `sources`"), ("sources: [nope]", "'nope' is not built in"), ("sources: [{name: x}]", "'x' is not built in"), ("sources: [", "cannot be read"), ("sources: [1]", "1 is not built in")],
)
def test_a_file_that_lists_no_sources_is_told_before_anything_is_made(s3, tmp_path, monkeypatch, text, told):
    (tmp_path / "sources.yaml").write_text(text)
    with pytest.raises(release.BadSources, match=told):
        release.read_sources(tmp_path / "sources.yaml")
    monkeypatch.setattr(s3, "repo_dir", tmp_path)
    with pytest.raises(release.BadSources, match=told):
        make_release(force=False, on_line=print, wait_s=0)
