"""Pictures as the formats hold them: files beneath a folder, encoded bytes, base64 text."""

import base64
import binascii
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as Pillow

from corpus import originals
from corpus.readers import tiff
from corpus.readers.fields import NotARecord, single
from corpus.readers.textfiles import parsed
from corpus.record import Opener, Unreadable

# What is decoded, whatever a file is called: of all that Pillow knows, EPS would run a program on what the file says.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
# Marks that paths have, and how base64 of PNG, JPEG, GIF, BMP, TIFF and WebP begins.
_PATH_LIKE, _BASE64_LIKE = re.compile(r"[/\\.]"), re.compile(r"\s*(data:|iVBOR|/9j/|R0lG|Qk|SUkq|TU0A|UklG)")
# Texts without quotation marks, as pandas writes a list into a table.
_PYTHONS_LIST = re.compile(r"""\s*\[\s*'[^'"\\]*'(\s*,\s*'[^'"\\]*')*\s*\]\s*""")
# Longer text is not a path on any file system in use.
_LONGEST_PATH = 1024
# Bytes of a file from which its header is looked at before it is read, and most bytes of a pixel: four colours of 16 bits.
_LARGE, _DEEPEST = 2**22, 8
# Colours of 16 bits lose their low byte; pictures of 12 bits in 16 reach 16 of 255 then.
_COLOURS, _DIM, _PNG_DEPTH = ("RGB", "RGBA", "LA"), 64, 24


@dataclass(frozen=True)
class PictureFile:
    """Opens a picture at a path inside a folder. Raises Unreadable: path-outside-folder, missing-image, too-large, unreadable-image."""

    root: Path
    relative: str
    max_pixels: int

    def path(self) -> Path:
        """Where the file lies. Raises Unreadable: path-outside-folder, missing-image."""
        return Path(self._found())

    def _found(self) -> str:
        told: Unreadable | None = None
        for path in spellings(self.relative):
            try:
                return self._at(path)
            except Unreadable as error:
                told = error
        raise told

    def _at(self, relative: str) -> str:
        folder, name = os.path.split(relative)
        try:
            root, inner = _resolved(self.root, ""), _resolved(self.root, folder)
            path = os.path.join(inner, name)
            kind = _kind(path)
            if stat.S_ISLNK(kind) or name in ("", ".", ".."):
                path = os.path.realpath(path)
                kind = _kind(path)
        except (OSError, ValueError, RuntimeError):
            raise Unreadable("missing-image", "not the name of a file") from None
        if not path.startswith(os.path.join(root, "")):
            raise Unreadable("path-outside-folder", "the image path leaves the source's folder")
        if not stat.S_ISREG(kind):
            raise Unreadable("missing-image", "no such file")
        return path

    def read(self) -> bytes:
        """The file's bytes. Raises Unreadable as the picture does; what is too large is not read to know that."""
        try:
            with open(self._found(), "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > _LARGE:
                    _opened(file, self.max_pixels)
                    if size > _DEEPEST * self.max_pixels:
                        raise Unreadable("too-large", f"{size:,} bytes exceed what a picture of {self.max_pixels:,} pixels takes")
                    file.seek(0)
                return file.read()
        except OSError as error:
            raise Unreadable("unreadable-image", f"cannot be read ({type(error).__name__})") from None

    def __call__(self) -> Pillow.Image:
        return _decoded(self.read(), self.max_pixels)


def spellings(path: str) -> tuple[str, ...]:
    """A path as it is written, and as it may be meant: written on Windows, or with accents that are letters of their own, as macOS stores them."""
    if path.isascii():
        return (path, path.replace("\\", "/")) if "\\" in path else (path,)
    slashed = path.replace("\\", "/")
    return tuple(dict.fromkeys((path, slashed, normalize("NFC", slashed), normalize("NFD", slashed))))


def _kind(path: str) -> int:
    """What lies there, as the `stat` module tells it; 0 where nothing does."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


@lru_cache(maxsize=4096)
def _resolved(root: Path, folder: str) -> str:
    """A folder below a root without links, looked up once: few folders hold many pictures."""
    return os.path.realpath(os.path.join(root, folder))


@dataclass(frozen=True)
class PictureBytes:
    """Opens an encoded picture. Raises Unreadable: too-large, unreadable-image."""

    data: bytes = field(repr=False)
    max_pixels: int

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self.data)

    def read(self) -> bytes:
        return self.data

    def __call__(self) -> Pillow.Image:
        return _decoded(self.data, self.max_pixels)


def find(cell: object, root: Path, max_pixels: int) -> tuple[str, Opener]:
    """The identity of a picture and its opener, from what a table has for it.

    Args:
        cell: a path below `root`, base64 text, bytes, or a mapping with `bytes` or `path`; or a list of one of these.

    Raises:
        NotARecord: it is none of these.
    """
    cell = single(cell)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell.strip():
        if _is_path(cell):
            relative = cell.strip().lstrip("/")
            return relative, PictureFile(root, relative, max_pixels)
        cell = _from_base64(cell)
    if isinstance(cell, bytes) and cell:
        return hashlib.sha256(cell).hexdigest()[:32], PictureBytes(cell, max_pixels)
    raise NotARecord("no picture: neither a path nor encoded bytes")


def cells(value: object) -> list:
    """The pictures of a field that may have several: a list, as JSON or Python write it too, or the only one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parsed(value.replace("'", '"') if _PYTHONS_LIST.fullmatch(value) else value)
    return [] if value is None or value == "" else [v for v in value if v] if isinstance(value, list) else [value]


def _is_path(cell: str) -> bool:
    """Whether a text is a path: by its suffix, or because it looks like one and not like the beginning of a picture."""
    if len(cell) > _LONGEST_PATH:
        return False
    return Path(cell.strip()).suffix.lower() in SUFFIXES or bool(_PATH_LIKE.search(cell) and not _BASE64_LIKE.match(cell))


def _from_base64(cell: str) -> bytes:
    try:
        return base64.b64decode(cell.strip().rpartition("base64,")[2])
    except (binascii.Error, ValueError):
        # Bytes that are no picture: kept aside as one when they are opened.
        return cell.encode(errors="replace")


def _decoded(data: bytes, max_pixels: int) -> Pillow.Image:
    picture = _opened(io.BytesIO(data), max_pixels)
    with _readable():
        picture.load()
        if _is_dimmed(picture, data):
            raise Unreadable("unreadable-image", "16 bits a colour of which it uses fewer: write it with 8")
        picture = tiff.corrected(picture)
    return originals.mark(picture, data)


def _opened(file: BinaryIO, max_pixels: int) -> Pillow.Image:
    """A picture of which the header is read, and no pixels yet but where Pillow refuses it. Raises Unreadable: too-large, unreadable-image."""
    with _readable():
        try:
            picture = Pillow.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            if not tiff.is_tiff(file):
                raise
            return tiff.opened(file, max_pixels)
    if picture.width * picture.height > max_pixels:
        raise Unreadable("too-large", f"{picture.width}x{picture.height} px exceed the limit of {max_pixels:,} pixels")
    return picture


@contextmanager
def _readable() -> Iterator[None]:
    """Raises Unreadable for what Pillow raises of damaged pictures."""
    try:
        yield
    except Unreadable:
        raise
    except Pillow.DecompressionBombError:
        raise Unreadable("too-large", f"more than {2 * (Pillow.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Unreadable("unreadable-image", f"cannot be decoded ({type(error).__name__})") from None


def _is_dimmed(picture: Pillow.Image, data: bytes) -> bool:
    """Whether a picture has 16 bits a colour and shows next to nothing in the upper eight."""
    bits = (data[_PNG_DEPTH],) if picture.format == "PNG" else getattr(picture, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, ())
    if picture.mode not in _COLOURS or max(bits, default=8) != 16:
        return False
    return max(high for band, (_, high) in zip(picture.getbands(), picture.getextrema()) if band != "A") < _DIM
