"""The local stack: S3, Prefect and Ray on loopback, started once and remembered under the state folder."""

import fcntl
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.records import digest, write_atomic, write_json_atomic
from infra.settings import Settings, get_settings
from infra.store import ObjectStore

SERVICES = ("s3", "prefect", "ray", "worker")
PORTS = {"s3": ("s3", "master", "volume", "filer"), "prefect": ("prefect",), "ray": ("ray", "ray_client", "ray_agent", "dashboard", "serve")}
BIN = Path(sys.executable).parent
POOL = "local"
# Logical: the endpoint's replicas and router hold one together and idle most of the time, training asks
# for two, evaluation for one; on two cores the operating system shares them out.
RAY_CPUS = 6
# The resource that tells how many there are.
RAY_CORES = "cores"
RAY_OBJECT_STORE_BYTES = 300_000_000
# Without these there is no cluster.
RAY_PROCESSES = {"gcs_server", "raylet"}
# A variable by which a service's processes tell whose they are.
SERVICE = "UNIMED_SERVICE"

_LET_GO_S = 2.5
# Files whose share of deleted bytes is above it are written anew; at 0 those without any would be, too.
_ANY_GARBAGE = "0.000000000001"

OnStep = Callable[[str], None]


class StackError(RuntimeError):
    """A service did not start; the message names its log."""


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now."""

    name: str
    running: bool
    pid: int | None
    url: str
    log: str


class Stack:
    """Starts what is missing, stops what it started; every call may be repeated."""

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or get_settings()
        self.dir = self.settings.state_dir
        self.pids, self.logs = self.dir / "pids", self.dir / "logs"

    def up(self, on_step: OnStep = lambda line: None, services: Iterable[str] = SERVICES) -> None:
        """Start the services that do not run yet.

        Raises:
            StackError: a service did not come up; its log is named.
        """
        with self._alone(on_step):
            self.settings = self._remember()
            independent = [name for name in ("s3", "prefect", "ray") if name in services]
            with ThreadPoolExecutor() as pool:
                for name in pool.map(self._ensure, independent):
                    on_step(name)
            if "worker" in services:
                on_step(self._ensure("worker"))

    def down(self, on_step: OnStep = lambda line: None) -> None:
        """Stop everything this stack started."""
        with self._alone(on_step):
            for name in reversed(SERVICES):
                process = self._process(name)
                if process:
                    _stop_tree(process)
                    on_step(f"{name} stopped")
            _stop_all(self._strays())
            for name in SERVICES:
                (self.pids / f"{name}.json").unlink(missing_ok=True)
            # Ray keeps sockets and logs of a session outside of the state folder; the next start makes its own.
            shutil.rmtree(self._ray_dir, ignore_errors=True)

    def status(self) -> list[ServiceStatus]:
        """All services, running or not."""
        urls = {"s3": self.settings.s3_endpoint, "prefect": self.settings.prefect_ui_url, "ray": self.settings.ray_dashboard_url, "worker": ""}
        found = {name: self._process(name) for name in SERVICES}
        return [ServiceStatus(n, p is not None, p.pid if p else None, urls[n], str(self.logs / f"{n}.log")) for n, p in found.items()]

    def rewrite_without_deleted(self) -> bool:
        """Have this stack's S3 write those files anew in which something was deleted, which else stays on the disk until there is much of it; False if it could not.

        Of a store that this stack did not start, nothing is known.
        """
        if not self._process("s3"):
            return True
        # It lets go of a deleted object's parts in the background, about a second later.
        time.sleep(_LET_GO_S)
        try:
            _json_of(f"http://127.0.0.1:{self._ports['master']}/vol/vacuum?garbageThreshold={_ANY_GARBAGE}", timeout=3600)
            volumes = _json_of(f"http://127.0.0.1:{self._ports['volume']}/status")["Volumes"] or ()
        except OSError:
            return False
        return not any(volume["DeletedByteCount"] for volume in volumes)

    def is_up(self) -> bool:
        return all(status.running for status in self.status())

    @contextmanager
    def _alone(self, on_step: OnStep) -> Iterator[None]:
        """One `up` or `down` of a stack at a time; the operating system lets go of it when a process dies.

        Raises:
            StackError: the state folder cannot be made.
        """
        try:
            for folder in (self.dir, self.pids, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.dir / "stack.lock", "w")
        except OSError as error:
            raise StackError(f"the state folder {self.dir} cannot be used ({error.strerror}); name another with UNIMED_STATE_DIR") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_step("waiting for another `up` or `down` of this stack")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- addresses and credentials ---------------------------------------------------------------

    def _remember(self) -> Settings:
        """Choose ports and credentials at the first start; afterwards they stay, but for ports another program took while the stack was down, or that are not known any more."""
        path = self.dir / "stack.env"
        if not path.exists():
            write_atomic(self.dir / "ray_token", secrets.token_hex(32).encode(), mode=0o600)
            self._write_environment(
                S3_ACCESS_KEY=secrets.token_hex(10),
                S3_SECRET_KEY=secrets.token_urlsafe(30),
                API_KEY=f"sk-{secrets.token_urlsafe(24)}",
                PATIENT_SALT=secrets.token_hex(16),
            )
        elif not any(map(self._process, SERVICES)) and not self._has_free_ports():
            # People may have written into it: blank lines, notes.
            kept = dict(line.removeprefix("UNIMED_").split("=", 1) for line in path.read_text().splitlines() if line.startswith("UNIMED_") and "=" in line)
            self._write_environment(**kept)
        get_settings.cache_clear()
        return get_settings()

    def _write_environment(self, **kept: str) -> None:
        """`stack.env` with new ports, and what else it holds."""
        port = _free_ports()
        addresses = {
            "S3_ENDPOINT": f"http://127.0.0.1:{port['s3']}",
            "PREFECT_API_URL": f"http://127.0.0.1:{port['prefect']}/api",
            "RAY_ADDRESS": f"127.0.0.1:{port['ray']}",
            "RAY_DASHBOARD_URL": f"http://127.0.0.1:{port['dashboard']}",
            "SERVE_URL": f"http://127.0.0.1:{port['serve']}",
        }
        write_json_atomic(self.dir / "ports.json", port)
        write_atomic(self.dir / "stack.env", "".join(f"UNIMED_{k}={v}\n" for k, v in (kept | addresses).items()).encode(), mode=0o600)

    @property
    def _ports(self) -> dict[str, int]:
        return json.loads((self.dir / "ports.json").read_text())

    def _has_free_ports(self) -> bool:
        try:
            return _all_free(self._ports)
        except (OSError, ValueError):
            return False

    @property
    def _ray_dir(self) -> Path:
        # Unix socket paths end at 107 characters, so the session cannot live under a deep state folder.
        return Path("/tmp") / f"unimed-{digest(str(self.dir))[:8]}"

    # -- starting ---------------------------------------------------------------------------------

    def _ensure(self, name: str) -> str:
        if self._is_whole(name):
            return f"{name} is up"
        begun = time.perf_counter()
        if name == "ray":
            # What is left of a cluster that died keeps its ports for half a minute.
            _stop_all(self._strays(name))
        self._require_ports(name)
        getattr(self, f"_start_{name}")()
        return f"{name} started in {time.perf_counter() - begun:.1f} s"

    def _require_ports(self, name: str, seconds: float = 10) -> None:
        """Another program on a port would be taken for the service; one that is just ending is waited for."""
        end = time.monotonic() + seconds
        while taken := [port for key in PORTS.get(name, ()) if not _is_free(port := self._ports[key])]:
            if time.monotonic() > end:
                numbers = ", ".join(map(str, taken))
                raise StackError(f"{name} cannot start: another program has port {numbers}; end it, or let the stack take others with `unimed down` and `unimed up`")
            time.sleep(0.2)

    def _start_s3(self) -> None:
        port, data = self._ports, self.dir / "s3"
        data.mkdir(exist_ok=True)
        key = {"accessKey": self.settings.s3_access_key, "secretKey": self.settings.s3_secret_key.get_secret_value()}
        identity = {"name": "admin", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        write_atomic(self.dir / "s3.json", json.dumps({"identities": [identity]}).encode(), mode=0o600)
        command = [BIN / "weed", f"-logdir={self.logs}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        command += [f"-s3.config={self.dir / 's3.json'}", f"-s3.port={port['s3']}", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-master.port={port['master']}", f"-volume.port={port['volume']}", f"-filer.port={port['filer']}"]
        self._spawn("s3", command)
        for bucket in self.settings.buckets:
            self._until("s3", lambda b=bucket: _takes_writes(ObjectStore(b, self.settings)), 60)

    def _start_prefect(self) -> None:
        port = self._ports["prefect"]
        url = self.settings.prefect_api_url
        server = {"PREFECT_UI_API_URL": url, "PREFECT_SERVER_UI_API_URL": url, "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
        self._spawn("prefect", [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"], server)
        self._until("prefect", lambda: _answers(f"{url}/health"), 180)

    def _start_ray(self) -> None:
        port = self._ports
        command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port['ray']}", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={port['dashboard']}", f"--num-cpus={RAY_CPUS}", "--num-gpus=0", f"--object-store-memory={RAY_OBJECT_STORE_BYTES}"]
        command += [f"--resources={json.dumps({RAY_CORES: len(os.sched_getaffinity(0))})}"]
        command += [f"--temp-dir={self._ray_dir}", "--disable-usage-stats", f"--ray-client-server-port={port['ray_client']}"]
        command += [f"--dashboard-agent-listen-port={port['ray_agent']}"]
        # Its own actors ask which cluster they are in, and find no answer where the machine has two.
        self._spawn("ray", command, {"RAY_ADDRESS": self.settings.ray_address})
        token = (self.dir / "ray_token").read_text()
        self._until("ray", lambda: self._is_whole("ray") and _answers(f"{self.settings.ray_dashboard_url}/api/jobs/", {"Authorization": f"Bearer {token}"}), 180)

    def _start_worker(self) -> None:
        """A process worker that runs the deployments of prefect.yaml."""
        environment = self._environment()
        for command in (
            ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
            ["deploy", "--all", "--prefect-file", "prefect.yaml"],
        ):
            self._call("worker", ["prefect", "--no-prompt", *command], environment)
        self._spawn("worker", [BIN / "prefect", "worker", "start", "--pool", POOL, "--name", "unimed"])

    def _call(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with open(self.logs / f"{name}.log", "ab") as log:
            done = subprocess.run([BIN / command[0], *command[1:]], env=environment, cwd=self.settings.repo_dir, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode:
            raise StackError(f"`{' '.join(command)}` failed; see {self.logs / f'{name}.log'}")

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | self.settings.process_environment()
        environment["PATH"] = f"{BIN}{os.pathsep}{environment.get('PATH', '')}"
        # Workers find the packages of this checkout wherever they run.
        environment["PYTHONPATH"] = str(self.settings.repo_dir)
        return environment

    def _spawn(self, name: str, command: list, extra: dict[str, str] | None = None) -> None:
        with open(self.logs / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                [str(part) for part in command],
                env=self._environment() | {SERVICE: name} | (extra or {}),
                cwd=self.settings.repo_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        record = {"pid": child.pid, "started": _started(child.pid)}
        write_json_atomic(self.pids / f"{name}.json", record)

    def _until(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for `ready`, at most so many seconds, and no longer than the process lives."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if ready():
                    return
            except OSError:
                pass
            if not self._process(name):
                break
            time.sleep(0.1)
        raise StackError(f"{name} did not start; see {self.logs / f'{name}.log'}, then `unimed down` and `unimed up`")

    # -- finding and stopping -----------------------------------------------------------------------

    def _process(self, name: str) -> psutil.Process | None:
        """The service's process, if it lives and its pid was not taken over by another."""
        try:
            record = json.loads((self.pids / f"{name}.json").read_text())
            process = psutil.Process(record["pid"])
            alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            return process if alive and _started(process.pid) == record["started"] else None
        except (OSError, KeyError, ValueError, TypeError, psutil.Error):
            return None

    def _is_whole(self, name: str) -> bool:
        """Whether the service lives, and of Ray what it cannot be without: for half a minute its own process does not see that these died."""
        process = self._process(name)
        try:
            return bool(process) and (name != "ray" or {child.name() for child in process.children() if child.status() != psutil.STATUS_ZOMBIE} >= RAY_PROCESSES)
        except psutil.Error:
            return False

    def _strays(self, name: str | None = None) -> list[psutil.Process]:
        """Processes of this stack, or of one of its services, that outlived their parents, recognised by what they carry.

        Some of Ray's write a title over that; they are known by the session that their service began.
        """
        mine, own = [], {os.getpid(), *(p.pid for p in psutil.Process().parents())}
        sessions = {self._session(service) for service in ([name] if name else SERVICES)} - {None}
        for process in psutil.process_iter():
            try:
                carried = process.environ()
                carries = carried.get("UNIMED_STATE_DIR") == str(self.dir) and carried.get("UNIMED_S3_SECRET_KEY")
                if process.pid not in own and (carries and name in (None, carried.get(SERVICE)) or os.getsid(process.pid) in sessions):
                    mine.append(process)
            except (psutil.Error, OSError):
                continue
        return mine

    def _session(self, name: str) -> int | None:
        """The session that a service began. While one of it lives no other process gets its number, which is the service's."""
        try:
            record = json.loads((self.pids / f"{name}.json").read_text())
            pid, started = record["pid"], record["started"]
            its_own = _started(pid) == started if psutil.pid_exists(pid) else started.startswith(_boot())
            return pid if its_own else None
        except (OSError, KeyError, ValueError, TypeError, AttributeError):
            return None


def _stop_tree(process: psutil.Process) -> None:
    try:
        _stop_all([*process.children(recursive=True), process])
    except psutil.NoSuchProcess:
        pass


def _stop_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            pass
    _, stubborn = psutil.wait_procs(processes, timeout=8)
    for process in stubborn:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(stubborn, timeout=5)


def _started(pid: int) -> str:
    """When a process began: this boot and the clock ticks since. The time of day may be set anew while it runs."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{_boot()} {ticks}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _answers(url: str, headers: dict[str, str] | None = None) -> bool:
    from urllib.request import Request, urlopen

    with urlopen(Request(url, headers=headers or {}), timeout=2) as answer:
        return answer.status == 200


def _json_of(url: str, timeout: float = 30) -> dict:
    from urllib.request import urlopen

    with urlopen(url, timeout=timeout) as answer:
        return json.load(answer)


def _takes_writes(store: ObjectStore) -> bool:
    """Make the bucket, and write once: the first object of a bucket waits for room to be laid out for it."""
    store.create_bucket()
    store.put("ready", b"")
    store.delete("ready")
    return True


def _free_ports() -> dict[str, int]:
    """Distinct free ports, between those of Ray's workers (to 19999) and those the kernel gives to connections (from 32768)."""
    chosen: dict[str, int] = {}
    for names, first in ((PORTS["s3"], 20000 + secrets.randbelow(2700)), ((*PORTS["prefect"], *PORTS["ray"]), 23000 + secrets.randbelow(6900))):
        chosen |= zip(names, (port for port in itertools.count(first) if _all_free(dict.fromkeys(names, port))))
    return chosen


def _all_free(ports: dict[str, int]) -> bool:
    """Whether all are free, and those beside SeaweedFS's that it takes for gRPC: 10000 further on."""
    return all(_is_free(port) and (name not in PORTS["s3"] or _is_free(port + 10000)) for name, port in ports.items())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # What is left of connections of a service that has ended is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
