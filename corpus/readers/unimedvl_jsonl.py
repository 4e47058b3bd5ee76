"""UniMedVL's training jsonl: a conversation a line, with the paths of its input and output pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corpus.readers import textfiles, tree, unimedvl
from corpus.readers.fields import MALFORMED, damaged, malformed
from corpus.readers.grouping import joined
from corpus.readers.source import Source
from corpus.record import Record, Rejection


def recognises(path: Path) -> bool:
    """A .jsonl or .jsonl.gz file whose first lines have `message` and pictures or a task."""
    keys = textfiles.line_keys(path) if _is_named(path) and path.is_file() else set()
    return "message" in keys and bool(keys & {"input_img", "output_img", "main_task_type"})


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records; neighbouring questions about one picture become one. Pictures lie below `image_root`, else beside the file."""
    return tree.read_each(source, _is_named, lambda file, source: joined(_rows(file, source)), "UniMedVL jsonl")


def _is_named(path: Path) -> bool:
    return textfiles.named(path, ".jsonl", ".jsonl.gz")


def _rows(file: Path, source: Source) -> Iterator[Record | Rejection]:
    root, source = source.image_root or file.parent, replace(source, split=source.split or tree.split(file, source))
    for number, line in enumerate(textfiles.lines(file), start=1):
        if line.strip():
            where = f"{source.place(file)}:{number}"
            try:
                row = textfiles.parsed(line)
                yield unimedvl.record(row, where, where, root, source, damaged(row))
            except MALFORMED as error:
                yield malformed(source, where, error)
