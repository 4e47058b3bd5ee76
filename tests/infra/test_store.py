"""Conditional writes, the registry and the lease on a real object store."""

import subprocess
import sys
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.lease import Lease, LeaseHeld
from infra.registry import AliasConflict, CorruptModel, ModelRegistry
from infra.settings import Settings
from infra.store import CorruptObject, MissingObject, ObjectStore, PreconditionFailed, StoreUnavailable, model_store


def folder(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    (path / "weights.txt").write_text(text)
    return path


def race(workers):
    """Run callables at once; returns how many won."""
    barrier, won = threading.Barrier(len(workers)), []

    def go(work):
        barrier.wait()
        try:
            won.append(work())
        except (PreconditionFailed, AliasConflict):
            pass

    threads = [threading.Thread(target=go, args=(work,)) for work in workers]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return len(won)


def test_of_many_conditional_writers_one_wins(s3):
    store = model_store()
    assert race([lambda i=i: store.put("race", str(i).encode(), if_absent=True) for i in range(8)]) == 1
    _, etag = store.get_with_etag("race")
    # Other words than before: who writes what is there already changes nothing, and the next one may win as well.
    assert race([lambda i=i: store.put("race", f"again {i}".encode(), if_match=etag) for i in range(8)]) == 1


def test_a_copy_is_of_that_very_object_or_none(s3):
    store = model_store()
    etag = store.put("whole", b"first")
    store.copy("whole", "copied", etag)
    store.put("whole", b"second")
    assert store.get("copied") == b"first"
    with pytest.raises(PreconditionFailed, match="whole"):
        store.copy("whole", "no copy", etag)
    with pytest.raises(MissingObject, match="nowhere"):
        store.copy("nowhere", "no copy", etag)
    assert not store.exists("no copy")


class Forgetful(BaseHTTPRequestHandler):
    """A way to the store that passes everything on, and answers the first write with an error, as when an answer is lost."""

    lost = False

    def _pass_on(self) -> None:
        onward = HTTPConnection("127.0.0.1", self.server.store_port, timeout=10)
        onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name != "Expect":
                onward.putheader(name, value)
        onward.endheaders(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        answer = onward.getresponse()
        text, status = answer.read(), answer.status
        if self.command == "PUT" and not Forgetful.lost:
            Forgetful.lost, text, status = True, b"", 500
        self.send_response(status)
        for name in ("ETag", "Content-Type"):
            self.send_header(name, answer.getheader(name, ""))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = _pass_on

    def log_message(self, *_) -> None:
        pass


def test_a_conditional_write_whose_answer_was_lost_has_won(s3):
    with ThreadingHTTPServer(("127.0.0.1", 0), Forgetful) as way:
        way.store_port = int(s3.s3_endpoint.rsplit(":", 1)[1])
        threading.Thread(target=way.serve_forever, daemon=True).start()
        store = ObjectStore(s3.bucket_models, s3.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{way.server_port}"}))
        assert store.put("answer", b"mine", if_absent=True) and Forgetful.lost
        with pytest.raises(PreconditionFailed):
            store.put("answer", b"other", if_absent=True)
        way.shutdown()
    assert model_store().get("answer") == b"mine"


def test_a_missing_object_and_wrong_credentials_are_told(s3):
    with pytest.raises(MissingObject, match="nowhere"):
        model_store().get("nowhere")
    stranger = Settings(s3_endpoint=s3.s3_endpoint, s3_access_key="x", s3_secret_key="y")
    with pytest.raises(StoreUnavailable, match="refuses"):
        ObjectStore(s3.bucket_models, stranger).get("race")


@pytest.mark.parametrize("content", [b"garbage", b'{"name": ', b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_record_is_named_with_its_mend(s3, tmp_path, content):
    from flows.releases import all_releases

    registry = ModelRegistry()
    version = registry.publish(folder(tmp_path, "a", "sound"), {}).id
    registry.add_record(version, "gate", {"verdict": "pass"})
    record = next(registry.store.list(f"versions/{version}/records/")).key
    readings = {
        f"versions/{version}/manifest.json": lambda: registry.get(version),
        record: lambda: registry.records(version, "gate"),
        "aliases/hurt.json": lambda: registry.resolve("hurt"),
        "releases/2020-01-01.1.json": lambda: all_releases(registry.store),
    }
    for key, reading in readings.items():
        registry.store.put(key, content)
        with pytest.raises(CorruptObject, match=f"'{key}' .* is damaged .* delete it"):
            reading()
        registry.store.delete(key)


@pytest.mark.parametrize("name", ["../x", "a/../b", "a\0b", "", "\ud800"])
def test_a_word_that_can_be_no_version_is_told(s3, name):
    with pytest.raises(MissingObject, match="unimed models list"):
        ModelRegistry().resolve(name)


def test_a_store_that_is_away_names_the_mend(s3):
    away = Settings(s3_endpoint="http://127.0.0.1:9", s3_access_key="x", s3_secret_key="y")
    with pytest.raises(StoreUnavailable, match="unimed up"):
        ObjectStore("b", away).get("k")


def test_publishing_twice_is_once_and_damage_is_found(s3, tmp_path):
    registry = ModelRegistry()
    first = registry.publish(folder(tmp_path, "a", "one"), {"reason": "test"})
    again = registry.publish(folder(tmp_path, "b", "one"), {"reason": "again"})
    assert again == first
    fetched = registry.fetch(first.id, tmp_path / "cache")
    assert (fetched / "weights.txt").read_text() == "one"
    (fetched / "weights.txt").write_text("tampered")
    assert (registry.fetch(first.id, tmp_path / "cache") / "weights.txt").read_text() == "one"
    registry.store.put(f"versions/{first.id}/weights.txt", b"tampered")
    with pytest.raises(CorruptModel, match="weights.txt"):
        registry.fetch(first.id, tmp_path / "other")


def test_what_a_killed_process_has_fetched_goes_with_the_next_attempt(s3, tmp_path):
    version = ModelRegistry().publish(folder(tmp_path, "k", "killed"), {}).id
    code = (
        "import os, signal, sys; from pathlib import Path; from infra.registry import ModelRegistry; from infra.store import ObjectStore\n"
        "real = ObjectStore.download_file\n"
        "ObjectStore.download_file = lambda *told: (real(*told), os.kill(os.getpid(), signal.SIGKILL))\n"
        "ModelRegistry().fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    assert subprocess.run([sys.executable, "-c", code, version, tmp_path / "cache"], timeout=60).returncode == -9
    fetched = ModelRegistry().fetch(version, tmp_path / "cache")
    assert [path.parent for path in (tmp_path / "cache").rglob("weights.txt")] == [fetched]


def test_two_promotions_cannot_both_win(s3, tmp_path):
    registry = ModelRegistry()
    a, b, c = (registry.publish(folder(tmp_path, n, f"race {n}"), {}).id for n in "abc")
    registry.move_alias("race", a, expected=None)
    assert race([lambda v=v: registry.move_alias("race", v, expected=a) for v in (b, c)]) == 1
    with pytest.raises(AliasConflict):
        registry.move_alias("race", b, expected=a)


def test_whoever_marks_the_same_candidate_at_once_has_marked_it(s3, tmp_path):
    registry = ModelRegistry()
    version = registry.publish(folder(tmp_path, "m", "marked"), {}).id
    assert race([lambda: registry.mark_candidate(version)] * 4) == 4
    assert registry.alias("candidate").version == version


def test_one_holder_of_a_lease_who_may_enter_again(s3):
    told = []
    with Lease("t", "me", ttl_s=30):
        with pytest.raises(LeaseHeld, match="holds it"):
            Lease("t", "you").__enter__()
        with pytest.raises(LeaseHeld):
            Lease("t", "you", wait_s=1.5, on_wait=told.append).__enter__()
        assert len(told) == 1 and "waiting" in told[0]
        with Lease("t", "me", ttl_s=30):
            pass
    with Lease("t", "you"):
        pass


def test_the_lease_of_a_dead_holder_runs_out(s3):
    import time

    model_store().put("leases/torn.json", b'{"holder": "go')
    with Lease("torn", "next"), pytest.raises(LeaseHeld, match="next"):
        Lease("torn", "third").__enter__()
    lease = Lease("dead", "gone", ttl_s=2)
    lease._write(lease._free())
    with pytest.raises(LeaseHeld):
        Lease("dead", "next").__enter__()
    time.sleep(2.2)
    with Lease("dead", "next"), pytest.raises(LeaseHeld, match="next"):
        Lease("dead", "third").__enter__()
