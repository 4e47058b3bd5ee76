"""GMAI-MMBench: TSV with base64 pictures, lettered options and the letter of the answer."""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corpus import vocabulary
from corpus.readers import textfiles, tree
from corpus.readers.fields import MALFORMED, choice, damaged, kept, malformed, text
from corpus.readers.grouping import joined
from corpus.readers.pictures import cells, find
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

ATTRIBUTION = "GMAI-MMBench (Chen et al., NeurIPS 2024)"
_NEEDED = {"image", "question", "A", "B"}
_SLICES = ("category", "l2-category", "clinical VQA task", "department", "perceptual granularity", "original task", "index")
# Lines of one row.
_LONGEST = 1000


def recognises(path: Path) -> bool:
    """A .tsv or .tsv.gz file whose header has GMAI-MMBench's columns."""
    header = textfiles.head(path).partition("\n")[0].split("\t") if _is_named(path) else []
    return _NEEDED | {"l2-category"} <= {name.strip().strip('"').strip() for name in header}


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records; neighbouring questions about one picture become one. Rows without an answer (the TEST parts) have no turn."""
    return tree.read_each(source, _is_named, lambda file, source: joined(_rows(file, source)), "GMAI-MMBench TSV")


def _is_named(path: Path) -> bool:
    return textfiles.named(path, ".tsv", ".tsv.gz")


def _rows(file: Path, source: Source) -> Iterator[Record | Rejection]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field, and the default is 128 KiB
    source = replace(source, split=tree.split(file, source) or source.split or "test")
    table = _cells(textfiles.lines(file))
    try:
        header = [name.strip() for name in next(table, [])]
        if not _NEEDED <= set(header):
            raise Unreadable("unreadable-file", f"no column {', '.join(sorted(_NEEDED - set(header)))}; found {', '.join(header)[:200]}")
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise Unreadable("unreadable-file", f"its column {', '.join(twice)[:200]} is there more than once")
        for number, cells in enumerate(table):
            yield _record(dict(zip(header, cells)), f"{source.place(file)}:{number}", file, source)
    except csv.Error as error:
        raise Unreadable("unreadable-file", f"not a TSV file: {error}") from None


def _cells(lines: Iterator[str]) -> Iterator[list[str]]:
    """Rows of a table. A quotation mark that nobody closes is a character like any other: it swallows no rows."""
    waiting, taken, width = deque(), [], 0

    def following() -> Iterator[str]:
        while len(taken) < _LONGEST and (line := waiting.popleft() if waiting else next(lines, "")):
            taken.append(line)
            yield line

    while (cells := next(csv.reader(following(), delimiter="\t"), None)) is not None:
        if width and _swallowed(taken, cells, width):
            waiting.extendleft(reversed(taken[1:]))
            cells = taken[0].rstrip("\r\n").split("\t")
        width = width or len(cells)
        taken.clear()
        yield cells


def _swallowed(lines: list[str], cells: list[str], width: int) -> bool:
    """Whether a row of several lines is none: it has not the header's width, or each of its lines has."""
    return len(lines) > 1 and (len(cells) != width or all(line.count("\t") == width - 1 for line in lines))


def _record(row: dict, place: str, file: Path, source: Source) -> Record | Rejection:
    try:
        pictures = [find(cell, source.image_root or file.parent, source.max_pixels) for cell in cells(row["image"]) or [None]]
        turn, facts = choice(row["question"], {name: said for name, said in row.items() if re.fullmatch("[A-Z]", name)}, row.get("answer"), by_letter=True)
        return Record(
            id=place,
            where=place,
            images=tuple(opener for _, opener in pictures),
            patient=pictures[0][0],
            turns=(turn,) if turn else (),
            labels={"questions": [facts | kept(row, *_SLICES)] if turn else []} | damaged(*(turn or ())),
            left_out=0 if turn else 1,
            **source.known(modality=text(row.get("modality")), attribution=ATTRIBUTION, split=vocabulary.split(row.get("split"))),
        )
    except MALFORMED as error:
        return malformed(source, place, error)
