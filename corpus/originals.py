"""The bytes a picture came as: kept where nothing in it has to change, so that it is not coded a second time.

Everything that is not needed to decode the pixels goes: EXIF, thumbnails, colour profiles, comments, text chunks,
tables that decode nothing, what follows the end of the picture, in a PNG also within its coded pixels. (In a JPEG those
would have to be decoded again.)
"""

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image as Pillow

_EOI, _SOS, _APP0, _APP14 = 0xD9, 0xDA, 0xE0, 0xEE
_DQT, _DHT, _DRI, _FRAMES, _PROGRESSIVE = 0xDB, 0xC4, 0xDD, (0xC0, 0xC1, 0xC2), 0xC2
# A Huffman table of AC coefficients, among those of DC.
_AC = 0x10
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# Within a scan, neither a stuffed byte nor a restart.
_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# A picture's colours may be told from these two alone; of each only the standard's own bytes stay.
_JFIF, _ADOBE = b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00", 12
_PNG = b"\x89PNG\r\n\x1a\n"
# Width, height, bit depth, colour type, two methods of which there is but one, interlacing.
_HEADER, _RGB = struct.Struct(">IIBBBBB"), 2

# A marker's code, its segment, and after the start of a scan the scan.
_Segment = tuple[int, bytes, bytes]
# The marker that defines a table, and the table's number.
_Table = tuple[int, int]


def mark(picture: Pillow.Image, data: bytes) -> Pillow.Image:
    """Remember the bytes a picture was decoded from; a changed copy does not know them."""
    picture.original = data
    return picture


def unmark(picture: Pillow.Image) -> None:
    """To be called where a picture is changed in place."""
    picture.original = None


def of(picture: Pillow.Image) -> bytes | None:
    """The bytes of an untouched 8-bit PNG or JPEG without anything but its pixels, or None."""
    data, strip = getattr(picture, "original", None), {"JPEG": _jpeg, "PNG": _png}.get(picture.format)
    return strip(data) if data and strip and picture.mode in ("L", "RGB") else None


def _png(data: bytes) -> bytes | None:
    """The critical chunks, up to the end chunk."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept) if end <= len(data) and not length and _is_full(kept[1], kept[2:-1]) else None
        at = end
    return None


def _is_full(header: bytes, chunks: list[bytes]) -> bool:
    """Whether the coded pixels, of 8 bits a colour, end with the picture's last row, and the chunks with them."""
    if len(header) != 12 + _HEADER.size:
        return False
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(header, 8)
    expected = height * (1 + width * (3 if colour == _RGB else 1))
    inflater = zlib.decompressobj()
    try:
        found = len(inflater.decompress(b"".join(chunk[8:-4] for chunk in chunks), expected + 1))
    except zlib.error:
        return False
    return depth == 8 and not interlaced and found == expected and inflater.eof and not inflater.unused_data


def _jpeg(data: bytes) -> bytes | None:
    """Tables, frame and scans, up to the end marker; None if there is anything else that matters."""
    kept: list[_Segment] = []
    at = 2
    while found := _MARKER.match(data, at):
        code, at = found.group(1)[0], found.end()
        if code == _EOI:
            return b"".join([data[:2], *map(_written, _used(kept)), b"\xff\xd9"])
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + length
        if code == _APP0 and segment.startswith(b"JFIF"):
            segment = _JFIF
        elif code == _APP14 and segment.startswith(b"Adobe"):
            segment = segment[:_ADOBE]
        elif 0xE0 <= code <= 0xEF or code == 0xFE:
            continue
        elif code not in (_DQT, _DHT, _DRI, _SOS, *_FRAMES):
            return None
        end = _end_of_scan(data, at) if code == _SOS else at
        kept.append((code, segment, data[at:end]))
        at = end
    return None


def _written(segment: _Segment) -> bytes:
    code, content, scan = segment
    return b"".join((bytes((0xFF, code)), (len(content) + 2).to_bytes(2, "big"), content, scan))


def _used(segments: list[_Segment]) -> list[_Segment]:
    """The segments without the tables that no later scan uses, or another replaces before one does."""
    frame = next(((code, content) for code, content, _ in segments if code in _FRAMES), (0, b""))
    kept: list[_Segment] = []
    wanted: set[_Table] = set()
    for code, content, scan in reversed(segments):
        if code == _SOS:
            wanted |= set(_tables_of(content, *frame))
        elif code in (_DQT, _DHT):
            tables = []
            for table, said in reversed(list(_tables(code, content))):
                tables += [said] if table in wanted else []
                wanted.discard(table)
            content = b"".join(reversed(tables))
        kept += [(code, content, scan)] if content else []
    return kept[::-1]


def _tables(code: int, content: bytes) -> Iterator[tuple[_Table, bytes]]:
    """The tables of a segment that defines some (ITU-T T.81, B.2.4)."""
    while content:
        size = 1 + (64 << (content[0] >> 4) if code == _DQT else 16 + sum(content[1:17]))
        yield (code, content[0] & 0x0F if code == _DQT else content[0]), content[:size]
        content = content[size:]


def _tables_of(scan: bytes, code: int, frame: bytes) -> Iterator[_Table]:
    """The tables that a scan of the frame uses (B.2.2, B.2.3)."""
    quantised = dict(zip(frame[6::3], frame[8::3]))
    first = any(scan[-3:-2])
    for component, coded in zip(scan[1:-3:2], scan[2:-3:2]):
        yield _DQT, quantised.get(component, 0)
        if code != _PROGRESSIVE or not first:
            yield _DHT, coded >> 4
        if code != _PROGRESSIVE or first:
            yield _DHT, _AC | coded & 0x0F


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the marker after a scan begins; the end of the data if there is none."""
    found = _NEXT.search(data, at)
    return found.start() if found else len(data)
