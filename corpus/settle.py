"""Checks that need to see everything: ids, contradictions, duplicates, and patients across splits.

All of them look at index columns alone. The copy in the more protected split stays (test before validation before
training), so that no picture and no patient of the test set is trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from corpus import index, near
from corpus.record import Rejection
from corpus.sample import SPLITS

# Judgements that a person may overrule; the other reasons are rules.
_ARGUABLE = ("near-duplicate", "conflicting-labels")


@dataclass(frozen=True)
class Settled:
    """The rows that stay (a mask over the index), and why the others do not."""

    kept: np.ndarray
    aside: list[Rejection]


def settle(table: pa.Table, near_distance: int, accepted: np.ndarray | None = None) -> Settled:
    """Judge an index as a whole. The order of its rows decides between equals: the earlier one stays.

    `accepted` is a mask of rows that a person has let in: they are held back by rules alone, not by judgements.
    """
    state = _State(table, accepted)
    _repeated_ids(state)
    _contradictions(state)
    _duplicates(state)
    _duplicate_texts(state)
    _shared_pictures(state)
    _near_duplicates(state, near_distance)
    _leaks(state)
    return Settled(state.kept, state.aside)


class _State:
    """The index as arrays, and what has been decided so far."""

    def __init__(self, table: pa.Table, accepted: np.ndarray | None):
        self.table = table
        self.accepted = np.zeros(len(table), dtype=bool) if accepted is None else accepted
        self.kept = np.ones(len(table), dtype=bool)
        self.aside: list[Rejection] = []
        codes = np.array([SPLITS.index(name) for name in _dictionary(table, "split")] or [0], dtype=np.int8)
        self.protection = codes[index.column(table, "split")]
        self.task = index.column(table, "task")
        self.look = index.column(table, "phash"), index.column(table, "dhash")
        self.source, self.patient = index.column(table, "source"), index.column(_encoded(table, "patient"), "patient")
        self.picture, self.record = index.column(table, "picture"), index.column(table, "record")
        # A pair's target belongs to its source picture: only the pair as a whole is told apart.
        self.shows = (self.picture != 0) & ~self.is_task("interleaved")

    def is_task(self, name: str) -> np.ndarray:
        return index.of_task(self.table, name)

    @cached_property
    def sayings(self) -> np.ndarray:
        """64-bit hashes of what rows say of which picture, each for its own source, patient, split and task."""
        asked, owner = _flat(self.table, "asked")
        questions = np.zeros(len(self.kept), dtype=np.uint64)
        np.add.at(questions, owner, asked)
        parts = self.picture, self.source, self.patient, self.protection, self.task, questions, index.column(self.table, "caption")
        said = np.zeros(len(self.kept), dtype=np.uint64)
        for part in parts:
            # Multiplied by an odd number (the golden ratio's) and folded, so that no two sums of parts are easily the same.
            said = (said ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            said ^= said >> np.uint64(32)
        return said

    def reject(self, rows: np.ndarray, reason: str, details: Iterator[str] | str) -> None:
        self.kept[rows] = False
        arguable = reason in _ARGUABLE
        told = [details] * len(rows) if isinstance(details, str) else details
        ids, sources = (self.table[name].take(pa.array(rows)).to_pylist() for name in ("id", "source"))
        self.aside += [Rejection(source, identifier, reason, detail, record_of(identifier) if arguable else "") for source, identifier, detail in zip(sources, ids, told)]

    def ids(self, rows: np.ndarray) -> list[str]:
        return self.table["id"].take(pa.array(rows)).to_pylist()


def _repeated_ids(state: _State) -> None:
    codes = index.column(_encoded(state.table, "id"), "id")
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
    rows = rows[~state.accepted[rows]]
    state.reject(rows, "conflicting-labels", "the same picture has another answer to the same question elsewhere")


def _duplicates(state: _State) -> None:
    """Records that show a picture another record of a better protected split (or an earlier one) shows.

    What a source says more of a patient's picture in the same split, such as a further question, is no copy.
    """
    shown = np.flatnonzero(state.kept & state.shows)
    if len(shown):
        rows, owners = _lesser_copies(shown, state.picture[shown], state)
        state.reject(rows, "duplicate", (f"the same picture as {record_of(i)} ({SPLITS[s]})" for i, s in zip(state.ids(owners), state.protection[owners])))


def _duplicate_texts(state: _State) -> None:
    """Records without a picture that say word for word what another says."""
    caption = index.column(state.table, "caption")
    texts = np.flatnonzero(state.kept & state.is_task("text") & (caption != 0))
    if len(texts):
        rows, owners = _lesser_copies(texts, caption[texts], state)
        state.reject(rows, "duplicate", (f"the same words as {record_of(i)} ({SPLITS[s]})" for i, s in zip(state.ids(owners), state.protection[owners])))


def _shared_pictures(state: _State) -> None:
    """Records of several pictures and others that share one with them: the better protected split has it for itself."""
    several, owner = _flat(state.table, "others")
    alone = np.flatnonzero(state.shows)
    alone = alone[np.isin(state.picture[alone], several)]
    pictures, rows = np.concatenate([several, state.picture[alone]]), np.concatenate([owner, alone])
    pictures, rows = pictures[state.kept[rows]], rows[state.kept[rows]]
    names, which = np.unique(pictures, return_inverse=True)
    protected = np.zeros(len(names), dtype=np.int8)
    np.maximum.at(protected, which, state.protection[rows])
    leaked, first = np.unique(rows[state.protection[rows] < protected[which]], return_index=True)
    splits = protected[which][state.protection[rows] < protected[which]][first]
    state.reject(leaked, "split-leakage", (f"one of its pictures is also in {SPLITS[s]}" for s in splits))


def _near_duplicates(state: _State, distance: int) -> None:
    """Look-alikes of another patient in another split or source. Slices of one patient look alike by nature."""
    shown = np.flatnonzero(state.kept & state.shows & (state.look[0] != 0))
    # One row a picture is enough to compare.
    rows = shown[np.unique(state.picture[shown], return_index=True)[1]]
    first, second = rows[near.pairs(state.look[0][rows], state.look[1][rows], distance)].T
    elsewhere = (state.protection[first] != state.protection[second]) | (state.source[first] != state.source[second])
    apart = elsewhere & (state.patient[first] != state.patient[second])
    lesser, better = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
    swap = (state.protection[lesser] > state.protection[better]) | ((state.protection[lesser] == state.protection[better]) & (lesser < better))
    lesser, better = np.where(swap, better, lesser), np.where(swap, lesser, better)
    pictures, which = np.unique(state.picture[lesser], return_index=True)
    like = dict(zip(pictures.tolist(), better[which].tolist()))
    rejected = shown[np.isin(state.picture[shown], pictures) & ~state.accepted[shown]]
    owners = np.array([like[picture] for picture in state.picture[rejected].tolist()], dtype=np.int64)
    state.reject(rejected, "near-duplicate", (f"looks like {record_of(i)} ({SPLITS[s]})" for i, s in zip(state.ids(owners), state.protection[owners])))


def _lesser_copies(rows: np.ndarray, group: np.ndarray, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """Of rows in groups: those that another record keeps out, and beside each the row that stays for its group."""
    order = np.lexsort((rows, -state.protection[rows], group))
    rows, group = rows[order], group[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    owners = np.repeat(rows[starts], np.diff(np.r_[starts, len(rows)]))
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(state.sayings[rows], return_index=True)[1]] = True
    beside = np.all([values[rows] == values[owners] for values in (state.source, state.patient, state.protection)], axis=0)
    # An id may be two records': of one record alone all samples are a patient's, in one split.
    lesser = ~(beside & (first | (state.record[rows] == state.record[owners])))
    by_row = np.argsort(rows[lesser])
    return rows[lesser][by_row], owners[lesser][by_row]


def _leaks(state: _State) -> None:
    protected = np.zeros(state.patient.max(initial=-1) + 1, dtype=np.int8)
    np.maximum.at(protected, state.patient[state.kept], state.protection[state.kept])
    rows = np.flatnonzero(state.kept & (state.protection < protected[state.patient]))
    state.reject(rows, "split-leakage", (f"the same patient or group is in {SPLITS[s]}" for s in protected[state.patient[rows]]))


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the row each belongs to."""
    lists = table[name].combine_chunks()
    counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(counts)), counts)


def _encoded(table: pa.Table, name: str) -> pa.Table:
    """Words of a column as codes."""
    return table.select([name]).set_column(0, name, table[name].combine_chunks().dictionary_encode())


def _dictionary(table: pa.Table, name: str) -> list[str]:
    return table[name].combine_chunks().dictionary.to_pylist()


def record_of(identifier: str) -> str:
    """The record of a sample's id."""
    return identifier.rpartition("#")[0] or identifier
