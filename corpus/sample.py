"""The one shape of data in the house: an ordered list of text and image parts, and what is known of them.

Training samples, benchmark items and served requests are all Samples; Parquet rows carry them.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image as Pillow

from corpus import originals

Task = Literal["understanding", "generation", "interleaved", "text"]
Split = Literal["train", "val", "test"]
TASKS = ("understanding", "generation", "interleaved", "text")
# From the least to the most protected: an item claimed by two splits stays in the later one.
SPLITS = ("train", "val", "test")

_PART = pa.struct(
    [
        ("kind", pa.string()),
        ("role", pa.string()),
        ("text", pa.string()),
        ("image", pa.int32()),
        ("views", pa.list_(pa.string())),
        ("label", pa.string()),
    ]
)
_IMAGE = pa.struct([("data", pa.binary()), ("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string())])
_TEXT_COLUMNS = ("id", "task", "modality", "source", "license", "attribution", "split", "patient")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT_COLUMNS]
    + [("labels", pa.string()), ("parts", pa.list_(_PART)), ("images", pa.list_(_IMAGE)), ("quality", pa.string())]
)


@dataclass(frozen=True)
class Image:
    """An encoded 8-bit picture (PNG or JPEG, mode L or RGB).

    `sha256` is the hash of the *decoded* pixels, so that one picture has one identity however it was encoded.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    sha256: str

    @classmethod
    def encode(cls, picture: Pillow.Image, lossy: bool = False) -> "Image":
        """Encode an L or RGB picture: PNG, or JPEG (quality 92, full chroma) if `lossy`. No metadata is kept.

        A picture that is still as it came keeps its own coding.
        """
        if original := originals.of(picture):
            return cls(original, *picture.size, pixel_hash(picture))
        clean = Pillow.frombytes(picture.mode, picture.size, picture.tobytes())
        buffer = io.BytesIO()
        if lossy:
            clean.save(buffer, "JPEG", quality=92, subsampling=0)
            return cls.from_bytes(buffer.getvalue())
        clean.save(buffer, "PNG", compress_level=6)
        return cls(buffer.getvalue(), *clean.size, pixel_hash(clean))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Image":
        """Wrap bytes that are already a clean 8-bit PNG or JPEG. Raises OSError if they don't decode."""
        picture = Pillow.open(io.BytesIO(data))
        return cls(data, *picture.size, pixel_hash(picture))

    def open(self) -> Pillow.Image:
        """The decoded picture."""
        picture = Pillow.open(io.BytesIO(self.data))
        picture.load()
        return picture


class Turn(NamedTuple):
    """A question with its answer; `kind` is "OPEN" (free words) or "CLOSED" (yes/no or a given choice)."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Part:
    """One element of a sample. Loss falls on `target` parts only; `views` says which encoders see an image."""

    kind: Literal["text", "image"]
    role: Literal["context", "target"]
    text: str | None = None
    image: int | None = None
    views: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class Sample:
    """A sample with its provenance. `patient` is a salted hash; `labels` is what is known, as plain JSON."""

    id: str
    task: Task
    modality: str
    source: str
    license: str
    attribution: str
    split: Split
    patient: str
    parts: tuple[Part, ...]
    images: tuple[Image, ...] = ()
    labels: dict = field(default_factory=dict)
    quality: dict[str, float | str] = field(default_factory=dict)

    @property
    def record(self) -> str:
        """The input record this sample was made from: one record may give several samples."""
        return self.id.rpartition("#")[0] or self.id

    @property
    def turns(self) -> list[Turn]:
        """Question/answer pairs of an understanding or text sample."""
        texts = [part for part in self.parts if part.kind == "text"]
        return [Turn(q.text, a.text, a.label) for q, a in zip(texts, texts[1:]) if (q.role, a.role) == ("context", "target")]

    @property
    def stored_labels(self) -> dict:
        """The labels as a shard gives them back: keys in order at every depth, lists for tuples."""
        return json.loads(_json(self.labels))

    def to_row(self) -> dict:
        """The sample as a row of `SCHEMA`."""
        row = {name: getattr(self, name) for name in _TEXT_COLUMNS}
        row["labels"], row["quality"] = _json(self.labels), _json(self.quality)
        row["parts"] = [vars(part) for part in self.parts]
        row["images"] = [vars(image) for image in self.images]
        return row

    @classmethod
    def from_row(cls, row: dict) -> "Sample":
        """The inverse of `to_row`."""
        parts = tuple(Part(**part | {"views": tuple(part["views"] or ())}) for part in row["parts"])
        images = tuple(Image(**image) for image in row["images"])
        known = {name: row[name] for name in _TEXT_COLUMNS}
        return cls(**known, parts=parts, images=images, labels=json.loads(row["labels"]), quality=json.loads(row["quality"]))


def pixel_hash(picture: Pillow.Image) -> str:
    """SHA-256 of an L or RGB picture's size and pixels; grey stored as RGB counts as grey."""
    pixels = np.asarray(picture)
    grey = pixels.ndim == 2 or _is_grey(pixels[::16, ::16]) and _is_grey(pixels)
    if grey and pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., 0])
    whole = hashlib.sha256(f"{'L' if grey else 'RGB'} {picture.width}x{picture.height} ".encode())
    whole.update(pixels)
    return whole.hexdigest()


def _is_grey(pixels: np.ndarray) -> bool:
    return np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])


_json = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
