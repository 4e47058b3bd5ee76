"""Text files as they are met: gzipped or not, with a byte order mark, not always UTF-8."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from corpus.record import Unreadable

# How files of JSON end, gzipped or not.
JSON = (".json", ".json.gz")
# What a file is known by: so many characters of it, or of each of so many lines or objects, as the first may be damaged.
_HEAD, _FIRST = 2**20, 16
_ARRAY = re.compile(r"\s*\[\s*\{")
_KEY = re.compile(r'"([^"\\]{1,64})"\s*:')
# Python writes NaN and infinities for numbers that are not there; in JSON there are none.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
# Characters of a line, and levels of JSON.
_LONGEST, _DEEPEST = 2**28, 64
_TOO_DEEP = f"JSON nested deeper than {_DEEPEST} levels"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HALF = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """A text that is no JSON, or none that is read; the message tells what is wrong and where, without quoting it."""


def named(file: Path, *endings: str) -> bool:
    """Whether a file's name ends so, in capitals too."""
    return file.name.casefold().endswith(endings)


def open_text(file: Path) -> TextIO:
    """The file for reading: UTF-8, or UTF-16 if it begins with that one's byte order mark; bytes that are neither become U+FFFD."""
    opener = gzip.open if named(file, ".gz") else open
    with opener(file, "rb") as stream:
        start = stream.read(2)
    return opener(file, "rt", encoding="utf-16" if start in _UTF16 else "utf-8-sig", errors="replace", newline="")


def lines(file: Path) -> Iterator[str]:
    """Line by line. Raises Unreadable where a gzipped file breaks off, or a line is longer than any picture makes it."""
    try:
        with open_text(file) as stream:
            for line in iter(partial(stream.readline, _LONGEST), ""):
                if len(line) == _LONGEST:
                    raise Unreadable("unreadable-file", f"a line of more than {_LONGEST:,} characters")
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable("unreadable-file", f"cannot be read to its end ({type(error).__name__})") from None


def head(file: Path) -> str:
    """The first 2**20 characters, or nothing if it cannot be read."""
    try:
        with open_text(file) as stream:
            return stream.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return ""


def is_array(file: Path) -> bool:
    """Whether it begins as a JSON array of objects."""
    return bool(_ARRAY.match(head(file)))


def json_rows(file: Path) -> list:
    """A JSON file that is one array.

    Raises:
        Unreadable: it is damaged, or no array.
    """
    try:
        with open_text(file) as stream:
            found = parsed(stream.read())
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable("unreadable-file", f"cannot be read to its end ({type(error).__name__})") from None
    except NotJson as error:
        raise Unreadable("unreadable-file", str(error)) from None
    if not isinstance(found, list):
        raise Unreadable("unreadable-file", "not a JSON array")
    return found


def parsed(text: str) -> object:
    """JSON, with U+FFFD for each half of a surrogate pair whose other half was lost: no UTF-8 can hold it.

    Raises:
        NotJson: it is none, or nested deeper than data is: what one process can read, the next may not pickle.
    """
    try:
        # Where files were joined, a byte order mark is left in the middle.
        found = _DECODER.decode(text.lstrip("\ufeff"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.rstrip() else f"character {error.pos + 1}"
        raise NotJson(f"not whole JSON: {error.msg.removesuffix(' at')} at {place}") from None
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    except ValueError:
        raise NotJson("JSON with a number of more digits than are read") from None
    if text.count("{") + text.count("[") > _DEEPEST and _is_deep(found):
        raise NotJson(_TOO_DEEP)
    # Most files have no such escapes, and need no second look.
    return _without_halves(found) if "\\ud" in text or "\\uD" in text else found


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item) if isinstance(inner, (dict, list))]
    return bool(level)


def _without_halves(value: object) -> object:
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    return {_without_halves(key): _without_halves(item) for key, item in value.items()} if isinstance(value, dict) else value


def json_keys(file: Path) -> set[str]:
    """Keys of the first objects of a JSON array, from the head of the file."""
    rest, keys = head(file).lstrip(), set()
    if not rest.startswith("["):
        return keys
    for _ in range(_FIRST):
        rest = rest[1:].lstrip()
        try:
            found, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            return keys | _like_keys(rest)
        keys, rest = keys | _keys(found), rest[end:].lstrip()
    return keys


def line_keys(file: Path) -> set[str]:
    """Keys of the objects on the first lines."""
    keys: set[str] = set()
    try:
        with open_text(file) as stream:
            for line in islice(iter(partial(stream.readline, _HEAD), ""), _FIRST):
                try:
                    keys |= _keys(json.loads(line))
                except (ValueError, RecursionError):
                    keys |= _like_keys(line)
    except (OSError, EOFError, zlib.error):
        pass  # what could be read is enough to know the file by
    return keys


def _keys(found: object) -> set[str]:
    return set(found) if isinstance(found, dict) else set()


def _like_keys(text: str) -> set[str]:
    """What looks like keys in an object that is damaged, or goes on after what was read."""
    return set(_KEY.findall(text))
