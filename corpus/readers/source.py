"""What a reader is given: where a source lies, and what the person who adds it says of it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A file or folder to read. What its files say themselves counts for more than what is said here.

    `views` is how many pictures are taken of one multi-frame object or volume, evenly spread, `plane` the way a volume is
    cut. `salt` keys the UIDs and dates that stand for those of a DICOM file.
    `root` is the folder that was added, when `path` is one of the files found in it.
    """

    path: Path
    name: str
    languages: tuple[str, ...] = ("en",)
    max_pixels: int = 50_000_000
    license: str | None = None
    modality: str | None = None
    attribution: str = ""
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    image_root: Path | None = None
    views: int = 16
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    salt: bytes = field(default=b"", repr=False)
    root: Path | None = None

    @property
    def top(self) -> Path:
        """The folder that was added, or the one in which the file lies."""
        return self.root or (self.path if self.path.is_dir() else self.path.parent)

    def place(self, file: Path) -> str:
        """A file's path within the source, never one of this machine. Bytes that are no UTF-8 are written out, as `\\xe9`."""
        top = self.top
        place = file.relative_to(top).as_posix() if file.is_relative_to(top) else file.name
        return os.fsencode(place).decode(errors="backslashreplace")

    def known(self, **said: object) -> dict:
        """What the files say of a record (`modality`, `license`, `attribution`, `split`), filled up with what is said here."""
        return {"source": self.name} | {name: said.get(name) or getattr(self, name) for name in ("modality", "license", "attribution", "split")}
