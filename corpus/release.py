"""A release: every listed source through the last checks, as shards by source with their indexes, and a card.

The folder holds `shards/<source>/<hash>.parquet` with an index beside each, `removed.json` (rows of shards that do not
count), `card.json`, `validation.json`, `quarantine.parquet`, `doubts.parquet` (kept, but for a person to look at) and
`alignment.parquet` (scores of pairs, where params ask for them). Shards of sources taken in are used as they are, so a
release costs what changed.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from corpus import alignment, content, expectations, index, quality, review, shards, stored
from corpus.params import CorpusParams
from corpus.phantoms import mini
from corpus.readers import package_images
from corpus.record import Rejection
from corpus.sample import Sample
from corpus.settle import settle
from corpus.vocabulary import BUILT_IN
from infra.records import digest, read_yaml, source_fingerprint, write_atomic, write_json_atomic
from infra.store import MissingObject, ObjectStore

CARD, QUARANTINE, VALIDATION, REMOVED = "card.json", "quarantine.parquet", "validation.json", "removed.json"
DOUBTS, ALIGNMENT = "doubts.parquet", "alignment.parquet"
# Objects that are fetched at once; as many shards are in memory.
AT_ONCE = 4


@dataclass(frozen=True)
class _Part:
    """A shard of a release to be: its entry, its index without the rows its source has removed, and the content name of the index as a file."""

    entry: dict
    table: pa.Table
    removed: tuple[int, ...]
    index_name: str

    @property
    def name(self) -> str:
        return self.entry["shard"]


class BadSources(ValueError):
    """A sources.yaml that lists no sources."""


def listed(path: Path) -> list:
    """What sources.yaml lists, as it stands there.

    Raises:
        BadSources: it cannot be read, or an entry is no source.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadSources(f"{path} cannot be read: {error}") from None
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise BadSources(f"{path} has no list `sources`; `sources: []` is one of none")
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if name not in BUILT_IN and not (isinstance(entry, dict) and "shards" in entry):
            raise BadSources(f"{path}: source {name!r} is not built in ({', '.join(BUILT_IN)}) and names no shards; add it with `unimed data add`")
    return entries


def read_sources(path: Path) -> list[dict]:
    """Entries of sources.yaml: {name} for the built-in ones, {name, shards, …} for those taken in. Raises BadSources as `listed`."""
    return [{"name": entry} if isinstance(entry, str) else entry for entry in listed(path)]


def read_decisions(path: Path, store: ObjectStore) -> review.Decisions:
    """The decisions of people that sources.yaml pins; none if it pins none."""
    return review.read(store, read_yaml(path).get("decisions"))


def last_release(path: Path) -> dict[str, dict] | None:
    """What sources.yaml says of the release before this one: `by_source` of its card."""
    return read_yaml(path).get("last_release", {}).get("by_source")


def build(
    sources: list[dict],
    out: Path,
    params: CorpusParams,
    store: ObjectStore,
    salt: bytes,
    on_step: Callable[[str], None] = print,
    before: dict[str, dict] | None = None,
    decisions: review.Decisions = review.Decisions(),
    scorer: alignment.MakeScorer | None = None,
) -> dict:
    """Write a release to a folder; returns its card. Equal inputs give equal bytes.

    Shards that the folder holds already are left as they are, unless they were cut short. `before` is what the last release held (see `last_release`).

    Raises:
        DamagedShard: the store has a shard or an index that is not what was written.
        ReleaseRejected: it breaks an expectation. The folder is as it was then, but for the validation report.
    """
    parts: list[_Part] = []
    aside: list[Rejection] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for source, (found, rejected) in zip(sources, pool.map(lambda source: _read(source, params, store, salt, decisions), sources)):
            parts, aside = parts + found, aside + rejected
            on_step(f"{source['name']}: {sum(len(part.table) for part in found)} samples, {len(rejected)} kept aside")
    table = index.join([part.table for part in parts])
    if strange := sorted(params.quality.alignment.keep_share.keys() - {"*"} - _counted(table, "source").keys()):
        on_step(f"corpus.quality.alignment.keep_share names {', '.join(strange)}, which is the source of no sample; these are: {', '.join(_counted(table, 'source'))}")
    settled = settle(table, params.quality.near_distance, decisions.rows(table, accepted=True))
    scores = alignment.measure(table, {part.name: part.entry["key"] for part in parts}, params.quality.alignment, scorer, store)
    checked = content.check(table, settled.kept, params.quality, decisions, scores)
    late = [*review.told(settled.aside, decisions.refused(table)), *checked.aside]
    kept = table.filter(pa.array(checked.kept))
    report = expectations.validate(kept, params, before)
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out / VALIDATION, report)
    expectations.require(report)
    on_step(f"{len(kept)} samples kept, {len(late)} kept aside across sources, {len(checked.doubts)} for a person to look at; {sum(r['success'] for r in report['results'])} of {len(report['results'])} expectations hold")
    used = set(kept["shard"].unique().to_pylist())
    _lay_out(out, [part for part in parts if part.name in used], store)
    write_json_atomic(out / REMOVED, _removed(parts, kept, table.filter(pa.array(~checked.kept))))
    write_atomic(out / QUARANTINE, shards.quarantine_bytes([*aside, *late]))
    write_atomic(out / DOUBTS, shards.quarantine_bytes(checked.doubts))
    write_atomic(out / ALIGNMENT, scores.to_bytes(table))
    card = _card(kept, [*aside, *late], checked.doubts, len(table), report)
    write_json_atomic(out / CARD, card)
    return card


def _read(source: dict, params: CorpusParams, store: ObjectStore, salt: bytes, decisions: review.Decisions) -> tuple[list[_Part], list[Rejection]]:
    if source["name"] in BUILT_IN:
        source = _kept(source["name"], params, store, salt)
    source, back, refused = review.let_in(source, decisions, params.shards, store)
    removed = source["removed"] if back else json.loads(store.get(source["removed"]))
    aside = review.told(review.still_aside(shards.read_quarantine(store.get(source["quarantine"])), back), refused)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda s: _taken_in(s, tuple(removed.get(s["shard"], ())), store), source["shards"])), aside


def _kept(name: str, params: CorpusParams, store: ObjectStore, salt: bytes) -> dict:
    """A built-in source as one taken in: made once for these parameters, salt and code, then kept in the store."""
    inputs = {"params": params.model_dump(mode="json", exclude={"expectations"}), "salt": salt.hex(), "code": source_fingerprint("corpus")}
    key = f"built-in/{name}-{digest(inputs)[:16]}"
    try:
        return store.get_json(f"{key}.json")
    except MissingObject:
        aside: list[Rejection] = []
        made = [shards.put(store, key, shard) for shard in shards.write(_built_in(name, params, salt, aside), params.shards)]
        store.put(f"{key}/removed.json", b"{}")
        store.put(f"{key}/quarantine.parquet", shards.quarantine_bytes(aside))
        source = {"name": name, "shards": made, "removed": f"{key}/removed.json", "quarantine": f"{key}/quarantine.parquet"}
        store.put_json(f"{key}.json", source)
        return source


def built_in_shards(store: ObjectStore) -> dict[str, str]:
    """Keys of the shards that were ever made of built-in sources, by name."""
    made = [store.get_json(entry.key) for entry in store.list("built-in/") if entry.key.endswith(".json") and entry.key.count("/") == 1]
    return {shard["shard"]: shard["key"] for source in made for shard in source["shards"]}


def _taken_in(shard: dict, removed: tuple[int, ...], store: ObjectStore) -> _Part:
    data = store.get(shard["index_key"])
    with stored.readable(shard["index_key"], store):
        return _Part(shard, index.read(data, shard["shard"], removed), removed, shards.content_name(data))


def _built_in(name: str, params: CorpusParams, salt: bytes, aside: list[Rejection]) -> Iterator[list[Sample]]:
    if name == "unimed-mini":
        yield from ([sample] for sample in mini.samples(params.phantoms, salt))
        return
    for record in package_images.read():
        outcome = quality.examine(record, params.quality, salt)
        if isinstance(outcome, Rejection):
            aside.append(Rejection(outcome.source, outcome.where, outcome.reason, outcome.detail))
        else:
            yield outcome


def _lay_out(out: Path, parts: list[_Part], store: ObjectStore) -> None:
    """Exactly these shards under `shards/`: what is there stays, what is missing comes, what is over goes."""
    wanted = {f"{part.name}{suffix}" for part in parts for suffix in (shards.DATA, shards.INDEX)}
    for path in sorted((out / "shards").rglob("*.parquet")):
        if path.relative_to(out / "shards").as_posix() not in wanted:
            path.unlink()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda part: _bring(out, part, store), {part.name: part for part in parts}.values()))


def _bring(out: Path, part: _Part, store: ObjectStore) -> None:
    data, beside = (out / "shards" / f"{part.name}{suffix}" for suffix in (shards.DATA, shards.INDEX))
    # To read all shards at each release would take hours: whoever takes the folder up checks those that changed.
    if not data.exists() or data.stat().st_size != part.entry["bytes"]:
        write_atomic(data, stored.data(part.entry, store))
    if not beside.exists() or shards.content_name(beside.read_bytes()) != part.index_name:
        write_atomic(beside, store.get(part.entry["index_key"]))


def _removed(parts: list[_Part], kept: pa.Table, late: pa.Table) -> dict[str, list[int]]:
    """Rows that do not count, by shard: those their source removed, and those kept aside across sources.

    A shard that several sources have is one shard of the release: what is kept for one of them counts.
    """
    removed: dict[str, set[int]] = defaultdict(set)
    for part in parts:
        removed[part.name].update(part.removed)
    for shard, row in _places(late):
        removed[shard].add(row)
    several = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    for shard, row in _places(kept.filter(pc.is_in(kept["shard"], pa.array(several, pa.string())))):
        removed[shard].discard(row)
    return {shard: sorted(rows) for shard, rows in sorted(removed.items()) if rows}


def _places(table: pa.Table) -> Iterator[tuple[str, int]]:
    """(shard, row) of each sample of an index."""
    return zip(table["shard"].to_pylist(), table["row"].to_pylist())


def _card(kept: pa.Table, aside: list[Rejection], doubts: list[Rejection], arrived: int, report: dict) -> dict:
    counts: dict = defaultdict(lambda: defaultdict(dict))
    groups = kept.group_by(["task", "modality", "split"]).aggregate([([], "count_all")])
    for group in groups.to_pylist():
        counts[group["task"]][group["modality"]][group["split"]] = group["count_all"]
    return {
        "samples": len(kept),
        "counts": json.loads(json.dumps(counts, sort_keys=True)),
        "sources": _counted(kept, "source"),
        "licenses": _counted(kept, "license"),
        "patients": len(kept["patient"].unique()),
        "arrived": arrived,
        "quarantined": len(aside),
        "reasons": dict(sorted(Counter(r.reason for r in aside).items())),
        "doubts": dict(sorted(Counter(r.reason for r in doubts).items())),
        "by_source": report["by_source"],
        "expectations": {"held": sum(r["success"] for r in report["results"]), "of": len(report["results"])},
    }


def _counted(kept: pa.Table, name: str) -> dict[str, int]:
    groups = kept.group_by(name).aggregate([([], "count_all")]).to_pylist()
    return dict(sorted((group[name], group["count_all"]) for group in groups))
