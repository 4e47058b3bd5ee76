"""Knowing a record again before its pictures are decoded."""

import hashlib
from dataclasses import fields, replace
from operator import attrgetter

from corpus.readers.pictures import PictureBytes, PictureFile
from corpus.record import Record, Unreadable

_PICTURES = ("images", "target")
_SAID = attrgetter(*(f.name for f in fields(Record) if f.name not in (*_PICTURES, "where")))


def fingerprint(record: Record, key: bytes) -> tuple[Record, int]:
    """The record with its encoded pictures in memory, and a 64-bit hash of all that is read for it.

    `key` stands for everything else the outcome depends on: parameters, salt, code. The hash is 0 for a record whose
    pictures cannot be had as bytes, so that it is always looked at.
    """
    openers = [*record.images, *([record.target] if record.target else [])]
    if not all(isinstance(opener, PictureBytes | PictureFile) for opener in openers):
        return record, 0
    try:
        loaded = [PictureBytes(opener.read(), opener.max_pixels) for opener in openers]
    except Unreadable:
        return record, 0
    whole = hashlib.blake2b(key=key[:64], digest_size=8)
    whole.update(repr(_SAID(record)).encode())
    for picture in loaded:
        whole.update(len(picture.data).to_bytes(8, "little"))
        whole.update(picture.data)
    images = tuple(loaded[: len(record.images)])
    return replace(record, images=images, target=loaded[-1] if record.target else None), int.from_bytes(whole.digest(), "little")
