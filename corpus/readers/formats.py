"""Which reader reads a source: the one named, or for each file the first that recognises it."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from corpus import anatomy, vocabulary
from corpus.readers import FORMATS, image_folder, omni_med_vqa, parquet, textfiles, tree
from corpus.readers.files import unnamed
from corpus.readers.pictures import SUFFIXES, PictureFile, spellings
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable

AUTO = "auto"
# Formats whose files never name a picture of another file.
_HOLDING = ("med-mnist", "nifti", "dicom")
# Formats whose files lie in folders that may be called after people, as they may be themselves; and how files of scans end.
_OF_PATIENTS = ("dicom", "nifti")
_VOLUMES = "hdr|img|mgz|mgh|mha|mhd|nrrd|nhdr|mnc|par|rec"
_VOLUME = re.compile(rf"\.({_VOLUMES})(\.gz)?$", re.IGNORECASE)
_PATIENTS_FILE = re.compile(rf"\.(dcm|dicom|ima|nii|{_VOLUMES})(\.(gz|bz2|xz|zst|zip|7z))?$", re.IGNORECASE)
# A patient's scans are often sent as one. What is read gzipped needs no unpacking.
_PACKED = re.compile(r"\.(zip|7z|rar|tgz|tar(\.\w+)?)$|(?<!\.json)(?<!\.jsonl)(?<!\.tsv)\.(gz|bz2|xz|zst)$", re.IGNORECASE)
# In the name of a folder of scans that is called after what it holds, not after a patient; words of modalities, splits and body parts are, too, and BIDS's numbers for people.
_OF_SCANS = re.compile(r"^sub-|dicom|dcm|nifti|(^|[^a-z])nii([^a-z]|$)|volume|scan|image|picture|stud(y|ies)|series|patients|data|files")
_BODY = {word for parts in anatomy.BODY_PARTS.items() for part in parts for word in part.casefold().split()} - {"and"}
# The file of a medium, such as a hospital hands to a patient.
_MEDIUM = "dicomdir"
# Files that go with data and are none.
_AUXILIARY = re.compile(
    r"^(licen[cs]es?|readme|copying|notice|authors|acknowledge?ments|citation|changelog|md5sums?|sha\d+sums?|checksums?)\b[^.]*$|^thumbs\.db$"
    r"|\.(md|txt|rst|html?|pdf|bib|cff|md5|sha\d+|sfv|lock|ini|log)$",
    re.IGNORECASE,
)


class UnknownFormat(LookupError):
    """No format has that name."""


def read(source: Source, format: str = AUTO) -> Iterator[Record | Rejection]:
    """Records of a file or folder. With "auto", each file of a folder is read by the reader that recognises it.

    Raises:
        UnknownFormat: there is no such format.
        FileNotFoundError: the path is not there, or holds nothing of the format, or no Parquet table though columns are named.
        MissingColumn: a Parquet table has not the columns named.
    """
    if format != AUTO and format not in FORMATS:
        raise UnknownFormat(f"{format!r} is no format; these are: {AUTO}, {', '.join(FORMATS)}")
    if not source.path.exists():
        raise FileNotFoundError(f"{source.path} does not exist")
    if not (source.path.is_dir() or source.path.is_file()):
        # A pipe would be waited for.
        raise FileNotFoundError(f"{source.path} is no file and no folder")
    if format == AUTO and source.columns and not any(textfiles.named(file, ".parquet") for file in tree.walk(source.path)):
        raise FileNotFoundError(f"{source.path} holds no Parquet table of which columns could be named")
    return _each(source) if format == AUTO else reader(format).read(source)


def reader(format: str) -> ModuleType:
    """The module of a format."""
    return import_module(FORMATS[format])


def detect(file: Path, columns: dict[str, str]) -> str | None:
    """The first format that recognises a file. A Parquet file whose columns are named needs no recognising."""
    if columns and textfiles.named(file, ".parquet"):
        return "unimed-5m"
    try:
        return next((name for name in FORMATS if reader(name).recognises(file)), None)
    except OSError:
        return None


def _each(source: Source) -> Iterator[Record | Rejection]:
    """First the files that name pictures or hold them, then the pictures that none of them named.

    Those that a damaged file may have named are kept aside: what it said of them, its split above all, is not known. So are
    those beneath a file of whose pictures none is where it says; and those that lie among scans: the folder's name is no label, as it may be a person's.
    """
    claimed: set[str] = set()
    doubtful: set[str] = set()
    unknown: list[Path] = []
    closed: list[Rejection] = []
    scans, found = _Scans(source), False
    for file in (folder / name for folder, names in tree.folders(source.path) for name in names if not _is_picture(name)):
        if refused := tree.unread(file, source):
            found = True
            closed.append(refused)
            continue
        format = detect(file, source.columns) if os.path.isfile(file) else None
        if format in _OF_PATIENTS:
            scans.add(file)
        if format is None:
            if textfiles.named(file, ".parquet") and os.path.isfile(file) and parquet.has_lost_its_end(file):
                # It tells no format any more, and may have named the pictures beside it.
                doubtful.add(os.path.abspath(source.image_root or file.parent))
            unknown += [] if source.path.is_dir() and _AUXILIARY.search(file.name) else [file]
            continue
        found, damaged, holds, missing = True, False, format in _HOLDING, None
        for item in reader(format).read(replace(source, path=file, root=source.path if source.path.is_dir() else None)):
            named = _named(item)
            claimed |= _folders(named)
            if named and missing is not False:
                missing = not any(map(_is_there, named))
            damaged |= isinstance(item, Rejection)
            holds |= isinstance(item, Record) and bool(item.images) and not named
            yield item
        if (damaged and not holds) or missing:
            doubtful.add(os.path.abspath(_pictures_of(file, format, source)))
    for number, refused in enumerate(closed, start=1):
        yield replace(refused, where=f"file {number} of {len(closed)} that may not be read") if scans.may_name(source.path / refused.where) else refused
    for file in unknown:
        # A JSON file beside named pictures is theirs: SLAKE has two for each.
        if not textfiles.named(file, *textfiles.JSON) or os.path.abspath(file.parent) not in claimed:
            yield Rejection(source.name, unnamed(file) if scans.may_name(file) else source.place(file), "unknown-format", _mend(file))
    for where, names in tree.folders(source.path):
        pictures, folder = [name for name in names if _is_picture(name)], os.path.abspath(where)
        beneath_damage = not doubtful.isdisjoint((folder, *map(str, Path(folder).parents)))
        found |= bool(pictures)
        for file in () if folder in claimed else (where / name for name in pictures):
            if scans.are_near(file):
                yield Rejection(source.name, unnamed(file), "unnamed-picture", "no file names it, and among DICOM or NIfTI files its own name and its folder's may be a person's")
            elif beneath_damage:
                yield Rejection(source.name, source.place(file), "unnamed-picture", "no file names it, but one that may is damaged, or names pictures that are elsewhere")
            else:
                yield from image_folder.read_picture(file, source)
    if not (found or unknown):
        raise FileNotFoundError(f"{source.path} holds no data; the formats read are {', '.join(FORMATS)} (docs/data.md)")


def _mend(file: Path) -> str:
    """What can be done about a file that no reader recognises."""
    if _VOLUME.search(file.name):
        return "a volume of a format that is not read: save it as NIfTI in one file (.nii.gz)"
    return "packed: unpack it first" if _PACKED.search(file.name) else "no reader recognises this file; name its format with --format"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _named(item: Record | Rejection) -> list[PictureFile]:
    """The pictures that a record names rather than holds."""
    return [opener for opener in (*item.images, item.target) if isinstance(opener, PictureFile)] if isinstance(item, Record) else []


def _is_there(opener: PictureFile) -> bool:
    try:
        return bool(opener.path())
    except Unreadable:
        return False


def _pictures_of(file: Path, format: str, source: Source) -> Path:
    """The folder beneath which lie the pictures that a file names."""
    if format == "omni-med-vqa":
        return omni_med_vqa.picture_root(file, source)
    return source.image_root or file.parent


def _folders(named: list[PictureFile]) -> set[str]:
    """Folders of the pictures that a record names: the other files in them belong to the same layout."""
    paths = {(opener.root, path) for opener in named for path in spellings(opener.relative)}
    return {folder for root, path in paths if (folder := _folder(root, os.path.dirname(path)))}


@lru_cache(maxsize=1024)
def _folder(root: Path, relative: str) -> str | None:
    """A folder below a root, or None if it is not below it."""
    top, folder = os.path.abspath(root), os.path.abspath(root / relative)
    return folder if Path(folder).is_relative_to(top) else None


def _says_what_it_holds(folder: str) -> bool:
    # Two letters may be a title: Mr, Us.
    words = [word for word in re.findall(r"[a-z]+", folder.casefold()) if len(word) > 2 or word == "ct"]
    return bool(_OF_SCANS.search(folder.casefold())) or any(word in _BODY or vocabulary.modality(word) or vocabulary.split(word) for word in words)


class _Scans:
    """Where the scans of a source lie: whatever else lies there may be called after a person."""

    def __init__(self, source: Source):
        self._source = source
        self._tops: set[str] = set()
        self._places: set[Path] = set()

    def add(self, file: Path) -> None:
        """Its folder of the source holds scans; so do a medium, and the whole source if that folder may be called after a patient."""
        top = self._top(file)
        self._tops.add(top)
        if file.name.casefold() == _MEDIUM:
            self._places.add(file.parent)
        if top and not _says_what_it_holds(top):
            self._places.add(self._source.path)

    def are_near(self, file: Path) -> bool:
        return self._top(file) in self._tops or not self._places.isdisjoint(file.parents)

    def may_name(self, file: Path) -> bool:
        """Whether a file that could not be read may be a scan, or lies among scans."""
        return bool(_PATIENTS_FILE.search(file.name) or (self._tops and _PACKED.search(file.name))) or self.are_near(file)

    def _top(self, file: Path) -> str:
        """The folder directly below the source's in which a file lies, or nothing."""
        place = self._source.place(file)
        return place.partition("/")[0] if "/" in place else ""
