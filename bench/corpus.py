"""The corpus's speed: `python -m bench.corpus`.

Taking in is measured beside the bare loop that decodes and hashes the same files; a release beside `dvc add` and
`dvc push` of the same pictures as files to the same store. A real object store runs for as long as the benchmark does.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from bench.rows import Row, report
from corpus.intake import BATCH
from corpus.measures import Measuring

MODALITIES, SPLITS = ("CT", "MRI", "CXR"), ("train", "train", "train", "val", "test")
FEW = {"phantoms": {"patients_per_modality": 10}, "expectations": {"modalities": list(MODALITIES), "min_per_modality": 10, "min_per_split": 5}}
TURNS = 5
SHORTEST = "shortest script that decodes, checks, hashes and writes"
DVC = "dvc add, dvc push of files"
Found = TypeVar("Found")


def measure(quick: bool) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [(160, 60), (512, 20)] if quick else [(160, 3000), (512, 1000)]
        few, many = Path(folder) / "few", Path(folder) / "many"
        few.mkdir(), many.mkdir()
        taken = with_store(few, lambda: [row for side, count in sizes for row in taking_in(few / str(side), side, count)])
        # In a store of its own: a release holds everything that was taken in.
        return taken + with_store(many, lambda: releasing(many, 300 if quick else 20_000), services=("s3", "ray"))


def with_store(folder: Path, work: Callable[[], Found], corpus: dict = FEW, services: tuple[str, ...] = ("s3",)) -> Found:
    """Run `work` with an object store of its own, and what else of the stack it needs; `corpus` is that section of the profile."""
    params = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
    params["corpus"] = corpus
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    outside = dict(os.environ)
    os.environ |= {"UNIMED_STATE_DIR": str(folder / "state"), "UNIMED_PARAMS_FILE": str(folder / "params.yaml")}
    from infra.settings import get_settings
    from infra.stack import Stack

    get_settings.cache_clear()
    try:
        Stack().up(services=services)
        get_settings().export()
        return work()
    finally:
        Stack().down()
        os.environ.clear()
        os.environ.update(outside)
        get_settings.cache_clear()


def make_pictures(folder: Path, numbers: range | list[int], salt: int = 0, side: int = 160) -> None:
    """JPEG files (at 160 px of about 8 KB) that look alike to nobody, and records.jsonl of all pictures in the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / "images" / f"{number:06d}.jpg").write_bytes(_jpeg(number, salt, side))
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "records.jsonl").write_text("".join(json.dumps(_record(name)) + "\n" for name in names))


def _jpeg(number: int, salt: int, side: int) -> bytes:
    rng = np.random.default_rng((number, salt))
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (side, side), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _record(name: str) -> dict:
    number = int(name[:6])
    known = {"modality": MODALITIES[number % 3], "license": "CC0-1.0", "split": SPLITS[number % 5], "source": "made"}
    return {"id": name[:6], "image": f"images/{name}", "caption": f"Picture number {number}.", **known}


def taking_in(folder: Path, side: int, count: int) -> list[Row]:
    """Samples a second: read, checked, hashed and written. All loops have one and the same core; the store has the others."""
    from ray_jobs.ingest import add_source

    make_pictures(folder, range(count), side=side)
    paths = sorted((folder / "images").iterdir())
    ways = {"ours": lambda turn: add_source(folder, f"few-{side}-{turn}")}
    ways |= {name: lambda turn, loop=loop: loop(paths) for name, loop in _loops().items()}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        turns = [{name: _seconds(lambda way=way: way(turn)) for name, way in ways.items()} for turn in range(4)]
    finally:
        os.sched_setaffinity(0, cores)
    # The first turn imports.
    rate = {name: count / min(turn[name] for turn in turns[1:]) for name in ways}
    return [Row(f"taking in, {side} px, one core", rate["ours"], "samples/s", name, rate[name], goal=0.9) for name in _loops()]


def _loops() -> dict[str, Callable[[list[Path]], object]]:
    """What is done with the pictures beside which taking in is measured."""
    loops = {"decode + SHA-256 loop": lambda paths: [_hash(_decode(path)) for path in paths], SHORTEST: _take_in_no_more_than_that}
    if find_spec("imagehash"):
        return loops | {"decode + SHA-256 + imagehash's pHash and dHash loop": lambda paths: [_hash_looks(_decode(path)) for path in paths]}
    print("imagehash is not installed and left out; bench/requirements.txt says how", file=sys.stderr)
    return loops


def _decode(file: Path | io.BytesIO) -> Image.Image:
    picture = Image.open(file)
    picture.load()
    return picture


def _hash(picture: Image.Image) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _hash_looks(picture: Image.Image) -> tuple[str, str, str]:
    """The hashes that taking in makes, by the package known for them."""
    import imagehash

    return _hash(picture), str(imagehash.phash(picture)), str(imagehash.dhash(picture))


def _take_in_no_more_than_that(paths: list[Path]) -> None:
    """Decode, check, hash and write in as few lines as that takes: the most that taking in could reach beside the first loop.

    No record is read, nothing stripped, refused, known again or gone on with; the measures are taking in's own.
    """
    from infra.store import corpus_store

    rows = []
    for start in range(0, len(paths), BATCH):
        measuring, batch = Measuring(), []
        for path in paths[start : start + BATCH]:
            data = path.read_bytes()
            picture = _decode(io.BytesIO(data))
            batch.append(({"id": path.stem, "image": data, "sha256": _hash(picture)}, measuring.add(picture)))
        measuring.finish()
        rows += [row | known for row, known in batch]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none", use_dictionary=False, write_statistics=False)
    corpus_store().put("shortest.parquet", buffer.getvalue())


def releasing(folder: Path, count: int) -> list[Row]:
    """First release, then the best of five without a change and of five after a change of 1 %, beside DVC on the files.

    DVC begins with the files, and so do we: a release is taking the pictures in, on all cores as `unimed data add` does it and as
    DVC does, and making the release of them.
    """
    from flows.releases import make_release

    source = folder / "many"
    make_pictures(source, range(count))
    make_release(force=False, on_line=lambda line: None)  # the built-in sources, the clone of the repository
    dvc = _Files(folder, source)
    first, dvc_first = _turn(source), dvc.add_and_push()
    idle, dvc_idle = _best((_turn(source), dvc.add_and_push()) for _ in range(TURNS))
    changed, dvc_changed = _best((_turn(source), dvc.add_and_push()) for turn in range(TURNS) if _change(source, turn))
    for name, turn in {"first": first, "without a change": idle, "after a change of 1 %": changed}.items():
        print(f"{name}: {turn.taken:.2f} s to take the pictures in, {turn.released:.2f} s to make the release of them", file=sys.stderr)
    return [
        Row(f"first release of {count:,} pictures", 1 / first.whole, "1/s", DVC, 1 / dvc_first, goal=3.0),
        Row("release without a change", 1 / idle.whole, "1/s", DVC, 1 / dvc_idle, goal=2.0),
        Row("release after a change of 1 %", 1 / changed.whole, "1/s", DVC, 1 / dvc_changed, goal=1.0),
        # What 1 % costs beside everything: bytes, and time beyond that of no change.
        Row("bytes of the first release per byte of 1 %", first.stored / changed.stored, "x", "3 % of the bytes", 1 / 0.03, goal=1.0),
        _share("time of the first release per time of 1 %", first.whole, idle.whole, changed.whole),
        _share("the same of making releases alone, without taking in", first.released, idle.released, changed.released),
    ]


def _share(name: str, first: float, idle: float, changed: float) -> Row:
    return Row(name, first / max(changed - idle, 1e-9), "x", "10 % of the time", 10.0, goal=1.0)


@dataclass(frozen=True)
class _Turn:
    """Seconds of taking the source in and of releasing, and the bytes that both left in the store."""

    taken: float
    released: float
    stored: int

    @property
    def whole(self) -> float:
        return self.taken + self.released


def _turn(source: Path) -> _Turn:
    from flows.releases import make_release
    from infra.store import corpus_store
    from ray_jobs.ingest import add_source

    store = corpus_store()
    before = _stored(store)
    taken = _seconds(lambda: add_source(source, "many", workers=0))
    released = _seconds(lambda: make_release(force=False, on_line=lambda line: None))
    return _Turn(taken, released, _stored(store) - before)


def _stored(store) -> int:
    return sum(entry.size for entry in store.list())


def _best(turns: Iterable[tuple[_Turn, float]]) -> tuple[_Turn, float]:
    """The least of our turns and of DVC's seconds: what else a machine does only ever adds to them."""
    ours, dvc = zip(*turns)
    return _Turn(*map(min, zip(*map(astuple, ours)))), min(dvc)


def _change(source: Path, turn: int) -> int:
    """Edit, add and remove a third of a percent each, at random; how many that is."""
    there = sorted(int(path.stem) for path in (source / "images").iterdir())
    chosen = np.random.default_rng(turn).permutation(there)
    each = max(1, len(there) // 300)
    for number in chosen[:each]:
        (source / "images" / f"{number:06d}.jpg").unlink()
    make_pictures(source, [*chosen[each : 2 * each].tolist(), *range(there[-1] + 1, there[-1] + 1 + each)], salt=turn + 1)
    return each


class Repository:
    """A DVC repository of its own, with the object store as its remote."""

    def __init__(self, path: Path):
        from infra.settings import get_settings

        settings = get_settings()
        self.path = path
        self.path.mkdir()
        self.environment = os.environ | settings.process_environment()
        self.run("git", "init", "-q")
        self.dvc("init", "-q")
        self.dvc("remote", "add", "-d", "s3", f"s3://{settings.bucket_corpus}/peer")
        self.dvc("remote", "modify", "s3", "endpointurl", settings.s3_endpoint)

    def seconds(self, *arguments: str) -> float:
        return _seconds(lambda: self.dvc(*arguments))

    def dvc(self, *arguments: str) -> None:
        self.run(sys.executable, "-m", "dvc", *arguments)

    def run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.path, env=self.environment, check=True, capture_output=True, timeout=900)


class _Files:
    """The same pictures as files in a DVC repository."""

    def __init__(self, folder: Path, source: Path):
        self.repository, self.source = Repository(folder / "files"), source

    def add_and_push(self) -> float:
        self._copy()
        return self.repository.seconds("add", "-q", "images") + self.repository.seconds("push", "-q", "-j", "16")

    def _copy(self) -> None:
        there = self.repository.path / "images"
        there.mkdir(exist_ok=True)
        names = {path.name for path in (self.source / "images").iterdir()}
        for path in there.iterdir():
            if path.name not in names:
                path.unlink()
        for path in (self.source / "images").iterdir():
            target = there / path.name
            if not target.exists() or target.read_bytes() != path.read_bytes():
                shutil.copy(path, target)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    report(__doc__, measure)
