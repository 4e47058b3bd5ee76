"""UniMedVL-5M's Parquet: the training rows with base64 pictures, or with paths below a folder of the owner's pictures.

Any other Parquet table of pictures with text is read in the same way when its columns are named.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corpus.readers import parquet, textfiles, tree, unimedvl
from corpus.readers.fields import MALFORMED, damaged, malformed
from corpus.readers.grouping import joined
from corpus.readers.source import Source
from corpus.record import Record, Rejection

# Besides the training row's own fields.
COLUMNS = (*unimedvl.FIELDS, "question", "answer", "caption", "license", "attribution", "split", "patient")


def recognises(path: Path) -> bool:
    """A Parquet file with `message` and pictures."""
    return parquet.has_columns(path, "message", "input_img") or parquet.has_columns(path, "message", "output_img")


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records; neighbouring questions about one picture become one. Paths start at `image_root`, else at the file's folder.

    Raises:
        MissingColumn: no column for text, or none for what `columns` names.
    """
    return tree.read_each(source, lambda file: textfiles.named(file, ".parquet"), lambda file, source: joined(_rows(file, source)), "Parquet file")


def _rows(file: Path, source: Source) -> Iterator[Record | Rejection]:
    names = _names(file, source)
    root, source = source.image_root or file.parent, replace(source, split=source.split or tree.split(file, source))
    for number, found in enumerate(parquet.rows(file, list(dict.fromkeys(names.values())))):
        where = f"{source.place(file)}:{number}"
        try:
            row = {ours: found[theirs] for ours, theirs in names.items()}
            row |= _message(row) | _caption(row)
            yield unimedvl.record(row, where, where, root, source, damaged(row.get("message"), row.get("caption")))
        except MALFORMED as error:
            yield malformed(source, where, error)


def _names(file: Path, source: Source) -> dict[str, str]:
    """Their column for each of ours that the file has."""
    unknown = sorted(set(source.columns) - set(COLUMNS))
    if unknown:
        raise parquet.MissingColumn(f"{', '.join(unknown)}: not a column that is read; these are: {', '.join(COLUMNS)}")
    there = parquet.columns(file)
    names = {ours: source.columns.get(ours, ours) for ours in COLUMNS if ours in source.columns or ours in there}
    if not names.keys() & {"message", "answer", "caption"}:
        raise parquet.MissingColumn(f"{file.name} has no column message, nor question and answer, nor caption; name them. Its columns are {', '.join(there)}")
    return names


def _message(row: dict) -> dict:
    """A conversation written as JSON, or that which a question with its answer stands for."""
    if isinstance(row.get("message"), str):
        return {"message": textfiles.parsed(row["message"])}
    if row.get("message") is not None or row.get("question") is None:
        return {}
    return {"message": [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row.get("answer")}]}


def _caption(row: dict) -> dict:
    """The first of several captions by name, which the published text-to-image Parquet has as JSON."""
    try:
        named = textfiles.parsed(row["caption"])
    except MALFORMED:  # no JSON: a plain caption, or none
        return {}
    return {"caption": next((said for said in named.values() if said), None)} if isinstance(named, dict) else {}
