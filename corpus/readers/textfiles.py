"""Text files as they are met: gzipped or not, with a byte order mark, not always UTF-8."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from corpus.record import Unreadable

_HEAD = 2**16
_HALF = re.compile("[\ud800-\udfff]")


def open_text(file: Path) -> TextIO:
    """The file for reading; bytes that are not UTF-8 become U+FFFD."""
    opener = gzip.open if file.suffix == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="")


def lines(file: Path) -> Iterator[str]:
    """Line by line. Raises Unreadable where a gzipped file breaks off."""
    try:
        with open_text(file) as stream:
            yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable("unreadable-file", f"cannot be read to its end ({type(error).__name__})") from None


def head(file: Path) -> str:
    """The first 64 Ki characters, or nothing if it cannot be read."""
    try:
        with open_text(file) as stream:
            return stream.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return ""


def json_rows(file: Path) -> list:
    """A JSON file that is one array.

    Raises:
        Unreadable: it is damaged, or no array.
    """
    try:
        with open_text(file) as stream:
            found = parsed(stream.read())
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable("unreadable-file", f"not whole JSON{place}") from None
    if not isinstance(found, list):
        raise Unreadable("unreadable-file", "not a JSON array")
    return found


def parsed(text: str) -> object:
    """JSON, with U+FFFD for each half of a surrogate pair whose other half was lost: no UTF-8 can hold it.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    found = json.loads(text)
    # Most files have no such escapes, and need no second look.
    return _without_halves(found) if "\\ud" in text or "\\uD" in text else found


def _without_halves(value: object) -> object:
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    return {_without_halves(key): _without_halves(item) for key, item in value.items()} if isinstance(value, dict) else value


def json_keys(file: Path) -> set[str]:
    """Keys of the first object of a JSON array, from the head of the file."""
    start = head(file).lstrip()
    if not start.startswith("["):
        return set()
    return _keys(start[1:].lstrip())


def line_keys(file: Path) -> set[str]:
    """Keys of the object on the first line that is not blank."""
    return _keys(head(file).lstrip())


def _keys(start: str) -> set[str]:
    try:
        found, _ = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()
