"""Do picture and caption belong together? The published score: 0.5 * S + M (UniMedVL, 3.1), of which the better part is kept.

S is the largest cosine between the caption and other captions of the picture, M the similarity of picture and caption; both
are scaled to [0, 1] over the pairs of a source. What gives S and M is a scorer. Scores are kept beside each shard, so
a pair is scored once.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus import index, shards
from corpus.params import AlignmentParams
from corpus.sample import SPLITS, Sample
from infra.store import ObjectStore

COLUMNS = ("agreement", "similarity")
SCHEMA = pa.schema([("id", pa.string()), *((name, pa.float32()) for name in (*COLUMNS, "score"))])
# Pairs a scorer may learn from before it scores.
REFERENCE = 2000


class Scorer(Protocol):
    """Gives S and M. `name` stands for the scorer and all that its scores depend on."""

    name: str

    def score(self, pairs: list[Sample]) -> np.ndarray:
        """(S, M) of each generation sample, [n, 2], in units of its own."""


# From some pairs of a source, in a fixed order, to its scorer.
MakeScorer = Callable[[list[Sample]], Scorer]


@dataclass(frozen=True)
class Scores:
    """A value a row of an index, NaN where it was not scored."""

    agreement: np.ndarray
    similarity: np.ndarray
    score: np.ndarray

    def to_bytes(self, table: pa.Table) -> bytes:
        """The scored rows as Parquet."""
        scored = np.flatnonzero(~np.isnan(self.score))
        columns = [table["id"].take(pa.array(scored)).combine_chunks(), *(pa.array(getattr(self, name)[scored], pa.float32()) for name in (*COLUMNS, "score"))]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=SCHEMA), buffer, compression="zstd")
        return buffer.getvalue()


def measure(table: pa.Table, keys: dict[str, str], params: AlignmentParams, make: MakeScorer | None, store: ObjectStore) -> Scores:
    """Scores of the sources that params name; pairs of shards that were scored before are not looked at again.

    Args:
        keys: where the store has each shard of the table.

    Raises:
        ValueError: a source is to be scored and there is no scorer.
    """
    raw = np.full((len(table), 2), np.nan, dtype=np.float32)
    shard, names = index.column(table, "shard"), table["shard"].combine_chunks().dictionary.to_pylist()
    source, sources = index.column(table, "source"), table["source"].combine_chunks().dictionary.to_pylist()
    for code, name in enumerate(sources):
        if params.share(name) is None or not (source == code).any():
            continue
        if make is None:
            raise ValueError(f"source {name!r} is to be scored for alignment, and the scorer {params.scorer!r} is not there")
        found = [names[c] for c in dict.fromkeys(shard[source == code].tolist())]
        scorer = make(_reference(found, keys, store))
        for part in found:
            rows = np.flatnonzero(shard == names.index(part))
            raw[rows] = _scored(part, keys[part], scorer, store)[index.column(table, "row")[rows]]
    scaled = np.full_like(raw, np.nan)
    for code in np.unique(source[~np.isnan(raw[:, 0])]):
        rows = np.flatnonzero((source == code) & ~np.isnan(raw[:, 0]))
        low, high = raw[rows].min(axis=0), raw[rows].max(axis=0)
        scaled[rows] = (raw[rows] - low) / np.maximum(high - low, 1e-9)
    return Scores(scaled[:, 0], scaled[:, 1], 0.5 * scaled[:, 0] + scaled[:, 1])


def poor(table: pa.Table, judged: np.ndarray, params: AlignmentParams, scores: Scores) -> np.ndarray:
    """The training rows below their source's best share. Equal scores go or stay together."""
    splits = table["split"].combine_chunks().dictionary.to_pylist()
    training = index.column(table, "split") == (splits.index(SPLITS[0]) if SPLITS[0] in splits else -1)
    source, found = index.column(table, "source"), [np.empty(0, dtype=np.int64)]
    for code, name in enumerate(table["source"].combine_chunks().dictionary.to_pylist()):
        rows = np.flatnonzero(judged & training & (source == code) & ~np.isnan(scores.score))
        if len(rows):
            least = np.sort(scores.score[rows])[::-1][max(1, round((params.share(name) or 1) * len(rows))) - 1]
            found.append(rows[scores.score[rows] < least])
    return np.sort(np.concatenate(found))


def pairs_of(data: bytes) -> Iterator[tuple[int, Sample]]:
    """(row, sample) of a shard's pictures with a caption."""
    return ((row, sample) for row, sample in enumerate(shards.unpack(data)) if sample.task == "generation")


def _reference(found: Iterable[str], keys: dict[str, str], store: ObjectStore) -> list[Sample]:
    """The first pairs of a source: as long as its first shards stay, so does what is learned from them."""
    reference: list[Sample] = []
    for name in found:
        if len(reference) >= REFERENCE:
            break
        reference += [sample for _, sample in pairs_of(store.get(keys[name]))]
    return reference[:REFERENCE]


def _scored(shard: str, key: str, scorer: Scorer, store: ObjectStore) -> np.ndarray:
    """(S, M) of each row of a shard, from the store if they are there; NaN for what is no pair."""
    kept = f"alignment/{scorer.name}/{shard}.npy"
    if store.exists(kept):
        return np.load(io.BytesIO(store.get(kept)), allow_pickle=False)
    data = store.get(key)
    values = np.full((pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows, 2), np.nan, dtype=np.float32)
    if pairs := list(pairs_of(data)):
        values[[row for row, _ in pairs]] = scorer.score([sample for _, sample in pairs])
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    store.put(kept, buffer.getvalue())
    return values
