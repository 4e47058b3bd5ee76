"""Which reader reads a source: the one named, or for each file the first that recognises it."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from corpus.readers import FORMATS, image_folder, omni_med_vqa, textfiles, tree
from corpus.readers.files import unnamed
from corpus.readers.pictures import SUFFIXES, PictureFile
from corpus.readers.source import Source
from corpus.record import Record, Rejection

AUTO = "auto"
# Formats whose files never name a picture of another file.
_HOLDING = ("med-mnist", "nifti", "dicom")
# Formats whose files lie in folders that may be called after people, as they may be themselves; and how such files end.
_OF_PATIENTS, _PATIENTS_FILE = ("dicom", "nifti"), re.compile(r"\.(dcm|dicom|ima|nii|nii\.gz)$", re.IGNORECASE)
# Files that go with data and are none.
_AUXILIARY = re.compile(
    r"^(licen[cs]es?|readme|copying|notice|authors|acknowledge?ments|citation|changelog|manifest|md5sums?|sha\d+sums?|checksums?|thumbs|desktop)\b"
    r"|\.(md|txt|rst|html?|pdf|bib|cff|md5|sha\d+|sfv|lock|ini|log)$",
    re.IGNORECASE,
)


class UnknownFormat(LookupError):
    """No format has that name."""


def read(source: Source, format: str = AUTO) -> Iterator[Record | Rejection]:
    """Records of a file or folder. With "auto", each file of a folder is read by the reader that recognises it.

    Raises:
        UnknownFormat: there is no such format.
        FileNotFoundError: the path is not there, or holds nothing of the format.
        MissingColumn: a Parquet table has not the columns named.
    """
    if format != AUTO and format not in FORMATS:
        raise UnknownFormat(f"{format!r} is no format; these are: {AUTO}, {', '.join(FORMATS)}")
    if not source.path.exists():
        raise FileNotFoundError(f"{source.path} does not exist")
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
    those that share a folder of the source with scans: its name is no label, as it may be a person's.
    """
    claimed: set[str] = set()
    doubtful: set[str] = set()
    unknown: list[Path] = []
    closed: list[Rejection] = []
    scans: set[str] = set()
    found = False
    for file in (folder / name for folder, names in tree.folders(source.path) for name in names if not _is_picture(name)):
        if refused := tree.unread(file, source):
            found = True
            closed.append(refused)
            continue
        format = detect(file, source.columns) if os.path.isfile(file) else None
        scans |= {_top(file, source)} if format in _OF_PATIENTS else set()
        if format is None:
            unknown += [] if source.path.is_dir() and _AUXILIARY.search(file.name) else [file]
            continue
        found, damaged, holds = True, False, format in _HOLDING
        for item in reader(format).read(replace(source, path=file, root=source.path if source.path.is_dir() else None)):
            named = _named(item)
            claimed |= _folders(named)
            damaged |= isinstance(item, Rejection)
            holds |= isinstance(item, Record) and bool(item.images) and not named
            yield item
        if damaged and not holds:
            doubtful.add(os.path.abspath(_pictures_of(file, format, source)))
    for number, refused in enumerate(closed, start=1):
        yield replace(refused, where=f"file {number} of {len(closed)} that may not be read") if _is_scan(source.path / refused.where, scans, source) else refused
    for file in unknown:
        # A JSON file beside named pictures is theirs: SLAKE has two for each.
        if not textfiles.named(file, ".json") or os.path.abspath(file.parent) not in claimed:
            yield _unknown(file, source, _is_scan(file, scans, source))
    for where, names in tree.folders(source.path):
        pictures, folder = [name for name in names if _is_picture(name)], os.path.abspath(where)
        found |= bool(pictures)
        for file in () if folder in claimed else (where / name for name in pictures):
            if _top(file, source) in scans:
                yield Rejection(source.name, unnamed(file), "unnamed-picture", "no file names it, and among DICOM or NIfTI files its own name and its folder's may be a person's")
            elif any(Path(folder).is_relative_to(top) for top in doubtful):
                yield Rejection(source.name, source.place(file), "unnamed-picture", "no file names it, but one that may is damaged")
            else:
                yield from image_folder.read_picture(file, source)
    if not (found or unknown):
        raise FileNotFoundError(f"{source.path} holds no data; the formats read are {', '.join(FORMATS)} (docs/data.md)")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _named(item: Record | Rejection) -> list[PictureFile]:
    """The pictures that a record names rather than holds."""
    return [opener for opener in (*item.images, item.target) if isinstance(opener, PictureFile)] if isinstance(item, Record) else []


def _pictures_of(file: Path, format: str, source: Source) -> Path:
    """The folder beneath which lie the pictures that a file names."""
    if format == "omni-med-vqa":
        return omni_med_vqa.picture_root(file, source)
    return source.image_root or file.parent


def _folders(named: list[PictureFile]) -> set[str]:
    """Folders of the pictures that a record names: the other files in them belong to the same layout."""
    paths = {(opener.root, path) for opener in named for path in (opener.relative, opener.relative.replace("\\", "/"))}
    return {folder for root, path in paths if (folder := _folder(root, os.path.dirname(path)))}


@lru_cache(maxsize=1024)
def _folder(root: Path, relative: str) -> str | None:
    """A folder below a root, or None if it is not below it."""
    top, folder = os.path.abspath(root), os.path.abspath(root / relative)
    return folder if Path(folder).is_relative_to(top) else None


def _top(file: Path, source: Source) -> str:
    """The folder directly below the source's in which a file lies, or nothing."""
    return source.place(file).partition("/")[0] if "/" in source.place(file) else ""


def _is_scan(file: Path, scans: set[str], source: Source) -> bool:
    """Whether a file that could not be read may be a scan, called after a person."""
    return bool(_PATIENTS_FILE.search(file.name)) or _top(file, source) in scans


def _unknown(file: Path, source: Source, is_scan: bool) -> Rejection:
    return Rejection(source.name, unnamed(file) if is_scan else source.place(file), "unknown-format", "no reader recognises this file; name its format with --format")
