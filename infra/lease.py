"""A lease on S3: one holder at a time, freed by time when its holder dies."""

import threading
import time
from collections.abc import Callable

from infra.store import CorruptObject, MissingObject, ObjectStore, PreconditionFailed, model_store

OnWait = Callable[[str], None]


class LeaseHeld(RuntimeError):
    """Somebody else holds the lease."""


class Lease:
    """`with Lease("training", holder):` The same holder enters again at once, so a restarted run goes on.

    Args:
        holder: names the work (not the process): a run that was killed and started again is the same holder.
        ttl_s: how long the lease outlives a dead holder; a living one renews it every third of that.
        wait_s: how long to wait for another holder; `on_wait` is told about it every half minute.

    Raises:
        LeaseHeld: on entering, when another still holds it.
    """

    def __init__(self, name: str, holder: str, ttl_s: float = 90, wait_s: float = 0, on_wait: OnWait = lambda line: None, store: ObjectStore | None = None):
        self.key, self.holder, self.ttl_s = f"leases/{name}.json", holder, ttl_s
        self.wait_s, self.on_wait = wait_s, on_wait
        self.store = store or model_store()
        self._stop = threading.Event()

    def __enter__(self) -> "Lease":
        self._take()
        threading.Thread(target=self._renew, daemon=True, name=self.key).start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        current, etag = self._read()
        if current and current["holder"] == self.holder:
            try:
                self.store.put_json(self.key, {**current, "expires": 0}, if_match=etag)
            except PreconditionFailed:
                pass

    def _take(self) -> None:
        end, told = time.monotonic() + self.wait_s, 0.0
        while True:
            try:
                return self._write(self._free())
            except LeaseHeld as held:
                if time.monotonic() >= end:
                    raise
                if time.monotonic() - told > 30:
                    self.on_wait(f"waiting: {held}")
                    told = time.monotonic()
                time.sleep(1)

    def _free(self) -> str | None:
        """The etag of the lease that may be taken over, None where there is none yet. Raises LeaseHeld."""
        current, etag = self._read()
        if current and current["holder"] != self.holder and current["expires"] > time.time():
            left = current["expires"] - time.time()
            raise LeaseHeld(f"{self.key}: other work ({current['holder'][:12]}) holds it; if that died, it is free in {left:.0f} s")
        return etag

    def _read(self) -> tuple[dict | None, str | None]:
        try:
            return self.store.get_json_with_etag(self.key, ("holder", "expires"))
        except MissingObject:
            return None, None
        except CorruptObject:
            # Nobody can tell whose it is: it is free.
            return None, self.store.get_with_etag(self.key)[1]

    def _write(self, etag: str | None) -> None:
        record = {"holder": self.holder, "expires": time.time() + self.ttl_s}
        try:
            self.store.put_json(self.key, record, **({"if_match": etag} if etag else {"if_absent": True}))
        except PreconditionFailed:
            raise LeaseHeld(f"{self.key}: somebody else took it at the same moment; try again") from None

    def _renew(self) -> None:
        while not self._stop.wait(self.ttl_s / 3):
            try:
                self._write(self._free())
            except (LeaseHeld, OSError):
                # A store that is away for a moment must not end the work; the next turn tries again.
                continue
