"""SLAKE's published layout: train.json, validate.json and test.json beside imgs/xmlabN/source.jpg."""

from collections.abc import Iterator
from pathlib import Path

from corpus import vocabulary
from corpus.readers import textfiles, tree
from corpus.readers.fields import MALFORMED, NotARecord, damaged, kept, language, malformed, shown, text, turn
from corpus.readers.pictures import PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Turn

LICENSE = "CC-BY-4.0"
ATTRIBUTION = "SLAKE (Liu et al., ISBI 2021) <https://www.med-vqa.com/slake/>"
_SPLITS = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}
# Of the pictures; some re-saves have it in their names, too.
_FOLDER = "imgs"


def recognises(path: Path) -> bool:
    """A train, validate or test .json whose rows have SLAKE's keys."""
    return _is_named(path) and {"img_name", "q_lang", "question"} <= textfiles.json_keys(path)


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record a picture and split, with its questions in the languages kept. The picture's folder is its patient."""
    return tree.read_each(source, _is_named, _read_file, "SLAKE question file")


def _is_named(path: Path) -> bool:
    return _split(path) is not None


def _split(path: Path) -> str | None:
    """The split that a question file is named after, which also tells it from the picture folders' own."""
    name = path.name.casefold()
    return next((_SPLITS.get(name.removesuffix(ending)) for ending in textfiles.JSON if name.endswith(ending)), None)


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    by_picture: dict[str, list[tuple[dict, Turn | None]]] = {}
    for number, row in enumerate(textfiles.json_rows(file)):
        try:
            name, asked = _name(row), _turn(row, source)
            by_picture.setdefault(name, []).append((row, asked))
        except MALFORMED as error:
            yield malformed(source, f"{source.place(file)}:{number}", error)
    for picture, rows in by_picture.items():
        try:
            yield _record(picture, rows, file, source)
        except MALFORMED as error:
            yield malformed(source, f"{source.place(file)}:{shown(picture)}", error)


def _name(row: dict) -> str:
    if not (isinstance(row["img_name"], str) and row["img_name"].strip()):
        raise NotARecord("no picture: `img_name` is not a path")
    # The picture's folder is its patient, on Windows too.
    return row["img_name"].strip().replace("\\", "/")


def _turn(row: dict, source: Source) -> Turn | None:
    """Its question, if it is complete and in a language kept."""
    spoken = language(row.get("q_lang")) in source.languages
    return turn(row.get("question"), row.get("answer"), row.get("answer_type")) if spoken else None


def _record(picture: str, rows: list[tuple[dict, Turn | None]], file: Path, source: Source) -> Record:
    first, asked = rows[0][0], [(row, t) for row, t in rows if t]
    beside = file.parent / _FOLDER
    root = source.image_root or (beside if beside.is_dir() and Path(picture).parts[0] != _FOLDER else file.parent)
    place = f"{source.place(file)}:{shown(picture)}"
    facts = [{"question": t.question} | kept(row, "qid", "q_lang", "content_type", "base_type", "triple") for row, t in asked]
    return Record(
        id=place,
        where=place,
        images=(PictureFile(root, picture, source.max_pixels),),
        patient=Path(picture).parent.name or Path(picture).stem,
        turns=tuple(t for _, t in asked),
        labels=kept(first, "location") | {"questions": facts} | _boxes(root, picture) | damaged(*(t for _, t in asked)),
        left_out=len(rows) - len(asked),
        **source.known(
            modality=_modality(first),
            license=source.license or LICENSE,
            attribution=ATTRIBUTION,
            split=_split(file),
        ),
    )


def _modality(row: dict) -> str | None:
    """The published one; an X-ray of the chest is a CXR."""
    named, location = text(row.get("modality")), (text(row.get("location")) or "").casefold()
    return "CXR" if vocabulary.modality(named) == "X-ray" and location.startswith(("lung", "chest")) else named


def _boxes(root: Path, picture: str) -> dict:
    """Boxes of detection.json: (left, top, width, height) in pixels of the published picture. Those without an area are left."""
    try:
        file = PictureFile(root, str(Path(picture).with_name("detection.json")), 0).path()
        named = [(name, box) for entry in textfiles.json_rows(file) for name, box in entry.items()]
        return {"boxes": [[name, *box] for name, box in named if len(box) == 4 and min(box[2:]) > 0]}
    except (OSError, *MALFORMED):
        return {}
