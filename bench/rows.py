"""How benchmarks measure and report: interleaved runs, medians, rows with a goal."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Row:
    """One comparison; `ratio` is value over peer_value, and larger is better."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    goal: float

    @property
    def ratio(self) -> float:
        return self.value / self.peer_value

    def to_json(self) -> dict:
        return {**asdict(self), "ratio": self.ratio, "met": self.ratio >= self.goal}


def rates(ours: Callable[[], float], peers: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Median work per second of both. Each callable does its work once and returns how much it was.

    The two take turns, so that whatever else the machine does falls on both.
    """
    ours(), peers()
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        found.append((_rate(ours), _rate(peers)))
    mine, theirs = zip(*found)
    return statistics.median(mine), statistics.median(theirs)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of one run, after two that warm up."""
    work(), work()
    return statistics.median(_timed(work)[1] for _ in range(repeats))


def _rate(work: Callable[[], float]) -> float:
    done, taken = _timed(work)
    return done / taken


def _timed(work: Callable[[], object]) -> tuple:
    """What the work returns, and its seconds, a GPU's included."""
    _finish()
    begun = time.perf_counter()
    done = work()
    _finish()
    return done, time.perf_counter() - begun


def _finish() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def circumstances() -> dict:
    """What a result depends on: processor, cores, GPU, versions, commit."""
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    return {"processor": models[0] if models else platform.processor(), "cores": os.cpu_count(), "gpu": _gpu(), "versions": versions, "commit": commit}


def report(description: str, measure: Callable[[bool], list[Row]]) -> None:
    """Command line of a benchmark: `--quick` only checks that it runs, `--json` prints rows for programs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    arguments = parser.parse_args()
    tell(measure(arguments.quick), arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--json`, `--quick` and `--save`."""
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="small and short: a check of shape, not of speed")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the rows with hardware, versions and commit")


def tell(rows: list[Row], arguments: argparse.Namespace, beside: dict | None = None) -> NoReturn:
    """Print and save the rows (with what was measured `beside` them) as the options say, and end: with 1 where a goal is not met."""
    told = [row.to_json() for row in rows]
    if arguments.save:
        arguments.save.write_text(json.dumps(circumstances() | (beside or {}) | {"rows": told}, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        for row in rows:
            met = "met" if row.ratio >= row.goal else "NOT MET"
            print(f"{row.name:<44} {row.value:>10,.1f} {row.unit:<10} {row.peer:<32} {row.peer_value:>10,.1f}  {row.ratio:5.2f}x  goal {row.goal:.1f}x  {met}")
    sys.exit(0 if arguments.quick or all(row.ratio >= row.goal for row in rows) else 1)
