"""A release: every listed source through the last checks, into shards by source, with a card."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from corpus import expectations, quality, shards
from corpus.params import CorpusParams
from corpus.phantoms import mini
from corpus.readers import package_images
from corpus.record import Rejection
from corpus.sample import Sample
from infra.records import write_json_atomic
from infra.store import ObjectStore

CARD, QUARANTINE, VALIDATION = "card.json", "quarantine.parquet", "validation.json"
BUILT_IN = ("unimed-mini", "package-images")


def read_sources(path: Path) -> list[dict]:
    """Entries of sources.yaml: {name} for the built-in ones, {name, shards, …} for those taken in.

    Raises:
        ValueError: an entry is neither.
    """
    entries = [{"name": e} if isinstance(e, str) else e for e in yaml.safe_load(path.read_text())["sources"]]
    for entry in entries:
        if entry["name"] not in BUILT_IN and "shards" not in entry:
            raise ValueError(f"{path}: source {entry['name']!r} is not built in ({', '.join(BUILT_IN)}) and names no shards; add it with `unimed data add`")
    return entries


def build(sources: list[dict], out: Path, params: CorpusParams, store: ObjectStore, salt: bytes, on_step: Callable[[str], None] = print) -> dict:
    """Write a release to a folder; returns its card. Equal inputs give equal bytes.

    Raises:
        ReleaseRejected: it breaks an expectation. Nothing is written then but the validation report.
    """
    arrived: list[Sample] = []
    aside: list[Rejection] = []
    for source in sources:
        before = len(arrived), len(aside)
        for item in _read(source, params, store, salt):
            (aside if isinstance(item, Rejection) else arrived).append(item)
        on_step(f"{source['name']}: {len(arrived) - before[0]} samples, {len(aside) - before[1]} kept aside")
    kept, late = quality.settle(arrived)
    report = expectations.validate(expectations.table(kept), params)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_json_atomic(out / VALIDATION, report)
    expectations.require(report)
    on_step(f"{len(kept)} samples kept, {len(late)} kept aside across sources; {len(report['results'])} expectations hold")
    _write_shards(kept, out, params)
    (out / QUARANTINE).write_bytes(shards.quarantine_bytes([*aside, *late]))
    card = _card(kept, [*aside, *late], len(arrived), report)
    write_json_atomic(out / CARD, card)
    return card


def _read(source: dict, params: CorpusParams, store: ObjectStore, salt: bytes) -> Iterator[Sample | Rejection]:
    if source["name"] == "unimed-mini":
        yield from mini.samples(params.phantoms, salt)
    elif source["name"] == "package-images":
        for record in package_images.read():
            outcome = quality.examine(record, params.quality, salt)
            yield from [outcome] if isinstance(outcome, Rejection) else outcome
    else:
        for shard in source["shards"]:
            yield from shards.unpack(store.get(shard["key"]))
        yield from shards.read_quarantine(store.get(source["quarantine"]))


def _write_shards(samples: Iterable[Sample], out: Path, params: CorpusParams) -> None:
    by_source = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(sample)
    for source, group in sorted(by_source.items()):
        folder = out / "shards" / source
        folder.mkdir(parents=True)
        for name, data, _ in shards.pack(group, params.shards):
            (folder / name).write_bytes(data)


def _card(kept: list[Sample], aside: list[Rejection], arrived: int, report: dict) -> dict:
    counts: dict = defaultdict(lambda: defaultdict(Counter))
    for sample in kept:
        counts[sample.task][sample.modality][sample.split] += 1
    return {
        "samples": len(kept),
        "counts": json.loads(json.dumps(counts, sort_keys=True)),
        "sources": dict(sorted(Counter(s.source for s in kept).items())),
        "licenses": dict(sorted(Counter(s.license for s in kept).items())),
        "patients": len({s.patient for s in kept}),
        "arrived": arrived,
        "quarantined": len(aside),
        "reasons": dict(sorted(Counter(r.reason for r in aside).items())),
        "expectations": {"held": sum(r["success"] for r in report["results"]), "of": len(report["results"])},
    }
