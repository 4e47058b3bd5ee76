"""The files of a source, in a fixed order and never outside its folder."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from corpus import vocabulary
from corpus.readers.pictures import SUFFIXES
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

_ENDINGS = re.compile(r"(\.(parquet|jsonl?|tsv|gz))+$", re.IGNORECASE)

ReadFile = Callable[[Path, Source], Iterator[Record | Rejection]]


def walk(root: Path) -> Iterator[Path]:
    """The files of `folders`, one by one."""
    return (folder / name for folder, names in folders(root) for name in names)


def folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders from a folder down, each with its files' names, or the file itself; hidden ones are passed over, linked folders are not entered.

    A folder that may not be read is given as a file, after all others.
    """
    if not root.is_dir():
        yield root.parent, [root.name]
        return
    closed: list[OSError] = []
    for folder, inner, names in os.walk(root, onerror=closed.append):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))
    yield from ((path.parent, [path.name]) for path in (Path(error.filename) for error in closed))


def leaves(file: Path, source: Source) -> bool:
    """Whether a link leads out of the source."""
    return os.path.islink(file) and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(source.top))


def unread(file: Path, source: Source) -> Rejection | None:
    """Why a file or folder of the source cannot be read at all, if so."""

    def reject(reason: str, detail: str) -> Rejection:
        return Rejection(source.name, source.place(file), reason, detail)

    if leaves(file, source):
        return reject("path-outside-folder", "a link out of the source's folder")
    if os.path.isdir(file):
        return reject("unreadable-folder", "this machine does not let its files be listed")
    if os.path.isfile(file):
        readable = os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
        return None if readable else reject("unreadable-file", "this machine does not let it be read")
    return reject("unreadable-file", "it is gone, or its path is longer than this machine permits") if not os.path.lexists(file) else None


def read_each(source: Source, recognises: Callable[[Path], bool], read_file: ReadFile, wanted: str) -> Iterator[Record | Rejection]:
    """The records of a file, or of each recognised file of a folder; a damaged file, or one of nothing, gives one Rejection.

    Raises:
        FileNotFoundError: the folder holds no such file; the message tells what was `wanted`.
    """
    found = False
    for file in walk(source.path):
        # What is wrong with a picture is told of the record that names it.
        if file.suffix.lower() not in SUFFIXES and (closed := unread(file, source)):
            yield closed
        elif not source.path.is_dir() or (os.path.isfile(file) and recognises(file)):
            found, told = True, 0
            try:
                for told, item in enumerate(read_file(file, source), start=1):
                    yield item
                if not told:
                    raise Unreadable("unreadable-file", "it holds no record")
            except Unreadable as error:
                yield Rejection(source.name, source.place(file), error.reason, str(error))
    if not found:
        raise nothing(source, wanted)


def split(file: Path, source: Source) -> str | None:
    """The split that the file's name tells with its first or last word, or else a folder of the source.

    As published: test-00000-of-00001.parquet, vqa-rad-test.parquet, default/test/0000.parquet.
    """
    *folders, name = Path(source.place(file)).parts
    words = [word for word in re.split(r"[-_.\s]", _ENDINGS.sub("", name)) if re.search(r"[^\W\d]", word) and word != "of"]
    return next((split for word in (*words[:1], *words[-1:], *reversed(folders)) if (split := vocabulary.split(word))), None)


def nothing(source: Source, wanted: str) -> FileNotFoundError:
    """What to raise where a source holds nothing of its format."""
    return FileNotFoundError(f"{source.path} holds no {wanted}; docs/data.md describes the format")
