"""VQA-RAD: the published JSON with its folder of pictures, or the Hugging Face Parquet."""

from collections.abc import Iterator
from pathlib import Path

from corpus.readers import image_questions, textfiles, tree
from corpus.readers.fields import MALFORMED, damaged, kept, malformed, shown, turn
from corpus.readers.pictures import PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Turn

LICENSE = "CC0-1.0"
ATTRIBUTION = "VQA-RAD (Lau et al., Scientific Data 2018)"
_FOLDERS = ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images", "imgs")


def recognises(path: Path) -> bool:
    """The JSON by its keys; a Parquet file of image, question and answer by "vqa-rad" in its path."""
    if textfiles.named(path, *textfiles.JSON):
        return {"image_name", "phrase_type", "question"} <= textfiles.json_keys(path)
    return image_questions.recognises(path, "vqa-rad")


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record a picture and split. The picture's name (its content, in Parquet) is its patient: all test pictures are in train too."""
    return tree.read_each(source, lambda file: textfiles.named(file, *textfiles.JSON, ".parquet"), _read_file, "VQA-RAD file")


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    if textfiles.named(file, ".parquet"):
        yield from image_questions.records(file, source, license=source.license or LICENSE, attribution=ATTRIBUTION)
        return
    by_picture: dict[tuple[str, str], list[tuple[dict, Turn | None]]] = {}
    named = tree.split(file, source) or "train"
    for number, row in enumerate(textfiles.json_rows(file)):
        try:
            asked = row, turn(row.get("question"), row.get("answer"), row.get("answer_type"))
            by_picture.setdefault((str(row["image_name"]).strip(), _split(row, named)), []).append(asked)
        except MALFORMED as error:
            yield malformed(source, f"{source.place(file)}:{number}", error)
    root = source.image_root or next((file.parent / name for name in _FOLDERS if (file.parent / name).is_dir()), file.parent)
    for (picture, split), rows in by_picture.items():
        yield _record(picture, split, rows, root, source, f"{source.place(file)}:{shown(picture)}:{split}")


def _split(row: dict, named: str) -> str:
    """Test where the row says so. Where it says nothing, `named`: the field's trainset.json and testset.json have no `test_` in their rows."""
    return "test" if str(row["phrase_type"]).strip().startswith("test") else named


def _record(picture: str, split: str, rows: list[tuple[dict, Turn | None]], root: Path, source: Source, place: str) -> Record:
    asked = [(row, t) for row, t in rows if t]
    facts = [{"question": t.question} | kept(row, "qid", "phrase_type", "question_type") for row, t in asked]
    return Record(
        id=place,
        where=place,
        images=(PictureFile(root, picture, source.max_pixels),),
        patient=picture,
        turns=tuple(t for _, t in asked),
        labels=kept(rows[0][0], "image_organ") | {"questions": facts} | damaged(*(t for _, t in asked)),
        left_out=len(rows) - len(asked),
        **source.known(license=source.license or LICENSE, attribution=ATTRIBUTION, split=split),
    )
