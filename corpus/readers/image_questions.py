"""Parquet files of image, question and answer, as Hugging Face publishes VQA-RAD and PathVQA: one row a question."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from corpus.readers import parquet, tree
from corpus.readers.fields import NotARecord, damaged, malformed, single, turn
from corpus.readers.pictures import find
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Turn

_COLUMNS = ("image", "question", "answer")
# Folders above a file whose names may tell the set, as in Hugging Face's cache: datasets--<owner>--<set>/snapshots/<hash>/data/test-0.parquet.
_FOLDERS_ABOVE = 5
# How the sets are called there; a folder of radiology questions is not yet VQA-RAD, which has a licence.
_CALLED = {"vqa-rad": re.compile(r"vqa[\W\d_]*rad(?![a-z])"), "path-vqa": re.compile(r"path[\W\d_]*vqa")}


def recognises(path: Path, name: str) -> bool:
    """Such a file of which its own name or else the nearest folder that names a set names this one; the columns alone don't tell them apart."""
    parts = (part.casefold() for part in reversed(path.parts[-_FOLDERS_ABOVE - 1 :]))
    named = ([known for known, called in _CALLED.items() if called.search(part)] for part in parts)
    return next(filter(None, named), None) == [name] and parquet.has_columns(path, *_COLUMNS)


def records(file: Path, source: Source, **said: object) -> Iterator[Record | Rejection]:
    """A record a picture, with all its questions.

    The file is read twice: for the questions of each picture, then for the pictures, so that only words are held.
    A picture is known by the hash of its encoded bytes. The split is that of the file's name or folder.

    Raises:
        MissingColumn: image, question or answer is not there.
    """
    asked: dict[str, list[Turn | None]] = {}
    for number, row in enumerate(parquet.rows(file, list(_COLUMNS))):
        try:
            key, question = _key(row["image"]), turn(row["question"], row["answer"])
            asked.setdefault(key, []).append(question)
        except NotARecord as error:
            yield malformed(source, f"{source.place(file)}:{number}", error)
    split = tree.split(file, source)
    for number, row in enumerate(parquet.rows(file, ["image"])):
        turns = asked.pop(_key(row["image"]), None) if _data(row["image"]) else None
        if turns is not None:
            yield _record(row["image"], turns, f"{source.place(file)}:{number}", file, source, said | {"split": split})


def _data(cell: object) -> object:
    cell = single(cell)
    return cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell


def _key(cell: object) -> str:
    """Of a picture. Raises NotARecord: there is none, and rows without one are not about the same one."""
    data = _data(cell)
    if not data:
        raise NotARecord("no picture: neither a path nor encoded bytes")
    return hashlib.sha256(data if isinstance(data, bytes) else str(data).encode()).hexdigest()[:32]


def _record(cell: object, asked: list[Turn | None], place: str, file: Path, source: Source, said: dict) -> Record | Rejection:
    try:
        key, opener = find(cell, source.image_root or file.parent, source.max_pixels)
    except NotARecord as error:
        return malformed(source, place, error)
    turns = tuple(t for t in asked if t)
    left_out = len(asked) - len(turns)
    return Record(id=place, where=place, images=(opener,), patient=key, turns=turns, labels=damaged(*turns), left_out=left_out, **source.known(**said))
