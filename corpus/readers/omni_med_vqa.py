"""OmniMedVQA: QA_information/<access>/<dataset>.json beside Images/<dataset>/."""

from collections.abc import Iterator
from pathlib import Path

from corpus.readers import textfiles, tree
from corpus.readers.fields import MALFORMED, choice, damaged, kept, malformed, shown, text
from corpus.readers.pictures import PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Turn

ATTRIBUTION = "OmniMedVQA (Hu et al., CVPR 2024)"
_OPTION = "option_"
# A row, its question and what scoring needs of it.
_Asked = tuple[dict, Turn | None, dict]


def recognises(path: Path) -> bool:
    """A .json whose rows have OmniMedVQA's keys."""
    return _is_named(path) and {"gt_answer", "image_path", "option_A"} <= textfiles.json_keys(path)


def read(source: Source) -> Iterator[Record | Rejection]:
    """A record a picture of each dataset; a benchmark, so the test split where the source says no other."""
    return tree.read_each(source, _is_named, _read_file, "OmniMedVQA question file")


def _is_named(path: Path) -> bool:
    return textfiles.named(path, *textfiles.JSON)


def picture_root(file: Path, source: Source) -> Path:
    """The folder that picture paths start from, within the source if none is named."""
    above = (folder for folder in file.parents[:4] if folder.is_relative_to(source.top))
    return source.image_root or next((folder for folder in above if (folder / "Images").is_dir()), file.parent)


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    root = picture_root(file, source)
    by_picture: dict[str, list[_Asked]] = {}
    for number, row in enumerate(textfiles.json_rows(file)):
        try:
            asked = row, *choice(row.get("question"), _options(row), row.get("gt_answer"), by_letter=False)
            by_picture.setdefault(str(row["image_path"]).strip(), []).append(asked)
        except MALFORMED as error:
            yield malformed(source, f"{source.place(file)}:{number}", error)
    for picture, asked in by_picture.items():
        place = f"{source.place(file)}:{shown(picture)}"
        try:
            yield _record(picture, asked, root, source, place)
        except MALFORMED as error:
            yield malformed(source, place, error)


def _record(picture: str, asked: list[_Asked], root: Path, source: Source, place: str) -> Record:
    first = asked[0][0]
    facts = [facts | kept(row, "question_id", "question_type", "dataset") for row, turn, facts in asked if turn]
    turns = tuple(turn for _, turn, _ in asked if turn)
    return Record(
        id=place,
        where=place,
        images=(PictureFile(root, picture, source.max_pixels),),
        patient=picture,
        turns=turns,
        labels=kept(first, "dataset") | {"questions": facts} | damaged(*turns),
        left_out=len(asked) - len(turns),
        # One published row says `modality`.
        **source.known(modality=text(first.get("modality_type") or first.get("modality")), attribution=ATTRIBUTION, split=source.split or "test"),
    )


def _options(row: dict) -> dict[str, object]:
    return {name.removeprefix(_OPTION): said for name, said in row.items() if name.startswith(_OPTION)}
