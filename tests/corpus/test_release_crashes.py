"""Releases that die half-way, lose their store, or are made twice at once: there is never half a release, and the same command completes it."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from boto3.s3.transfer import TransferConfig
from PIL import Image
from typer.testing import CliRunner

from corpus import taken_in
from flows import cli_data, console, history, releases
from flows.releases import ReleaseConflict, all_releases, make_release
from flows.review import Review, words
from infra.corpus_repo import OUT, CorpusRepo, object_key
from infra.lease import LeaseHeld
from infra.stack import Stack
from infra.store import ObjectStore, StoreUnavailable, corpus_store
from ray_jobs.ingest import add_source
from ray_jobs.releases import open_release

REPO = Path(__file__).resolve().parent.parent.parent


def quiet(line: str) -> None:
    pass


def release(wait_s: float = 0) -> dict:
    return make_release(force=False, on_line=quiet, wait_s=wait_s)


def tags() -> list[str]:
    return [record["tag"] for record in all_releases(corpus_store())]


@pytest.fixture(scope="module")
def clinic(s3, tmp_path_factory):
    """Call it with a number, of which the picture's name is made, to make the source a little different from before."""
    folder = tmp_path_factory.mktemp("wards")

    def change(number: int, name: str = "w{}") -> None:
        pixels = np.random.default_rng(number).integers(0, 255, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 70), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        with open(folder / "records.jsonl", "a") as lines:
            known = {"modality": "CT", "license": "CC0-1.0", "caption": f"CT image {number}."}
            lines.write(json.dumps({"id": name.format(number), "image": f"{number}.png"} | known) + "\n")
        add_source(folder, "wards")

    change(0)
    release()
    return change


def die(point: str, how: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tests.corpus.dying_release", point, how], cwd=REPO, capture_output=True, text=True, timeout=240)


def assert_whole(record: dict) -> None:
    """Everything the record names is on S3, the tag is git's, and DVC finds the clone as it should be."""
    store, repo = corpus_store(), CorpusRepo()
    assert all(store.exists(file["key"]) for file in [*record["shards"], record["removed"]]) and store.exists(record["data_docs_key"])
    assert repo.tags() == tags() and record["tag"] == tags()[-1]
    assert repo.commit() == record["corpus_commit"]


@pytest.mark.parametrize("number, point", enumerate(["half-built", "tagged"], start=1))
def test_a_killed_release_leaves_none_and_the_same_command_completes_it(clinic, number, point):
    if point == "half-built" and not CorpusRepo().runs_our_code("corpus", "infra", "ray_jobs"):
        pytest.skip("the checkout has changes that are not committed: `dvc repro` builds the release in another process")
    before = tags()
    clinic(number)
    died = die(point, "kill")
    assert died.returncode == -9, died.stderr[-2000:]
    assert tags() == before
    record = release()
    assert record["how"] == "released" and record["parent"] == before[-1]
    assert_whole(record)
    assert release()["how"] == "up to date"


@pytest.mark.slow
def test_a_release_that_loses_its_store_is_completed_when_it_is_back(clinic):
    before = tags()
    clinic(20)
    try:
        lost = die("half-pushed", "stop-s3")
        assert lost.returncode == 1 and "StoreUnavailable" in lost.stderr, lost.stderr[-2000:]
        with pytest.raises(StoreUnavailable, match="unimed up"):
            tags()
    finally:
        Stack().up(services=["s3"])
    assert tags() == before
    # The lease outlives a holder that could not give it back, but not for the same work.
    record = release()
    assert record["how"] == "released"
    assert_whole(record)


def test_of_two_at_once_one_wins_and_the_other_is_told(clinic):
    before = tags()
    clinic(40)

    def attempt(_) -> dict | Exception:
        try:
            return release()
        except (LeaseHeld, ReleaseConflict) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, range(2)))
    won = [o for o in outcomes if isinstance(o, dict)]
    assert len(won) == 1 and "run this one again" in str(next(o for o in outcomes if o not in won))
    assert tags() == [*before, won[0]["tag"]]
    assert release()["how"] == "up to date"


def test_a_release_that_was_overtaken_is_a_conflict_and_leaves_no_tag(clinic, monkeypatch):
    clinic(41)
    plain = CorpusRepo.commit_and_tag

    def overtaken(self, message, tag):
        plain(self, message, tag)
        # Another machine, whose lease ran out unnoticed, records the same tag first.
        corpus_store().put_json(f"releases/{tag.removeprefix('corpus/')}.json", all_releases(corpus_store())[-1] | {"tag": tag}, if_absent=True)

    monkeypatch.setattr(CorpusRepo, "commit_and_tag", overtaken)
    with pytest.raises(ReleaseConflict, match="run this one again"):
        release()
    monkeypatch.undo()
    assert tags()[-1] not in CorpusRepo().tags()
    record = release()
    assert record["how"] == "released" and int(record["tag"].rsplit(".")[-1]) == int(record["parent"].rsplit(".")[-1]) + 1


def test_dvc_agrees_with_a_release_in_a_fresh_clone(clinic, tmp_path):
    """The release is made without `dvc repro` and `dvc push`: DVC itself has to find all of it."""
    clinic(50)
    record, repo = release(), CorpusRepo()
    fresh = tmp_path / "fresh"
    subprocess.run(["git", "clone", "--quiet", "--branch", record["tag"], str(repo.path), str(fresh)], check=True, capture_output=True)
    (fresh / ".dvc" / "config.local").write_bytes((repo.path / ".dvc" / "config.local").read_bytes())
    pulled = subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=fresh, capture_output=True, text=True, timeout=120)
    assert pulled.returncode == 0, pulled.stderr
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=fresh, capture_output=True, text=True, timeout=120)
    assert "up to date" in status.stdout, status.stdout + status.stderr
    assert json.loads((fresh / "data/release/card.json").read_text()) == record["card"]


@pytest.fixture
def sent(monkeypatch):
    """Keys of what is uploaded from files."""
    keys, plain = [], ObjectStore.upload_file
    monkeypatch.setattr(ObjectStore, "upload_file", lambda self, path, key: keys.append(key) or plain(self, path, key))
    return keys


def record_key(record: dict) -> str:
    return f"releases/{record['tag'].removeprefix('corpus/')}.json"


def of_wards(record: dict) -> list[dict]:
    return [file for file in record["shards"] if file["path"].startswith("shards/wards/")]


def test_shards_that_the_store_has_are_copied_there(clinic, sent):
    before = of_wards(all_releases(corpus_store())[-1])
    clinic(60)
    new = [file for file in of_wards(release()) if file not in before]
    assert new and not {file["key"] for file in new} & set(sent)
    assert all(hashlib.md5(corpus_store().get(file["key"])).hexdigest() == file["md5"] for file in new)


def test_shards_that_the_store_cannot_vouch_for_are_sent(clinic, sent):
    clinic(61)
    store = corpus_store()
    shard = store.get_json("intake/wards.json")["shards"][-1]
    whole = store.get(shard["key"])
    # Written in pieces, an object has another etag than its hash.
    in_pieces = TransferConfig(multipart_threshold=1)
    store._client.upload_fileobj(io.BytesIO(whole), store.bucket, shard["key"], Config=in_pieces)
    record = release()
    file = next(file for file in record["shards"] if file["path"] == f"shards/{shard['shard']}.parquet")
    assert file["key"] in sent and store.get(file["key"]) == whole


def test_a_shard_that_was_damaged_in_the_clone_is_brought_again(clinic):
    file = next(file for file in of_wards(all_releases(corpus_store())[-1]) if ".index." not in file["path"])
    path = CorpusRepo().path / OUT / file["path"]
    whole = path.read_bytes()
    for number, damaged in ((70, whole[:-1] + b"?"), (71, whole[:100])):
        path.write_bytes(damaged)
        clinic(number)
        assert file in release()["shards"] and path.read_bytes() == whole


def test_what_is_not_committed_does_not_name_the_release(clinic, monkeypatch):
    clinic(80)
    plain = releases.source_fingerprint
    with monkeypatch.context() as edited:
        edited.setattr(releases, "source_fingerprint", lambda *packages, root=None: plain(*packages, root=root) if root else "edited")
        record = release()
        assert record["how"] == "released" and release()["how"] == "up to date"
    assert release() == record | {"how": "up to date"}


@pytest.fixture
def unimed(monkeypatch, capfd):
    """`unimed data` within this process: its exit code, and what it says."""
    monkeypatch.setattr(console, "needs_stack", lambda: None)

    def run(*arguments: str, answers: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(cli_data.app, arguments, input=answers)
        return done.exit_code, done.output + capfd.readouterr().out + str(done.exception)

    return run


def test_whatever_a_release_lacks_is_told(clinic, unimed):
    record, store = all_releases(corpus_store())[-1], corpus_store()
    listed = json.loads(store.get(object_key(record["dvc_hash"])))
    assert unimed("verify", "--json")[0] == 0 and unimed("verify", "")[0] == 1
    beside = {entry["relpath"]: object_key(entry["md5"]) for entry in listed if "/" not in entry["relpath"]} | {record["data_docs_key"]: record["data_docs_key"], "list of files": object_key(record["dvc_hash"])}
    assert len(beside) == 8
    for path, key in beside.items():
        whole = store.get(key)
        store.delete(key)
        code, told = unimed("verify")
        assert code == 1 and path in told.partition("damaged or missing: ")[2]
        store.put(key, whole)
    assert unimed("verify")[0] == 0


def test_a_shard_that_was_released_damaged_is_told_by_its_name(clinic, unimed):
    record, store = all_releases(corpus_store())[-1], corpus_store()
    at, file = next((at, file) for at, file in enumerate(record["shards"]) if file in of_wards(record) and ".index." not in file["path"])
    other = store.get(file["key"])[:-1] + b"?"
    md5 = hashlib.md5(other).hexdigest()
    store.put(object_key(md5), other)
    wrong = record["shards"][:at] + [file | {"md5": md5, "key": object_key(md5)}] + record["shards"][at + 1 :]
    store.put_json(record_key(record), record | {"shards": wrong})
    assert json.loads(unimed("verify", "--json")[1].rpartition("}")[0] + "}")["damaged"] == [file["path"]]
    store.put_json(record_key(record), record)
    store.delete(object_key(md5))


def test_a_purged_release_says_so_where_a_shard_is_needed_that_is_gone(clinic):
    record, store = all_releases(corpus_store())[-1], corpus_store()
    path = next(file["path"] for file in of_wards(record) if ".index." not in file["path"])
    store.put_json(record_key(record), record | {"purged": {"at": "2026-01-02", "files": [path], "patients": {}}})
    reader = open_release(record["tag"])
    wards = set(reader.index.where(source="wards").tolist())
    gone = [n for n in wards if f"shards/{reader.shards[reader.index.shard[n]]}.parquet" == path]
    assert reader.load(next(n for n in range(len(reader.index)) if n not in wards)).source != "wards"
    with pytest.raises(OSError, match="was purged on 2026-01-02.*take a later one"):
        reader.load(gone[0])
    store.put_json(record_key(record), record)


def test_a_record_is_traced_by_its_whole_id(clinic, unimed):
    clinic(85, "w0#{}")
    tag = release()["tag"]
    for name in ("wards/w0", "wards/w0#85"):
        assert [r["samples"] for r in history.trace(name)["releases"] if r["tag"] == tag] == [[f"{name}#g"]]
    assert unimed("trace", "")[0] == unimed("trace", "--patient", "")[0] == 2


def test_decided_cases_make_room_for_others_in_the_queue(clinic):
    desk = Review()
    first, more = desk.queue(3), desk.queue(9)
    assert first == more[:3] and len(more) == 9
    for case in first:
        desk.decide(case, True, "anna", "", False)
    assert len(desk.queue(3)) == 3 and not [case for case in desk.queue(9) if case in first]


REVIEW = "import sys; from flows import cli, console; console.needs_stack = lambda: None; sys.argv = ['unimed', 'data', 'review']; cli.main()"


@pytest.mark.parametrize("ending", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_review_that_is_ended_leaves_no_picture(clinic, tmp_path, ending):
    desk = subprocess.Popen([sys.executable, "-c", REVIEW], cwd=REPO, env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    shown = next(line for line in desk.stdout if line.startswith(str(tmp_path)))
    assert Path(shown.strip()).is_file()
    desk.send_signal(ending)
    desk.communicate(timeout=60)
    assert desk.returncode and not list(tmp_path.iterdir())


def test_a_record_is_shown_and_decided_on_as_its_source_has_it_now(clinic, request, tmp_path):
    """Also where a shard that no source has any more is in the release, and where its samples lie in two shards."""
    request.addfinalizer(lambda: taken_in.remove("annals", corpus_store()))

    def told(picture: int, caption: str) -> None:
        Image.fromarray(np.random.default_rng(picture).integers(0, 255, (70, 70), dtype=np.uint8)).save(tmp_path / "one.png")
        one = {"id": "one", "image": "one.png", "modality": "CT", "license": "CC0-1.0", "caption": caption, "qa": [{"question": "Which is it?", "answer": "The first."}]}
        (tmp_path / "records.jsonl").write_text(json.dumps(one))
        add_source(tmp_path, "annals")

    told(600, "CT image.")
    assert release()["card"]["sources"]["annals"] == 2
    for picture in (600, 601):
        told(picture, f"CT image, read again at {picture}.")
        desk = Review()
        case = desk.case("annals/one")
        assert words(desk.samples(case)).splitlines() == ["Which is it? The first.", f"CT image, read again at {picture}."]
        assert desk.decide(case, False, "anna", "", False)["how"] == "decided"
        assert "annals" not in release()["card"]["sources"]
    taken_in.remove("annals", corpus_store())
    with pytest.raises(LookupError, match="neither kept nor held back"):
        Review().case("annals/one")


def test_a_source_that_was_removed_is_in_no_later_release(clinic, unimed, tmp_path):
    (tmp_path / "class").mkdir()
    Image.fromarray(np.random.default_rng(500).integers(0, 255, (70, 70), dtype=np.uint8)).save(tmp_path / "class" / "1.png")

    def add() -> dict:
        return add_source(tmp_path, "annex", modality="CT", license="CC0-1.0")

    before, first = add(), release()
    assert unimed("remove", "annex", answers="n\n")[0] == 1 and release()["how"] == "up to date"
    assert unimed("remove", "annex", "--yes")[0] == 0
    second = release()
    assert second["changed"] == {"annex": -first["card"]["sources"]["annex"]}
    for other in ("../annex", "clinic/journal"):
        assert "no source" in unimed("remove", other, "--yes")[1], "what is kept beside sources is none"
    for verb in ("remove", "show"):
        code, told = unimed(verb, "annex")
        assert code == 1 and "annex" in told and "unimed data list" in told
    assert add()["shards"] == before["shards"] and release()["card"] == first["card"]
    assert unimed("remove", "annex", "--yes", "--json")[0] == 0


def test_a_release_made_while_the_clock_was_ahead_is_followed_by_others(clinic, monkeypatch):
    clinic(90)
    with monkeypatch.context() as ahead:
        ahead.setattr(releases, "utc_now", lambda: "2099-01-01T00:00:00+00:00")
        first = release()
    assert first["tag"] == "corpus/2099-01-01.1" and release()["how"] == "up to date"
    clinic(91)
    second = release()
    assert (second["tag"], second["parent"]) == ("corpus/2099-01-01.2", first["tag"])
    assert tags()[-2:] == [first["tag"], second["tag"]] and release()["how"] == "up to date"
