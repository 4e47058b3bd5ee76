"""The loader's speed beside others': `python -m bench.loading`, and rows of bench/training.py.

All read the same JPEGs (384 to 512 px, 28 to 48 KB) once, from the same object store, with cold caches and two processes,
from shards of one size, and decode and resize them alike. Samples are of understanding, one question each, so that no
encoding by the VAE is in it. Ours also draws, tokenises and packs; samples count as read when they wait for a pack. What
differs from peer to peer is in bench/contestants.py, how to install them in bench/requirements.txt.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.contestants import PEERS, SHARD_BYTES
from bench.corpus import FEW, make_pictures, with_store
from bench.rows import Row, report

SOURCE, QUESTION, RANKS = "pictures", "What does this image show?", 2
SIDES = (384, 448, 512)
# Pictures of a whole run: starting is a thirtieth of it.
COUNT = 12_288
# The loops of this project, by the name of their contestant.
LOOPS = {"bare": "decode + resize loop in memory", "shortest": "shortest script that also reads from the store"}


def measure(quick: bool) -> list[Row]:
    """The rows alone."""
    with tempfile.TemporaryDirectory() as folder:
        count, repeats, corpus = (60, 1, FEW) if quick else (COUNT, 5, {"shards": {"target_bytes": SHARD_BYTES}})
        return with_store(Path(folder), lambda: loading(Path(folder), count, repeats, peers=not quick), corpus, ("s3", "ray"))


def loading(folder: Path, count: int, repeats: int, peers: bool) -> list[Row]:
    """The loader beside loops that do no more than decode and resize, and beside each peer that is installed and does not fail."""
    field = _Field(folder, count)
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *LOOPS, *(field.prepare() if peers else []))}
    for _ in range(repeats):
        for name in list(rates):
            try:
                rates[name].append(field.rate(name))
            except RuntimeError as error:
                if name not in PEERS:
                    raise
                print(f"{name} failed and is left out: {error}", file=sys.stderr)
                del rates[name]
    middle = {name: statistics.median(of) for name, of in rates.items()}
    row, mine = f"loader, {count:,} samples, {RANKS} workers", middle.pop("ours")
    return [Row(row, mine, "samples/s", LOOPS.get(name, name), rate, goal=0.9 if name in LOOPS else 1.0) for name, rate in middle.items()]


class _Field:
    """The pictures, in a release and as every peer wants them, and who reads them."""

    def __init__(self, folder: Path, count: int):
        from infra.settings import get_settings

        self.folder, self.count, self.turn, settings = folder, count, 0, get_settings()
        # Peers live in an environment of their own, over this one's packages.
        self.python = os.environ.get("BENCH_PEERS", sys.executable)
        self.environment = os.environ | {"S3_ENDPOINT_URL": settings.s3_endpoint}
        self.remote = f"s3://{settings.bucket_corpus}/peers"
        self.known = {"endpoint": settings.s3_endpoint, "pictures": str(folder / SOURCE / "images"), "count": count, "question": QUESTION, "release": self._release()}

    def prepare(self) -> list[str]:
        """Write the pictures as each peer reads them; names of those that are there."""
        found = json.loads(self._run("peers", {}))
        for name in set(PEERS) - set(found):
            print(f"{name} is not installed and left out; bench/requirements.txt says how", file=sys.stderr)
        for name in found:
            with tempfile.TemporaryDirectory() as folder:
                self._run(f"write-{name}", self._plan(name) | {"folder": folder})
                self._publish(Path(folder))
        return found

    def rate(self, name: str) -> float:
        """Pictures a second, from the first process's start to the last one's end."""
        ranks = RANKS if name in ("ours", *LOOPS) else 1
        self.turn += 1
        with tempfile.TemporaryDirectory(dir=self.folder) as cache, tempfile.TemporaryDirectory() as start:
            plan = self._plan(name) | {"cache": cache, "start": start, "ranks": ranks, "seed": self.turn}
            processes = [self._start(name, plan | {"rank": rank}) for rank in range(ranks)]
            told = [json.loads(_output(process)) for process in processes]
        count = sum(one["count"] for one in told)
        if count < self.count * 0.99:
            raise RuntimeError(f"{name} read {count} of {self.count} pictures")
        return count / (max(one["ended"] for one in told) - min(one["begun"] for one in told))

    def _release(self) -> dict:
        """The release's record, of the pictures alone."""
        from flows.releases import make_release
        from ray_jobs.ingest import add_source

        source = self.folder / SOURCE
        for turn, side in enumerate(SIDES):
            make_pictures(source, range(turn, self.count, len(SIDES)), side=side)
        about = {"modality": "CT", "license": "CC0-1.0", "split": "train", "source": SOURCE}
        records = [{"id": f"{n:06d}", "image": f"images/{n:06d}.jpg", "qa": [{"question": QUESTION, "answer": f"Picture number {n}."}], **about} for n in range(self.count)]
        (source / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        add_source(source, SOURCE)
        record = make_release(force=False, on_line=lambda line: None)
        return record | {"shards": [file for file in record["shards"] if file["path"].startswith(f"shards/{SOURCE}/")]}

    def _publish(self, folder: Path) -> None:
        """Tar shards go to the store by us: webdataset has no writer that does."""
        from infra.store import corpus_store

        for path in sorted(folder.glob("*.tar")):
            corpus_store().upload_file(path, f"peers/webdataset/{path.name}")

    def _plan(self, name: str) -> dict:
        from infra.store import corpus_store

        store = corpus_store()
        return self.known | {"remote": f"{self.remote}/{name}", "urls": [store.url(entry.key) for entry in store.list("peers/webdataset/")]}

    def _run(self, name: str, plan: dict) -> str:
        return _output(self._start(name, plan))

    def _start(self, name: str, plan: dict) -> subprocess.Popen:
        python = sys.executable if name in ("ours", *LOOPS) else self.python
        command = [python, "-m", "bench.contestants", name, json.dumps(plan)]
        return subprocess.Popen(command, env=self.environment, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _output(process: subprocess.Popen) -> str:
    """The last line that a process prints. Raises RuntimeError when it fails."""
    said, complained = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(complained[-2000:])
    return said.splitlines()[-1] if said else ""


if __name__ == "__main__":
    report(__doc__, measure)
