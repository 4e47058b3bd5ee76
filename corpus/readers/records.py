"""The house's simplest format: a folder with `records.jsonl`, one picture a line (see docs/data.md)."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from corpus import vocabulary
from corpus.readers import textfiles, tree
from corpus.readers.fields import MALFORMED, NotARecord, damaged, language, malformed, shown, text, turn, words
from corpus.readers.pictures import PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

# Names of patients (0) and groups (1), and the patients of all that belongs with each, by name.
_Name = tuple[int, str]
_Linked = dict[_Name, tuple[str, ...]]
_FILES = ("records.jsonl", "records.jsonl.gz")


def recognises(path: Path) -> bool:
    """A file called `records.jsonl`, gzipped or not."""
    return path.name.casefold() in _FILES


def read(source: Source) -> Iterator[Record | Rejection]:
    """Records of the folder or file.

    Raises:
        FileNotFoundError: there is no records.jsonl.
    """
    return tree.read_each(source, recognises, _read_file, _FILES[0])


def _read_file(file: Path, source: Source) -> Iterator[Record | Rejection]:
    place, root, linked = source.place(file), source.image_root or file.parent, _linked(file)
    for number, line in enumerate(textfiles.lines(file), start=1):
        if line.strip():
            yield _parse(line, f"{place}:{number}", root, source, linked)


def _linked(file: Path) -> _Linked:
    """What belongs together by lines that name both a patient and a group: neither may be split."""
    firsts: dict[_Name, _Name] = {}
    with suppress(Unreadable):  # the records before the damage are read all the same
        for line in textfiles.lines(file):
            if '"patient"' in line and '"group"' in line:
                with suppress(*MALFORMED):
                    first, *others = sorted({_first(name, firsts) for name in _names(textfiles.parsed(line))})
                    firsts |= {other: first for other in others}
    together = defaultdict(list)
    for name in sorted({*firsts, *firsts.values()}):
        together[_first(name, firsts)].append(name)
    patients = {first: tuple(name for order, name in names if order == 0) for first, names in together.items()}
    return {name: patients[first] for first, names in together.items() for name in names}


def _names(fields: dict) -> list[_Name]:
    return [(order, name) for order, kind in enumerate(("patient", "group")) if (name := text(fields.get(kind)))]


def _first(name: _Name, firsts: dict[_Name, _Name]) -> _Name:
    while name in firsts:
        name = firsts[name]
    return name


def _patients(fields: dict, linked: _Linked) -> tuple[str, ...]:
    """Who is never split: the first patient, by name, of all that belong together; and the others."""
    names = _names(fields)
    return linked.get(names[0], (names[0][1],)) if names else ()


def _parse(line: str, where: str, root: Path, source: Source, linked: _Linked) -> Record | Rejection:
    try:
        fields = textfiles.parsed(line)
        picture, questions, labels = words(fields["image"]), fields.get("qa") or [], fields.get("labels") or {}
        if not picture.strip():
            raise NotARecord("no picture: `image` is not a path")
        if not (isinstance(questions, list) and all(isinstance(q, dict) for q in questions)):
            raise NotARecord("`qa` is not a list of mappings")
        if not isinstance(labels, dict):
            raise NotARecord("`labels` is not a mapping")
        named = text(fields.get("source")) or source.name
        if named.casefold() in vocabulary.BUILT_IN:
            raise NotARecord("its `source` is the name of a built-in one")
        key = text(fields.get("id")) or picture
        spoken = [q for q in questions if language(q.get("lang")) in source.languages]
        patient, *others = _patients(fields, linked) or (key,)
        turns = tuple(t for q in spoken if (t := turn(q.get("question"), q.get("answer"), q.get("answer_type") or "OPEN")))
        said = source.known(**{name: text(fields.get(name)) for name in ("modality", "license", "attribution", "split")})
        return Record(
            id=key,
            where=f"{where} {shown(picture)}",
            images=(PictureFile(root, picture, source.max_pixels),),
            patient=patient,
            linked=tuple(others),
            caption=text(fields.get("caption")),
            turns=turns,
            labels=labels | (damaged(fields) if "\ufffd" in line or "\\u" in line else {}),
            left_out=len(questions) - len(turns),
            **said | {"source": named},
        )
    except MALFORMED as error:
        return malformed(source, where, error)
