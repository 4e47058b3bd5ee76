"""The local stack where things are in its way: other programs, another `up`, damaged records."""

import os
import socket
import threading
import time

import psutil
import pytest

from infra.settings import Settings, get_settings
from infra.stack import Stack, StackError
from infra.store import ObjectStore


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A state folder of its own, without what other stacks have told this process."""
    for name in [name for name in os.environ if name.startswith("UNIMED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNIMED_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    yield tmp_path
    Stack().down()
    monkeypatch.undo()
    get_settings.cache_clear()


def s3() -> ObjectStore:
    settings = get_settings()
    return ObjectStore(settings.bucket_logs, settings)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_port_that_another_program_took_meanwhile_is_given_up(alone):
    Stack().up(services=["s3"])
    before = get_settings()
    s3().put("kept", b"here")
    Stack().down()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(before.s3_endpoint.rpartition(":")[2])))
        other.listen()
        Stack().up(services=["s3"])
        after = get_settings()
        assert after.s3_endpoint != before.s3_endpoint and after.s3_secret_key == before.s3_secret_key
        assert s3().get("kept") == b"here"


def test_ports_that_are_not_known_any_more_are_chosen_anew(alone):
    Stack().up(services=["s3"])
    before = get_settings()
    s3().put("kept", b"here")
    Stack().down()
    with open(before.state_dir / "stack.env", "a") as file:
        file.write("\n# a note\n")
    for damage in (lambda file: file.write_text("{"), lambda file: file.unlink()):
        damage(before.state_dir / "ports.json")
        Stack().up(services=["s3"])
        assert get_settings().patient_salt == before.patient_salt and s3().get("kept") == b"here"
        Stack().down()


def test_another_program_is_not_taken_for_a_service_beside_those_that_run(alone):
    Stack().up(services=["s3"])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(get_settings().ray_dashboard_url.rpartition(":")[2])))
        other.listen()
        with pytest.raises(StackError, match="another program has port"):
            Stack()._require_ports("ray", seconds=0.5)


@pytest.mark.parametrize("died", ["raylet", "ray", "gcs_server"])
def test_a_cluster_that_lost_a_part_is_started_anew_at_once(alone, died):
    Stack().up(services=["ray"])
    cluster = Stack()._process("ray")
    # Its agents, which are up a little later, write a title over what they carry.
    while not {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= {child.name() for child in cluster.children(recursive=True)}:
        time.sleep(0.05)
    killed = cluster if died == "ray" else next(child for child in cluster.children() if child.name() == died)
    killed.kill()
    # A signal takes a moment on a busy machine; where the GCS has died, Ray itself ends the rest, but for its agents.
    while is_alive(killed) or (died == "gcs_server" and is_alive(cluster)):
        time.sleep(0.05)
    told: list[str] = []
    Stack().up(told.append, services=["ray"])
    assert told[0].startswith("ray started")
    anew = Stack()._process("ray")
    assert anew.pid != cluster.pid and {"raylet", "gcs_server"} <= {child.name() for child in anew.children() if is_alive(child)}
    # What it starts knows which cluster it is in, also on a machine with several.
    assert anew.environ()["RAY_ADDRESS"] == get_settings().ray_address


def test_two_that_start_a_stack_at_once_start_it_once(alone):
    told: list[str] = []
    both = [threading.Thread(target=lambda: Stack().up(told.append, services=["s3"])) for _ in range(2)]
    [thread.start() for thread in both]
    [thread.join() for thread in both]
    assert sorted(line.split(" in ")[0] for line in told if "waiting" not in line) == ["s3 is up", "s3 started"]


def test_a_damaged_record_of_a_process_is_none(alone):
    stack = Stack()
    stack.pids.mkdir(parents=True)
    for content in ("", "[]", '{"pid": "x", "started": ""}'):
        (stack.pids / "s3.json").write_text(content)
        assert not any(service.running for service in stack.status())


def test_a_state_folder_that_cannot_be_is_told(alone, monkeypatch):
    (alone / "file").write_text("")
    monkeypatch.setenv("UNIMED_STATE_DIR", str(alone / "file"))
    get_settings.cache_clear()
    with pytest.raises(StackError, match="state folder"):
        Stack().up()
    monkeypatch.setenv("UNIMED_STATE_DIR", str(alone / "state"))
    get_settings.cache_clear()


def test_a_state_folder_named_in_dotenv_is_where_the_addresses_are(alone, monkeypatch):
    monkeypatch.delenv("UNIMED_STATE_DIR")
    monkeypatch.chdir(alone)
    (alone / ".env").write_text("UNIMED_STATE_DIR=elsewhere\n")
    (alone / "elsewhere").mkdir()
    (alone / "elsewhere" / "stack.env").write_text("UNIMED_SERVE_URL=http://127.0.0.1:1\n")
    settings = Settings()
    assert settings.state_dir == alone / "elsewhere" and settings.serve_url == "http://127.0.0.1:1"
    (alone / ".env").unlink()
