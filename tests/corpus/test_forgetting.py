"""Patients who are forgotten and purged, in any order and stopped anywhere: nothing on S3 or in the clone holds them, and who saw them is still told."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from corpus import expectations, forgotten, index, quality, reading, taken_in
from corpus.params import CorpusParams
from corpus.patients import patient_key
from flows import forgetting, history, releases, review
from flows.cli_data import app
from flows.releases import all_releases, make_release
from infra.corpus_repo import CorpusRepo, RepositoryError
from infra.registry import ModelRegistry
from infra.settings import get_settings
from infra.stack import Stack
from infra.store import ObjectStore, corpus_store, log_store
from ray_jobs.ingest import add_source, salt
from ray_jobs.releases import open_release
from tests.corpus.test_releases import SPLITS, record


def quiet(line: str) -> None:
    pass


def forget(patient: str, purge: bool = True) -> dict:
    return forgetting.forget(patient, purge, lambda tags: True, quiet)


class Ward:
    """A source of numbered patients with two pictures each; it grows."""

    def __init__(self, folder):
        self.folder, self.name, self.count = folder, "ward", 0
        self.record: dict = {}

    def more(self, count: int, copy_of: int | None = None, **said) -> int:
        """Take this many more patients in, the last with the pictures of another and in training; gives the last one's number."""
        with open(self.folder / "records.jsonl", "a") as lines:
            for number in range(self.count, self.count + count):
                copied = copy_of if number == self.count + count - 1 else None
                for view in range(2):
                    pixels = np.random.default_rng([number if copied is None else copied, view]).integers(0, 255, (9, 9), dtype=np.uint8)
                    Image.fromarray(pixels).resize((70, 70), Image.Resampling.BICUBIC).save(self.folder / f"{number}-{view}.png")
                    known = {"modality": "CT", "license": "CC0-1.0", "split": ("train", "val", "test")[number % 3] if copied is None else "train"}
                    lines.write(json.dumps({"id": f"{number}-{view}", "image": f"{number}-{view}.png", "patient": f"Doe {number}", "caption": f"CT image {number} {view}."} | known | said) + "\n")
        self.count += count
        self.take_in()
        return self.count - 1

    def take_in(self) -> None:
        self.record = add_source(self.folder, self.name)

    def forgotten(self) -> int:
        """Records of the source that are kept aside as a forgotten patient's."""
        return self.record["reasons"].get("forgotten", 0)

    def key(self, number: int) -> str:
        return patient_key(salt(), self.name, f"Doe {number}")


def named(ward: Ward, patient: str) -> str:
    return patient_key(salt(), ward.name, patient)


def release() -> str:
    return make_release(force=False, on_line=quiet, wait_s=0)["tag"]


def holding(*keys: str) -> list[str]:
    """All objects that name one of these patients in a column."""
    return [entry.key for entry in corpus_store().list() if not of_object(entry.key, entry.etag).isdisjoint(keys)]


@cache
def of_object(key: str, etag: str) -> set[str]:
    """Whom an object of this content names."""
    return patients(corpus_store().get(key))


def held_here(*keys: str) -> list[Path]:
    """Files of the clone that do so."""
    root = CorpusRepo().path
    return [path.relative_to(root) for path in root.rglob("*") if path.is_file() and not patients(path.read_bytes()).isdisjoint(keys)]


def patients(data: bytes) -> set[str]:
    """Whom the column `patient` of a Parquet file names."""
    return {*pq.ParquetFile(io.BytesIO(data)).read(["patient"]).to_pydict().get("patient", ())} if data[:4] == b"PAR1" else set()


@pytest.fixture(scope="module")
def ward(s3, tmp_path_factory):
    """Eighteen patients in a release; each test forgets others."""
    made = Ward(tmp_path_factory.mktemp("ward"))
    made.more(18)
    release()
    return made


def stop(*arguments, **named):
    raise KeyboardInterrupt


def test_a_purge_after_a_plain_forget_leaves_nothing(ward):
    first = forget(ward.key(0), purge=False)
    assert not first["purged"] and holding(ward.key(0)) == first["left"] != []
    done = forget(ward.key(0))
    assert done["purged"] == first["left"] and not done["left"] and holding(ward.key(0)) == []
    assert forget(ward.key(0))["purged"] == []


def test_a_refreshed_model_was_trained_on_what_its_parent_was(ward, tmp_path):
    number = ward.more(1, split="train")
    first = release()
    records = ward.folder / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    records.write_text("".join(json.dumps(line | ({"split": "test"} if line["patient"] == f"Doe {number}" else {})) + "\n" for line in lines))
    ward.take_in()
    second = release()
    parent = published(tmp_path / "parent", {"release": first})
    other = published(tmp_path / "other", {"release": second})
    heir = published(tmp_path / "heir", {"release": second, "stages": [{"version": parent}]})
    for name, start in (("own", {"version": parent}), ("next", {"prefix": "runs/own"}), ("other", {"version": other})):
        log_store().put_json(f"jobs/{name}/inputs.json", {"release": second, "start": start})
        log_store().put_json(f"jobs/{name}/result.json", {"result": {"stage": name, "prefix": f"runs/{name}"}})
    try:
        found = history.trace(patient=ward.key(number))
    finally:
        for folder in ("own", "next", "other"):
            log_store().delete_dir(f"jobs/{folder}/")
        for version in (parent, other, heir):
            ModelRegistry().store.delete_dir(f"versions/{version}/")
    on_parent, on_own = {"release": first, "trained": True}, {"release": second, "trained": False}
    assert {m.pop("version"): m for m in found["models"]} == {parent: on_parent, heir: on_parent, other: on_own}
    assert {c.pop("stage"): c for c in found["checkpoints"]} == {name: {"checkpoint": f"runs/{name}"} | said for name, said in (("own", on_parent), ("next", on_parent), ("other", on_own))}


def published(folder: Path, lineage: dict) -> str:
    folder.mkdir()
    (folder / "ema.safetensors").write_text(folder.name)
    return ModelRegistry().publish(folder, lineage).id


def test_what_was_purged_is_not_on_the_disk_of_the_store_either(ward):
    number = ward.more(1)
    release()
    picture = (ward.folder / f"{number}-0.png").read_bytes()
    middle = picture[len(picture) // 2 :][:200]
    assert middle in on_disk()
    forget(ward.key(number))
    assert middle not in on_disk()


def test_bytes_of_a_patient_of_no_release_are_off_the_disk_after_a_purge_that_was_stopped_before_that(ward, monkeypatch):
    number = ward.more(1, caption="MRI of the head.")
    picture = (ward.folder / f"{number}-0.png").read_bytes()
    middle = picture[len(picture) // 2 :][:200]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Stack, "rewrite_without_deleted", stop)
        forget(ward.key(number))
    assert holding(ward.key(number)) == [] and middle in on_disk()
    done = forget(ward.key(number))
    assert (done["releases"], done["purged"], done["left"]) == ([], [], []) and middle not in on_disk()


def on_disk() -> bytes:
    """What the store's files hold."""
    return b"".join(path.read_bytes() for path in (get_settings().state_dir / "s3").rglob("*") if path.is_file())


def test_who_lay_beside_a_forgotten_patient_is_unchanged_and_stays(s3, request, tmp_path):
    """A shard gives labels back with their keys in order, also within labels."""
    annals = Ward(tmp_path)
    annals.name, annals.count = "annals", 900
    request.addfinalizer(lambda: taken_in.remove(annals.name, corpus_store()))
    annals.more(3, labels={"scan": {"site": "north", "device": "a"}})
    before = release()
    after = forget(annals.key(900), purge=False)["release"]
    annals.take_in()
    assert annals.record["samples"]["kept"] == 4 and annals.forgotten() == 2
    changes = [history.diff(*tags) for tags in ((before, after), (after, release()))]
    assert [(changed["removed"], changed["edited"]) for changed in changes] == [(2, 0), (0, 0)]


def test_who_saw_the_patient_and_the_patients_beside_is_told_after_a_purge(ward):
    ward.more(1)
    release()
    saw = [r["tag"] for r in history.trace(patient=ward.key(1))["releases"]]
    beside = history.trace(patient=ward.key(2))["releases"]
    held = {entry.id: entry for entry in open_release(saw[-1]).index}
    done = forget(ward.key(1))
    assert {entry.id: entry for entry in open_release(saw[-1]).index} == {name: entry for name, entry in held.items() if not name.startswith(f"{ward.name}/1-")}
    assert [(r["tag"], r["splits"], r["samples"]) for r in history.trace(patient=ward.key(1))["releases"]] == [(tag, ["val"], []) for tag in saw]
    assert history.trace(patient=ward.key(2))["releases"][:-1] == beside
    assert history.trace(f"{ward.name}/2-0")["releases"][-1]["tag"] == done["release"] not in saw
    assert [r["tag"] for r in forget(ward.key(2))["releases"]] == [*saw, done["release"]]
    assert holding(ward.key(2)) == []
    with pytest.raises(LookupError, match="was purged"):
        history.diff(saw[0], done["release"])


@pytest.mark.parametrize("number, owner, point", [(3, forgetting, "make_release"), (4, forgetting, "_mark"), (5, ObjectStore, "delete")])
def test_stopped_anywhere_the_same_command_completes_it(ward, monkeypatch, number, owner, point):
    saw = [r["tag"] for r in history.trace(patient=ward.key(number))["releases"]]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, point, stop)
        forget(ward.key(number))
    done = forget(ward.key(number))
    assert done["release"] not in saw and [r["tag"] for r in done["releases"]] == saw
    assert holding(ward.key(number)) == [] and all_releases(corpus_store())[-1]["tag"] == done["release"]
    assert "purged" not in all_releases(corpus_store())[-1]


def test_of_two_purges_at_once_the_second_waits_for_the_first(ward, monkeypatch):
    """It would meet with objects that are deleted under its hands."""
    first, second = ward.more(2) - 1, ward.count - 1
    release()
    plain, other, begun = forgetting._purge, ThreadPoolExecutor(1), []

    def beside(*arguments):
        monkeypatch.setattr(forgetting, "_purge", plain)
        begun.append(other.submit(forget, ward.key(second)))
        with pytest.raises(TimeoutError):
            begun[0].result(timeout=2)
        return plain(*arguments)

    monkeypatch.setattr(forgetting, "_purge", beside)
    forget(ward.key(first))
    assert begun[0].result(timeout=120)["purged"] and holding(ward.key(first), ward.key(second)) == []


def test_a_purge_under_whose_hands_something_is_deleted_is_told_to_be_run_again(ward, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(forgetting.StillThere, match="run this one again"):
        patched.setattr(forgetting, "_unrecorded", lambda patient, store: store.get("dvc/gone"))
        forget(ward.key(17))
    forget(ward.key(17))
    assert holding(ward.key(17)) == []


@pytest.mark.parametrize("number, other, point", [(13, 14, "_mark"), (15, 16, "_untold")])
def test_of_two_purges_at_once_one_is_told_to_be_run_again(ward, monkeypatch, number, other, point):
    """Both change the indexes of the same shards, and the records that name them; one lost its lease, as after a long pause."""
    monkeypatch.setattr(forgetting, "Lease", lambda *named, **how: nullcontext())
    saw = [[r["tag"] for r in history.trace(patient=ward.key(n))["releases"]] for n in (number, other)]
    plain = getattr(forgetting, point)

    def beside(*arguments):
        monkeypatch.undo()
        forget(ward.key(other))
        return plain(*arguments)

    monkeypatch.setattr(forgetting, point, beside)
    with pytest.raises(forgetting.StillThere, match="run this one again"):
        forget(ward.key(number))
    forget(ward.key(number))
    assert holding(ward.key(number), ward.key(other)) == []
    assert [[r["tag"] for r in history.trace(patient=ward.key(n))["releases"]][: len(tags)] for n, tags in zip((number, other), saw)] == saw


def test_a_release_that_was_under_way_is_purged_as_well(ward, monkeypatch):
    ward.more(1)
    begun = releases._inputs(corpus_store(), get_settings())

    def beside(**named) -> dict:
        """Another release, begun before the patient was forgotten, ends first."""
        with monkeypatch.context() as patched:
            patched.setattr(releases, "_inputs", lambda *_: begun)
            make_release(force=True, on_line=quiet, wait_s=0)
        return make_release(**named)

    monkeypatch.setattr(forgetting, "make_release", beside)
    done = forget(ward.key(9))
    tags = [r["tag"] for r in all_releases(corpus_store())]
    assert done["release"] == tags[-1] and done["releases"][-1]["tag"] == tags[-2]
    assert holding(ward.key(9)) == [] and "purged" in all_releases(corpus_store())[-2]


def test_pictures_that_did_not_count_are_purged_as_well(ward):
    copy = ward.key(ward.more(2, copy_of=8))
    release()
    assert history.seen(patient={copy})["releases"] == [] and any(key.startswith("dvc/") for key in holding(copy))
    forget(copy)
    assert holding(copy) == []


def test_what_a_release_left_that_came_to_nothing_is_purged_as_well(ward, monkeypatch):
    last = ward.key(ward.more(1))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("infra.corpus_repo.CorpusRepo.commit_and_tag", stop)
        release()
    assert any(key.startswith("dvc/") for key in holding(last))
    assert forget(last)["releases"] == [] and holding(last) == []


def test_what_a_release_left_in_the_clone_is_purged_as_well(ward, monkeypatch):
    last = ward.key(ward.more(1))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("infra.corpus_repo.CorpusRepo.push", stop)
        release()
    assert not any(key.startswith("dvc/") for key in holding(last))
    assert {path.parts[0] for path in held_here(last)} == {".dvc", "data"}
    forget(last)
    assert holding(last) == [] and held_here(last) == []


def test_what_a_reader_that_was_killed_left_in_the_cache_is_purged_as_well(ward):
    last = ward.key(ward.more(1))
    release()
    md5 = next(key for key in holding(last) if key.startswith("dvc/")).removeprefix("dvc/files/md5/").replace("/", "")
    torn = get_settings().state_dir / "cache" / "shards" / f".{md5}.arrow.x1y2"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"ARROW1")
    forget(last)
    assert not torn.exists()


def test_a_purge_that_finds_files_of_this_machine_alone_deletes_them(ward):
    last = ward.key(ward.more(1))
    kept = next(path for path in held_here(ward.key(10)) if path.name.endswith(".index.parquet"))
    release()
    data = next(corpus_store().get(key) for key in holding(last) if key.endswith(".index.parquet"))
    forget(last)
    brought = CorpusRepo().path / ".dvc" / "cache" / "files" / "md5" / "00" / "0"
    brought.parent.mkdir(exist_ok=True)
    brought.write_bytes(data)
    assert forget(last)["purged"] == [] and held_here(last) == [] and (CorpusRepo().path / kept).exists()


def test_a_reading_that_was_interrupted_brings_nobody_back(ward, monkeypatch):
    before = ward.forgotten()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(taken_in, "publish", stop)
        ward.more(2)
    last = ward.key(ward.count - 1)
    assert holding(last)
    forget(last, purge=False)
    ward.take_in()
    kept = ward.record["samples"]["kept"]
    assert ward.forgotten() >= before + 2
    forget(last)
    assert holding(last) == []
    ward.more(1)
    assert ward.record["samples"]["kept"] == kept + 2


def test_a_patient_who_is_forgotten_while_the_source_is_read_is_not_let_in(ward, monkeypatch):
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        during_the_next_reading(monkeypatch, lambda: forget(ward.key(6), purge=False))
        ward.more(1)
    ward.take_in()
    release()
    assert history.trace(patient=ward.key(6))["releases"][-1]["tag"] != all_releases(corpus_store())[-1]["tag"]


def test_what_a_reading_writes_of_a_patient_who_is_purged_meanwhile_does_not_stay(ward, monkeypatch):
    number = ward.more(1)
    release()
    records = ward.folder / "records.jsonl"
    for caption, written in (("CT image", "CT image, read again:"), (f"CT image, read again: {number} 1", f"MRI of the head {number} 1")):
        records.write_text(records.read_text().replace(caption, written))
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        purge_during_the_next_reading(monkeypatch, ward.key(number))
        ward.take_in()
    assert holding(ward.key(number)) == []
    ward.take_in()
    assert ward.forgotten() and holding(ward.key(number)) == []


def test_what_a_reading_wrote_that_was_killed_after_a_purge_goes_with_the_next(ward, monkeypatch):
    """Shards of the source, some without their index yet, and those that wait for a person."""
    number, records = ward.more(1), ward.folder / "records.jsonl"
    records.write_text(records.read_text().replace(f"CT image {number} 0", f"CT image, read again: {number}").replace(f"CT image {number} 1", "MRI of the head"))
    plain = quality.examine_all

    def after_a_purge(*arguments):
        patched.setattr(quality, "examine_all", plain)
        forget(ward.key(number))
        return plain(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(quality, "examine_all", after_a_purge)
        patched.setattr(reading.Reading, "require_nobody_forgotten", stop)
        ward.take_in()
    left = holding(ward.key(number))
    assert {key.partition("/")[0] for key in left} == {"held", "intake"}
    corpus_store().delete(next(key for key in left if key.startswith("intake/") and key.endswith(".index.parquet")))
    ward.take_in()
    assert holding(ward.key(number)) == []


def test_who_is_forgotten_between_the_last_look_and_the_publishing_of_a_source_does_not_stay_in_it(ward, monkeypatch):
    number, plain = ward.count, taken_in.publish

    def after_a_purge(*arguments):
        monkeypatch.undo()
        forget(ward.key(number))
        return plain(*arguments)

    before = taken_in.current(corpus_store(), ward.name)
    monkeypatch.setattr(taken_in, "publish", after_a_purge)
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        ward.more(1)
    assert taken_in.current(corpus_store(), ward.name) == before and holding(ward.key(number)) == []
    ward.take_in()
    assert ward.forgotten() and holding(ward.key(number)) == []


def test_a_source_that_is_removed_while_a_patient_is_forgotten_is_passed_over(s3):
    assert forgotten.without_patient("removed", {"0123456789abcdef0123"}, CorpusParams(), corpus_store()) == ({}, 0)


def test_a_reading_whose_shards_are_purged_meanwhile_is_told_to_be_run_again(ward, monkeypatch):
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        purge_during_the_next_reading(monkeypatch, ward.key(12))
        ward.more(1)
    ward.take_in()
    assert holding(ward.key(12)) == [] and holding(ward.key(ward.count - 1))


def purge_during_the_next_reading(monkeypatch, patient: str) -> None:
    """Have a patient purged when the source's shards are known and nothing is written yet."""
    plain = quality.examine_all

    def after_a_purge(*arguments):
        monkeypatch.undo()
        forget(patient)
        return plain(*arguments)

    monkeypatch.setattr(quality, "examine_all", after_a_purge)


def test_of_two_readings_at_once_none_is_lost(ward, monkeypatch):
    with pytest.raises(taken_in.SourceConflict, match="run this one again"):
        during_the_next_reading(monkeypatch, lambda: ward.more(2))
        ward.more(1)
    assert next(s for s in taken_in.sources(corpus_store()) if s["name"] == ward.name)["samples"] == ward.record["samples"]


def during_the_next_reading(monkeypatch, work) -> None:
    """Have this done when the source was read and is not yet recorded."""
    plain = taken_in.settled

    def meanwhile(*arguments):
        made = plain(*arguments)
        monkeypatch.undo()
        work()
        return made

    monkeypatch.setattr(taken_in, "settled", meanwhile)


def test_what_a_release_would_be_refused_for_does_not_keep_the_patient(ward, monkeypatch, tmp_path):
    params = yaml.safe_load(get_settings().params_file.read_text())
    params["corpus"]["expectations"] = {"min_per_split": 10_000}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(get_settings(), "params_file", tmp_path / "params.yaml")
    ward.more(1)
    with pytest.raises(RepositoryError, match="breaks 1 of"):
        release()
    lines: list[str] = []
    done = forgetting.forget(ward.key(11), True, lambda tags: True, lines.append)
    assert holding(ward.key(11)) == [] and any(f"{done['release']} breaks 1 of" in line for line in lines)
    ward.more(1)
    with pytest.raises(RepositoryError, match="breaks 1 of"):
        release()


@pytest.mark.parametrize("known, column", [({"patient": "one"}, "splits_of_patient"), ({"license": "my own"}, "license")])
def test_a_licence_or_leak_is_refused_whatever_is_enforced(known, column):
    samples = [index.row(s) for n in range(2) for s in quality.examine(record(n, split=SPLITS[n + 1]), CorpusParams().quality, b"salt")]
    table = index.read(index.to_bytes([row | known for row in samples]), "all")
    params = CorpusParams.model_validate({"expectations": {"enforced": "safety"}})
    with pytest.raises(expectations.ReleaseRejected, match=column):
        expectations.require(expectations.validate(table, params))


@pytest.mark.parametrize("given", [["Doe 0"], ["Doe 0", "--source", ""], ["0123456789ABCDEF0123"], [""], [" ", "--source", "ward"]])
def test_what_is_no_key_is_not_taken_for_one(given):
    """It would be kept as it stands."""
    told = CliRunner().invoke(app, ["forget", *given])
    assert told.exit_code == 2 and "key" in told.output


def test_an_identifier_is_known_however_it_is_written(ward, monkeypatch):
    monkeypatch.setattr("flows.console.needs_stack", lambda: None)
    ward.more(1, patient="J\u00f6rg  Doe")
    assert holding(named(ward, "J\u00f6rg Doe"))
    done = CliRunner().invoke(app, ["forget", " Jo\u0308rg Doe ", "--source", ward.name, "--purge", "--yes"])
    assert done.exit_code == 0 and holding(named(ward, "J\u00f6rg Doe")) == []
    assert patient_key(b"salt", "made", "Jane Doe 8") == "796ccb030e77189870c4", "keys stay what they were"


def test_a_patient_of_a_built_in_source_is_told(ward):
    built_in = history.trace("unimed-mini/CT-0000-0")["releases"][0]["patients"][0]
    with pytest.raises(forgetting.StillThere, match="sources.yaml"):
        forget(built_in)
    assert not any(built_in in str(r.get("purged")) for r in all_releases(corpus_store()))


def test_a_patient_nobody_knows_is_told_and_kept_aside_all_the_same(ward):
    with pytest.raises(LookupError, match="no source and no release holds"):
        forget(ward.key(ward.count))
    ward.take_in()
    before = ward.forgotten()
    ward.more(1)
    assert ward.forgotten() == before + 2


def test_who_is_forgotten_as_one_of_a_group_does_not_come_back_with_another(ward):
    """The group's key, that of the first by name, changes with each patient who comes before."""
    keys = [named(ward, name) for name in ("Adams", "Baker", "Clark")]
    ward.more(1, patient="Clark", group="twins")
    release()
    ward.more(1, patient="Baker", group="twins")
    release()
    assert holding(keys[1]) and holding(keys[2])
    done = forget(keys[2])
    assert done["linked"] == [keys[1]] and {r["patients"][0] for r in done["releases"]} == {*keys[1:]}
    assert holding(*keys) == [] and held_here(*keys) == []
    kept = ward.record["samples"]["kept"]
    ward.more(1, patient="Adams", group="twins")
    assert holding(*keys) == [] and ward.record["samples"]["kept"] <= kept
    ward.take_in()
    assert ward.record["how"] == "up to date"


def test_one_of_a_group_is_known_by_any_name_also_after_leaving_the_source(ward):
    before = (ward.folder / "records.jsonl").read_text()
    ward.more(2, group="family")
    first, second = (ward.key(ward.count - number) for number in (2, 1))
    release()
    (ward.folder / "records.jsonl").write_text(before)
    ward.take_in()
    assert holding(first) and not holding(second)
    done = forget(second)
    assert done["linked"] == [first] and done["purged"] and not holding(first)


def test_what_a_person_said_of_the_patient_is_purged_as_well(ward):
    """But not what was said of a record that was the patient's and is another's by now."""
    number = ward.more(1)
    corrected = ward.more(1, patient=f"Doe {number}")
    lines = (ward.folder / "records.jsonl").read_text().splitlines()
    release()
    (ward.folder / "records.jsonl").write_text("\n".join(line.replace(f'"Doe {number}"', f'"Doe {corrected}"') if f'"{corrected}-' in line else line for line in lines) + "\n")
    ward.take_in()
    release()
    for record_id, accept in ((f"{number}-0", True), (f"{number}-1", False), (f"{corrected}-0", False)):
        desk = review.Review()
        desk.decide(desk.case(f"{ward.name}/{record_id}"), accept, "anna", f"about {record_id}", False)
    release()
    assert len(saying(f"about {number}-")) > 2
    forget(ward.key(number))
    assert saying(f"about {number}-") == [] and len(saying(f"about {corrected}-0")) > 1
    assert make_release(force=False, on_line=quiet)["how"] == "up to date"


def test_what_a_person_said_of_the_patient_is_purged_also_after_who_lay_beside(ward):
    """The shards that told of which records it was are gone by then."""
    numbers = ward.more(2) - 1, ward.count - 1
    release()
    desk = review.Review()
    desk.decide(desk.case(f"{ward.name}/{numbers[0]}-0"), False, "anna", f"about {numbers[0]}-0", False)
    release()
    forget(ward.key(numbers[0]), purge=False)
    assert saying(f"about {numbers[0]}-")
    for number in reversed(numbers):
        forget(ward.key(number))
    assert saying(f"about {numbers[0]}-") == []


def test_what_a_person_said_of_a_record_that_left_its_source_is_purged_after_who_lay_beside(ward):
    """Nothing but the decision tells whose record it was."""
    before = (ward.folder / "records.jsonl").read_text()
    number = ward.more(2) - 1
    release()
    desk = review.Review()
    desk.decide(desk.case(f"{ward.name}/{number}-0"), False, "anna", f"about {number}-0", False)
    (ward.folder / "records.jsonl").write_text(before)
    ward.take_in()
    forget(ward.key(number + 1))
    assert saying(f"about {number}-")
    forget(ward.key(number))
    assert saying(f"about {number}-") == []


def saying(words: str) -> list[str]:
    """Keys of the decisions and pins that say this."""
    return [entry.key for entry in corpus_store().list("review/") if words.encode() in corpus_store().get(entry.key)]
