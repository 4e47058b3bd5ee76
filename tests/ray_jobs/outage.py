"""An object store that can be cut off: the real one behind a port that this closes and opens again. And a disk that is full."""

import resource
import socket
import threading
from contextlib import contextmanager, suppress

from infra.settings import Settings
from infra.store import ObjectStore


class Wire:
    """Forwards a port of its own to the store until it is cut."""

    def __init__(self, settings: Settings):
        self.target = settings.s3_endpoint.rpartition("/")[2].split(":")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.settings = settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{self.port}"})
        self._joined: list[socket.socket] = []
        self.mend()

    def store(self) -> ObjectStore:
        return ObjectStore(self.settings.bucket_logs, self.settings)

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for joined in [self._listener, *self._joined]:
            with suppress(OSError):
                joined.shutdown(socket.SHUT_RDWR)
            joined.close()
        self._joined.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((self.target[0], int(self.target[1])))
                self._joined += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_forward, args=(one, other), daemon=True).start()


def _forward(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


@contextmanager
def files_at_most(size: int):
    """No file may grow beyond `size`: the system refuses the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
