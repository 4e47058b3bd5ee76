"""UniMedVL's training jsonl: a conversation a line, or an element of a JSON array, with the paths of its input and output pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corpus.readers import textfiles, tree, unimedvl
from corpus.readers.fields import MALFORMED, damaged, malformed
from corpus.readers.grouping import joined
from corpus.readers.source import Source
from corpus.record import Record, Rejection

_LINES = (".jsonl", ".jsonl.gz")


def recognises(path: Path) -> bool:
    """A .jsonl or .json file, gzipped or not, whose first rows have `message` and pictures or a task."""
    if not (textfiles.named(path, *_LINES, *textfiles.JSON) and path.is_file()):
        return False
    keys = textfiles.json_keys(path) if textfiles.is_array(path) else textfiles.line_keys(path)
    return "message" in keys and bool(keys & {"input_img", "output_img", "main_task_type"})


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records; neighbouring questions about one picture become one. Pictures lie below `image_root`, else beside the file."""
    return tree.read_each(source, _is_wanted, lambda file, source: joined(_rows(file, source)), "UniMedVL jsonl")


def _is_wanted(path: Path) -> bool:
    # A folder's other .json files are many things, such as boxes of its pictures.
    return textfiles.named(path, *_LINES) or recognises(path)


def _rows(file: Path, source: Source) -> Iterator[Record | Rejection]:
    root, source = source.image_root or file.parent, replace(source, split=source.split or tree.split(file, source))
    for number, found in _numbered(file):
        where = f"{source.place(file)}:{number}"
        try:
            row = textfiles.parsed(found) if isinstance(found, str) else found
            yield unimedvl.record(row, where, where, root, source, damaged(row))
        except MALFORMED as error:
            yield malformed(source, where, error)


def _numbered(file: Path) -> Iterator[tuple[int, object]]:
    """Lines that are not blank, from 1, which stay text so that one may be damaged; or elements of an array, from 0."""
    if textfiles.is_array(file):
        return enumerate(textfiles.json_rows(file))
    return ((number, line) for number, line in enumerate(textfiles.lines(file), start=1) if line.strip())
