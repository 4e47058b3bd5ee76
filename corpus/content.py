"""The content checks of a release, which need all sources: people's decisions, modality labels, alignment, repeated captions."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from corpus import alignment, index, picture_kind
from corpus.params import QualityParams
from corpus.record import Rejection
from corpus.review import REJECTED, Decisions
from corpus.settle import record_of


@dataclass
class Content:
    """The rows that stay (a mask over the index), why others do not, and what a person should look at though it stays."""

    kept: np.ndarray
    aside: list[Rejection] = field(default_factory=list)
    doubts: list[Rejection] = field(default_factory=list)

    def reject(self, row: int, sample: str, source: str, reason: str, detail: str) -> None:
        self.kept[row] = False
        self.aside.append(Rejection(source, sample, reason, detail, record_of(sample)))

    def doubt(self, sample: str, source: str, reason: str, detail: str) -> None:
        self.doubts.append(Rejection(source, sample, reason, detail, record_of(sample)))


def check(table: pa.Table, kept: np.ndarray, params: QualityParams, decisions: Decisions, scores: alignment.Scores) -> Content:
    """Judge the rows of an index that are kept so far. What a person has let in is not judged again."""
    content, accepted = Content(kept.copy()), decisions.rows(table, accepted=True)
    _rejected_by_people(content, table, decisions)
    _modality(content, table, accepted, params)
    _alignment(content, table, accepted, params, scores)
    _repeated_captions(content, table, params.same_caption)
    return content


def _rejected_by_people(content: Content, table: pa.Table, decisions: Decisions) -> None:
    refused = decisions.refused(table)
    for row, sample, source in _named(table, np.flatnonzero(content.kept & decisions.rows(table, accepted=False))):
        content.reject(row, sample, source, REJECTED, refused[record_of(sample)])


def _modality(content: Content, table: pa.Table, accepted: np.ndarray, params: QualityParams) -> None:
    """A wrong label is wrong for all samples of the record."""
    rows, record = np.flatnonzero(content.kept), index.column(table, "record")
    verdicts = {int(record[rows[v.row]]): v for v in picture_kind.disagreements(table.take(pa.array(rows)), params.modality)}
    meant = rows[np.isin(record[rows], np.array(list(verdicts), dtype=np.uint64)) & ~accepted[rows]]
    labels = table["modality"].take(pa.array(meant)).to_pylist()
    for (row, sample, source), label in zip(_named(table, meant), labels):
        found = verdicts[int(record[row])]
        detail = f"called {label}, looks like {found.looks_like} (margin {found.margin:.2f})"
        if found.certain:
            content.reject(row, sample, source, "modality-disagrees", detail)
        else:
            content.doubt(sample, source, "modality-doubted", detail)


def _alignment(content: Content, table: pa.Table, accepted: np.ndarray, params: QualityParams, scores: alignment.Scores) -> None:
    """Of each source that params name, the worse part of its training pairs goes. Other splits are measured, not chosen by what a scorer likes."""
    judged = content.kept & ~accepted
    for row, sample, source in _named(table, alignment.poor(table, judged, params.alignment, scores)):
        detail = f"score {scores.score[row]:.3f} of 1.5: caption agreement {scores.agreement[row]:.3f}, similarity {scores.similarity[row]:.3f}"
        content.reject(row, sample, source, "poor-alignment", detail)


def _repeated_captions(content: Content, table: pa.Table, most: int) -> None:
    """One caption on more pictures of a source than `most` is told once: templates are legitimate, so nothing goes."""
    caption = index.column(table, "caption")
    rows = np.flatnonzero(content.kept & (caption != 0))
    groups, first, counts = np.unique(np.stack([index.column(table, "source")[rows].astype(np.uint64), caption[rows]]), axis=1, return_index=True, return_counts=True)
    for row, sample, source in _named(table, rows[first[counts > most]]):
        count = int(counts[first == np.flatnonzero(rows == row)[0]][0])
        content.doubt(sample, source, "caption-repeated", f"{count} pictures of the source have this one's caption")


def _named(table: pa.Table, rows: np.ndarray) -> list[tuple[int, str, str]]:
    """(row, sample's id, source) of these rows."""
    found = table.select(["id", "source"]).take(pa.array(rows, pa.int64()))
    return list(zip(rows.tolist(), found["id"].to_pylist(), found["source"].to_pylist()))
