"""Knowing a record again before its pictures are decoded."""

import hashlib
from dataclasses import fields, replace
from operator import attrgetter

from corpus.readers.pictures import PictureBytes, PictureFile
from corpus.record import Opener, Record, Unreadable

_PICTURES = ("images", "target")
# Bits of a row's origin that tell how many samples its record gave.
COUNT = 0xF
_SAID = attrgetter(*(f.name for f in fields(Record) if f.name not in (*_PICTURES, "where", "linked")))


def fingerprint(record: Record, key: bytes) -> tuple[int, list[bytes]]:
    """A hash of all that is read for a record (64 bits, those of `COUNT` left free), and its encoded pictures, which `with_pictures` puts into it.

    `key` stands for everything else the outcome depends on: parameters, salt, code. The hash is 0, and there are no
    pictures, for a record that has some which cannot be had as bytes: it is always looked at.
    """
    openers = _openers(record)
    if not all(isinstance(opener, PictureBytes | PictureFile) for opener in openers):
        return 0, []
    try:
        pictures = [opener.read() for opener in openers]
    except Unreadable:
        return 0, []
    whole = hashlib.sha256(key)
    whole.update(repr(_SAID(record)).encode())
    for picture in pictures:
        whole.update(len(picture).to_bytes(8, "little"))
        whole.update(picture)
    return int.from_bytes(whole.digest()[:8], "little") & ~COUNT, pictures


def origin(read: int, samples: int) -> int:
    """What is kept with each sample of a record: its fingerprint and how many they are, so that some of them are not taken for all. 0 without a fingerprint."""
    return read | samples if read and samples <= COUNT else 0


def with_pictures(record: Record, pictures: list[bytes]) -> Record:
    """The record with its encoded pictures in memory."""
    if not pictures:
        return record
    loaded = [PictureBytes(data, opener.max_pixels) for data, opener in zip(pictures, _openers(record))]
    return replace(record, images=tuple(loaded[: len(record.images)]), target=loaded[-1] if record.target else None)


def _openers(record: Record) -> tuple[Opener, ...]:
    return (*record.images, record.target) if record.target else record.images
