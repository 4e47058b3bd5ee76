"""How far a large file is, told every now and then."""

import threading
import time
from collections.abc import Callable


class ByteProgress:
    """Is told of bytes as they are done, from any thread, and says every `every_s` seconds how many of a file's there are."""

    def __init__(self, what: str, size: int, on_line: Callable[[str], None], every_s: float = 10.0):
        self.what, self.size, self.on_line, self.every_s = what, size, on_line, every_s
        self._done, self._lock = 0, threading.Lock()
        self._begun = self._told = time.monotonic()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told >= self.every_s:
                self._told = now
                self.on_line(f"{self.what}: {self._done / 1e9:.1f} of {self.size / 1e9:.1f} GB, {self._done / 1e6 / (now - self._begun):,.0f} MB/s")
