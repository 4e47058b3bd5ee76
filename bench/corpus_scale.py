"""The corpus at scale: `python -m bench.corpus_scale`.

A million generated records are put on a real object store as a source that was taken in (small texts beside index rows with
hashes like those of pictures), then released, each release in a process of its own. DVC on as many small files is measured
at sizes that end in minutes. What 5.6 million would take is told by curves through the processor's seconds at three sizes:
unlike the clock's, they do not depend on what else the machine does.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.corpus import MODALITIES, SPLITS, Repository, with_store
from bench.rows import Row, add_options, tell

SIZES, FILES, GOAL = (250_000, 500_000, 1_000_000), (20_000, 50_000, 100_000), 5_600_000
SHARD = 25_000


def measure(quick: bool) -> dict:
    """{releases: [a size each], files: [a size each], projected: {…}}, in seconds and MB."""
    sizes, files = ((500, 1000), (100, 200)) if quick else (SIZES, FILES)
    with tempfile.TemporaryDirectory() as folder:
        found = with_store(Path(folder), lambda: {"releases": [_releases(size) for size in sizes], "files": [_files(Path(folder), count) for count in files]})
    return found | {"projected": project(found["releases"], found["files"])}


def project(releases: list[dict], files: list[dict], goal: int = GOAL) -> dict:
    """What `goal` records would take: least squares through the measured sizes, with a constant and a slope that are not negative.

    Of a release that builds there is a quadratic term too, as look-alikes are compared in pairs.
    """
    sizes, counts = [r["records"] for r in releases], [f["files"] for f in files]
    told = {"records": goal, "how": "least squares without negative terms: constant and slope, for first_cpu_s and changed_cpu_s also a square"}
    for name, degree in (("first_cpu_s", 2), ("changed_cpu_s", 2), ("no_op_cpu_s", 1), ("peak_mb", 1), ("expectations_cpu_s", 1)):
        told[name] = _at(goal, sizes, [r[name] for r in releases], degree)
    return told | {f"dvc_{name}": _at(goal, counts, [f[name] for f in files], 1) for name in ("add_cpu_s", "status_cpu_s")}


def _at(goal: int, sizes: list[int], values: list[float], degree: int) -> float:
    from scipy.optimize import nnls

    powers = (np.array(sizes)[:, None] / goal) ** np.arange(degree + 1)
    return round(float(nnls(powers, np.array(values, dtype=float))[0].sum()), 1)


def _releases(size: int) -> dict:
    """First release of so many records, one without a change, one after a hundredth more."""
    generate(f"made-{size}", size)
    if "expectations_s" not in (first := _in_process()):
        raise RuntimeError("dvc built the release in a process of its own, as code of this working tree is not committed: commit it, and measure again")
    idle = _in_process()
    generate(f"made-{size}", size + max(1, size // 100))
    changed = _in_process()
    _forget(f"made-{size}")
    told = {"records": size}
    for name, run in (("first", first), ("no_op", idle), ("changed", changed)):
        told |= {f"{name}_s": run["seconds"], f"{name}_cpu_s": run["cpu_s"]}
    told["peak_mb"] = max(run["peak_mb"] for run in (first, idle, changed))
    return told | {name: first[name] for name in ("expectations_s", "expectations_cpu_s")}


def _in_process() -> dict:
    done = subprocess.run([sys.executable, "-m", "bench.corpus_scale", "--release"], capture_output=True, text=True, timeout=900, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def release() -> dict:
    """One release: seconds by the clock and of the processor (imports included), of them those of the expectations, and the process's peak memory in MB."""
    begun = time.perf_counter()
    from corpus import expectations
    from flows.releases import make_release

    plain, spent = expectations.validate, {}

    def timed(*arguments):
        import great_expectations  # noqa: F401  Its import is no part of the suite.

        since, worked = time.perf_counter(), time.process_time()
        report = plain(*arguments)
        spent.update(expectations_s=round(time.perf_counter() - since, 2), expectations_cpu_s=round(time.process_time() - worked, 2))
        return report

    expectations.validate = timed
    make_release(force=False, on_line=lambda line: None)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    whole = {"seconds": round(time.perf_counter() - begun, 2), "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in used), 2)}
    return whole | spent | {"peak_mb": round(used[0].ru_maxrss / 1024)}


def generate(name: str, size: int) -> None:
    """A source of `size` records on the store, as `unimed data add` leaves it. The first records are the same for every size."""
    from corpus import shards
    from infra.store import corpus_store

    store = corpus_store()
    entries = [_put_shard(store, name, start, min(SHARD, size - start)) for start in range(0, size, SHARD)]
    for kind in ("removed", "stale"):
        store.put_json(f"intake/{name}/{kind}.json", {})
    store.put(f"intake/{name}/quarantine.parquet", shards.quarantine_bytes([]))
    keys = {"removed": f"intake/{name}/removed.json", "stale": f"intake/{name}/stale.json", "quarantine": f"intake/{name}/quarantine.parquet"}
    store.put_json(f"intake/{name}.json", {"name": name, "shards": entries} | keys)


def _forget(name: str) -> None:
    from infra.store import corpus_store

    corpus_store().delete(f"intake/{name}.json")


def _put_shard(store, name: str, start: int, rows: int) -> dict:
    import hashlib
    import io

    import pyarrow.parquet as pq

    from corpus import shards

    files = []
    for table in _tables(name, start, rows):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        files.append(buffer.getvalue())
    shard = shards.Shard(f"{name}/{hashlib.sha256(files[0]).hexdigest()[:16]}", *files, rows)
    return shards.put(store, f"intake/{name}", shard)


def _tables(name: str, start: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Samples and their index rows: one sample, repeated, with columns of its own where records differ."""
    from corpus import index, sample, tasks

    numbers, rng = np.arange(start, start + rows), np.random.default_rng((start, rows))
    one = sample.Sample("id", "generation", "CT", name, "CC0-1.0", "", "train", "patient", tasks.generation("A generated record of usual length, for scale."))
    ids = pa.array([f"{name}/{number:07d}#g" for number in numbers])
    patients = pa.array([f"{number // 2:020x}" for number in numbers])
    kinds = {"modality": np.array(MODALITIES)[numbers % 3], "split": np.array(SPLITS)[numbers // 2 % 5]}
    random = {column: pa.array(rng.integers(1, 2**63, rows).astype(np.uint64)) for column in ("content", "record", "picture", "origin", "phash", "dhash")}
    looks = rng.integers(0, 256, (rows, index.FEATURES), dtype=np.uint8).tobytes()
    random["features"] = pa.Array.from_buffers(pa.binary(index.FEATURES), rows, [None, pa.py_buffer(looks)])
    measured = {"side": pa.array(np.full(rows, 128, np.int32)), "aspect": pa.array(np.ones(rows, np.float32)), "entropy": pa.array(np.full(rows, 6, np.float32))}

    def table(schema: pa.Schema, row: dict, columns: dict) -> pa.Table:
        repeated = pa.Table.from_pylist([row], schema=schema).take(pa.array(np.zeros(rows, np.int64)))
        for column, values in columns.items():
            place = schema.get_field_index(column)
            repeated = repeated.set_column(place, schema.field(place), pa.array(values).cast(schema.field(place).type))
        return repeated

    own = {"id": ids, "patient": patients} | kinds
    return table(sample.SCHEMA, one.to_row(), own), table(index.SCHEMA, index.row(one), own | random | measured)


def _files(folder: Path, count: int) -> dict:
    """`dvc add` of so many files of 1 KB, and `dvc status` when nothing changed."""
    repository = Repository(folder / f"dvc-{count}")
    data = repository.path / "data"
    data.mkdir()
    for number in range(count):
        (data / f"{number:07d}.bin").write_bytes(number.to_bytes(8, "little") * 128)
    told: dict = {"files": count}
    for verb, arguments in (("add", ("add", "-q", "data")), ("status", ("status", "-q"))):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told[f"{verb}_s"] = round(repository.seconds(*arguments), 2)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        told[f"{verb}_cpu_s"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    return told


def rows(found: dict) -> list[Row]:
    """The largest size beside its goals, and a release without a change beside DVC's line through what it was measured at."""
    largest, files = found["releases"][-1], found["files"]
    size, count = largest["records"], files[-1]["files"]
    dvc = _at(size, [f["files"] for f in files], [f["status_s"] for f in files], 1)
    return [
        Row(f"release of {size:,}: records per MB of peak memory", size / largest["peak_mb"], "1/MB", "2 GB", size / 2000, goal=1.0),
        Row(f"release of {size:,} without a change", size / largest["no_op_s"], "records/s", "10 s", size / 10, goal=1.0),
        Row(f"release of {size:,} without a change", size / largest["no_op_s"], "records/s", f"dvc status, projected from {count:,} files", size / dvc, goal=1.0),
        Row(f"expectations over {size:,} rows", size / largest["expectations_s"], "rows/s", "10 s", size / 10, goal=1.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help=argparse.SUPPRESS)
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.release:
        print(json.dumps(release()))
        return
    found = measure(arguments.quick)
    tell(rows(found), arguments, beside=found)


if __name__ == "__main__":
    main()
