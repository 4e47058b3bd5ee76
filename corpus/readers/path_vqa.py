"""PathVQA as Hugging Face publishes it: Parquet files of image, question and answer."""

from collections.abc import Iterator
from pathlib import Path

from corpus.readers import image_questions, textfiles, tree
from corpus.readers.source import Source
from corpus.record import Record, Rejection

ATTRIBUTION = "PathVQA (He et al., 2020)"


def recognises(path: Path) -> bool:
    """A Parquet file of image, question and answer with "path-vqa" in its path."""
    return image_questions.recognises(path, "path-vqa")


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record a picture. Licence and modality are the source's: the pictures are their publishers', and not all are slides."""
    return tree.read_each(source, lambda file: textfiles.named(file, ".parquet"), _read_file, "Parquet file")


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    return image_questions.records(file, source, attribution=ATTRIBUTION)
