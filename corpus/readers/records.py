"""The house's simplest format: a folder with `records.jsonl`, one picture a line (see docs/data.md)."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image as Pillow

from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable
from corpus.sample import Turn

FILE = "records.jsonl"


def recognises(path: Path) -> bool:
    """A folder that holds `records.jsonl`, or such a file itself."""
    return (path / FILE).is_file() or path.name == FILE


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records of the folder or file.

    Raises:
        FileNotFoundError: there is no records.jsonl.
    """
    file = source.path / FILE if source.path.is_dir() else source.path
    if not file.exists():
        raise FileNotFoundError(f"{source.path} holds no {FILE}; docs/data.md describes the format")
    root = file.parent.resolve()
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, f"{file.name}:{number}", root, source)


def _parse(line: str, where: str, root: Path, source: Source) -> Record | Rejection:
    try:
        fields = json.loads(line)
        picture = fields["image"]
        identifier = str(fields.get("id") or picture)
        questions = fields.get("qa") or []
        kept = [q for q in questions if (q.get("lang") or "en") in source.languages]
        return Record(
            id=identifier,
            where=where if not isinstance(picture, str) else f"{where} {_shown(picture)}",
            images=(partial(open_image, root, picture, source.max_pixels),),
            modality=fields.get("modality") or source.modality,
            source=str(fields.get("source") or source.name),
            license=fields.get("license") or source.license,
            attribution=str(fields.get("attribution") or source.attribution),
            split=fields.get("split"),
            patient=str(fields.get("patient") or fields.get("group") or identifier),
            caption=_text(fields.get("caption")),
            turns=tuple(turn for q in kept if (turn := _turn(q))),
            labels=fields.get("labels") or {},
            left_out=len(questions) - len(kept),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        missing = f"no field {error}" if isinstance(error, KeyError) else type(error).__name__
        return Rejection(source.name, where, "malformed-record", f"not a record: {missing}")


def open_image(root: Path, relative: str, max_pixels: int) -> Pillow.Image:
    """The decoded picture at a path inside the folder.

    Raises:
        Unreadable: with reason path-outside-folder, missing-image, too-large or unreadable-image.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise Unreadable("path-outside-folder", "the image path leaves the source's folder")
    if not path.is_file():
        raise Unreadable("missing-image", "no such file")
    try:
        picture = Pillow.open(path)
        if picture.width * picture.height > max_pixels:
            raise Unreadable("too-large", f"{picture.width}x{picture.height} px exceed the limit of {max_pixels:,} pixels")
        picture.load()
    except Unreadable:
        raise
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise Unreadable("unreadable-image", f"cannot be decoded ({type(error).__name__})") from None
    return picture


def _turn(fields: dict) -> Turn | None:
    question, answer = _text(fields.get("question")), _text(fields.get("answer"))
    kind = str(fields.get("answer_type") or "OPEN").strip().upper()
    return Turn(question, answer, "CLOSED" if kind == "CLOSED" else "OPEN") if question and answer else None


def _text(value: object) -> str | None:
    """Plain text of a field that may be a number, blank, or the word NULL."""
    text = " ".join(str(value).split()) if value is not None else ""
    return None if text.upper() in ("", "NULL", "NONE", "-") and not isinstance(value, int) else text


def _shown(relative: str) -> str:
    # A path that leaves the folder may tell about the machine: only its name is kept.
    return relative if not relative.startswith(("/", "..")) else Path(relative).name
