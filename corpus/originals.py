"""The bytes a picture came as: kept where nothing in it has to change, so that it is not coded a second time.

Everything that is not needed to decode the pixels goes: EXIF, thumbnails, colour profiles, comments, text chunks,
what follows the end of the picture, in a PNG also within its coded pixels. (In a JPEG those would have to be decoded again.)
"""

import re
import struct
import zlib

from PIL import Image as Pillow

_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# Within a scan, neither a stuffed byte nor a restart.
_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# A picture's colours may be told from these two alone; of each only the standard's own bytes stay.
_JFIF, _ADOBE = b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00", 12
_PNG = b"\x89PNG\r\n\x1a\n"
# Width, height, bit depth, colour type, two methods of which there is but one, interlacing.
_HEADER, _RGB = struct.Struct(">IIBBBBB"), 2


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
            return b"".join(kept) if end <= len(data) and _is_full(kept[1], kept[2:-1]) else None
        at = end
    return None


def _is_full(header: bytes, chunks: list[bytes]) -> bool:
    """Whether the coded pixels end with the picture's last row, and the chunks with them."""
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(header, 8)
    expected = height * (1 + (width * depth * (3 if colour == _RGB else 1) + 7) // 8)
    inflater = zlib.decompressobj()
    try:
        found = len(inflater.decompress(b"".join(chunk[8:-4] for chunk in chunks), expected + 1))
    except zlib.error:
        return False
    return not interlaced and found == expected and inflater.eof and not inflater.unused_data


def _jpeg(data: bytes) -> bytes | None:
    """Tables, frames and scans, up to the end marker."""
    kept, at = [data[:2]], 2
    while found := _MARKER.match(data, at):
        code, at = found.group(1)[0], found.end()
        if code == _EOI:
            return b"".join([*kept, b"\xff\xd9"])
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + length
        if code == _APP0 and segment.startswith(b"JFIF"):
            segment = _JFIF
        elif code == _APP14 and segment.startswith(b"Adobe"):
            segment = segment[:_ADOBE]
        elif 0xE0 <= code <= 0xEF or code == 0xFE:
            continue
        kept += [bytes((0xFF, code)), (len(segment) + 2).to_bytes(2, "big"), segment]
        if code == _SOS:
            end = _end_of_scan(data, at)
            kept.append(data[at:end])
            at = end
    return None


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the marker after a scan begins; the end of the data if there is none."""
    found = _NEXT.search(data, at)
    return found.start() if found else len(data)
