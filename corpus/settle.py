"""Checks that need to see everything: ids, contradictions, duplicates, and patients across splits.

All of them look at index columns alone. The copy in the more protected split stays (test before validation before
training), so that no picture and no patient of the test set is trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from corpus import index
from corpus.record import Rejection
from corpus.sample import SPLITS


@dataclass(frozen=True)
class Settled:
    """The rows that stay (a mask over the index), and why the others do not."""

    kept: np.ndarray
    aside: list[Rejection]


def settle(table: pa.Table) -> Settled:
    """Judge an index as a whole. The order of its rows decides between equals: the earlier one stays."""
    state = _State(table)
    for check in (_repeated_ids, _contradictions, _duplicates, _leaks):
        check(state)
    return Settled(state.kept, state.aside)


class _State:
    """The index as arrays, and what has been decided so far."""

    def __init__(self, table: pa.Table):
        self.table = table
        self.kept = np.ones(len(table), dtype=bool)
        self.aside: list[Rejection] = []
        codes = np.array([SPLITS.index(name) for name in _dictionary(table, "split")] or [0], dtype=np.int8)
        self.protection = codes[index.column(table, "split")]
        self.task = index.column(table, "task")
        self.picture, self.record = index.column(table, "picture"), index.column(table, "record")
        # A pair's target belongs to its source picture: only the pair as a whole is told apart.
        self.shows = (self.picture != 0) & ~self.is_task("interleaved")

    def is_task(self, name: str) -> np.ndarray:
        names = _dictionary(self.table, "task")
        return self.task == (names.index(name) if name in names else -1)

    def reject(self, rows: np.ndarray, reason: str, details: Iterator[str] | str) -> None:
        self.kept[rows] = False
        told = [details] * len(rows) if isinstance(details, str) else details
        ids, sources = (self.table[name].take(pa.array(rows)).to_pylist() for name in ("id", "source"))
        self.aside += [Rejection(source, identifier, reason, detail) for source, identifier, detail in zip(sources, ids, told)]

    def ids(self, rows: np.ndarray) -> list[str]:
        return self.table["id"].take(pa.array(rows)).to_pylist()


def _repeated_ids(state: _State) -> None:
    codes = index.column(state.table.set_column(0, "id", state.table["id"].combine_chunks().dictionary_encode()), "id")
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    rows = np.flatnonzero(~first)
    state.reject(rows, "duplicate-id", (f"id {name} occurs twice in the source" for name in state.ids(rows)))


def _contradictions(state: _State) -> None:
    """One picture, one question, two answers: nobody can tell which is right."""
    asked, owner = _flat(state.table, "asked")
    answered, _ = _flat(state.table, "answered")
    use = state.kept[owner]
    asked, answered, owner = asked[use], answered[use], owner[use]
    pairs = np.unique(np.stack([asked, answered]), axis=1)
    questions, answers = np.unique(pairs[0], return_counts=True)
    rows = np.unique(owner[np.isin(asked, questions[answers > 1])])
    state.reject(rows, "conflicting-labels", "the same picture has another answer to the same question elsewhere")


def _duplicates(state: _State) -> None:
    """Records that show a picture another record of a better protected split (or an earlier one) shows."""
    shown = np.flatnonzero(state.kept & state.shows)
    if len(shown):
        rows, owners = _lesser_copies(shown, state.picture[shown], state)
        state.reject(rows, "duplicate", (f"the same picture as {_record(i)} ({SPLITS[s]})" for i, s in zip(state.ids(owners), state.protection[owners])))


def _lesser_copies(rows: np.ndarray, group: np.ndarray, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """Of rows in groups: those that another record keeps out, and beside each the row that stays for its group."""
    order = np.lexsort((rows, -state.protection[rows], group))
    rows, group = rows[order], group[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    owners = np.repeat(rows[starts], np.diff(np.r_[starts, len(rows)]))
    lesser = state.record[rows] != state.record[owners]
    by_row = np.argsort(rows[lesser])
    return rows[lesser][by_row], owners[lesser][by_row]


def _leaks(state: _State) -> None:
    patients = state.table["patient"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    protected = np.zeros(patients.max(initial=-1) + 1, dtype=np.int8)
    np.maximum.at(protected, patients[state.kept], state.protection[state.kept])
    rows = np.flatnonzero(state.kept & (state.protection < protected[patients]))
    state.reject(rows, "split-leakage", (f"the same patient or group is in {SPLITS[s]}" for s in protected[patients[rows]]))


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the row each belongs to."""
    lists = table[name].combine_chunks()
    counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(counts)), counts)


def _dictionary(table: pa.Table, name: str) -> list[str]:
    return table[name].combine_chunks().dictionary.to_pylist()


def _record(identifier: str) -> str:
    return identifier.rpartition("#")[0] or identifier
