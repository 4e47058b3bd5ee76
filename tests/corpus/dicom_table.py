"""What becomes of each DICOM file that pydicom ships: `python -m tests.corpus.dicom_table > docs/dicom_files.md`."""

from collections import Counter
from pathlib import Path

from corpus.readers import dicom
from corpus.readers.source import Source
from tests.corpus.taking_in import SALT, take_in

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dicom_files.md"
HEAD = """# What becomes of pydicom's test files

The DICOM files of the pinned pydicom as `data add --modality CT --license MIT` takes them in, one by one: the modality given
counts only where a file states none. A test keeps this table true; `python -m tests.corpus.dicom_table` prints it.

| file | outcome |
| --- | --- |
"""


def files() -> dict[str, Path]:
    """The files by their name in the table."""
    import pydicom

    root = Path(pydicom.__file__).parent / "data" / "test_files"
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def outcome(path: Path) -> str:
    """"kept: 2 x CT, RGB 100x100", a reason, or both."""
    taken = take_in(dicom, Source(path, "pydicom", license="MIT", modality="CT", salt=SALT))
    shown = Counter(f"kept: {s.modality}, {s.images[0].open().mode} {s.images[0].width}x{s.images[0].height}" for s in taken.samples)
    counted = list((shown + Counter(taken.reasons)).items())
    return "; ".join(f"{what}" + (f" ({n} frames)" if n > 1 else "") for what, n in counted) or "skipped: a directory of files"


def main() -> None:
    """Print the table."""
    print(HEAD + "\n".join(f"| {name} | {outcome(path)} |" for name, path in files().items()))


if __name__ == "__main__":
    main()
