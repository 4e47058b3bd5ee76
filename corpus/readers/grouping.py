"""Rows about one picture become one record, so that its questions stay together and are not taken for duplicates."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from corpus.record import Record, Rejection


def joined(found: Iterable[Record | Rejection]) -> Iterator[Record | Rejection]:
    """Neighbouring records of one picture as one; only one record is held."""
    held = None
    for item in found:
        if isinstance(held, Record) and isinstance(item, Record) and _together(held, item):
            held = _join(held, item)
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield held


def _together(one: Record, other: Record) -> bool:
    def of(record: Record) -> tuple:
        # A patient may have several pictures, one after the other.
        return record.patient, record.split, record.modality, record.license, record.images

    return of(one) == of(other) and len(one.images) == 1 and not (one.target or other.target) and not (one.caption and other.caption)


def _join(one: Record, other: Record) -> Record:
    questions = [*one.labels.get("questions", []), *other.labels.get("questions", [])]
    labels = other.labels | one.labels | ({"questions": questions} if questions else {})
    return replace(one, caption=one.caption or other.caption, turns=one.turns + other.turns, labels=labels, left_out=one.left_out + other.left_out)
