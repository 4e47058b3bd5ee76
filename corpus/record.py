"""What readers hand over: a record as its source tells it, or the reason why it could not be read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image as Pillow

from corpus.sample import Turn


@dataclass(frozen=True)
class Rejection:
    """Something kept aside. `where` names file and line within the source, never a path of this machine."""

    source: str
    where: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Record:
    """One picture with what its source says of it; nothing here is checked yet.

    `open_image` decodes on demand, so a stream of records never holds more than one picture.
    """

    id: str
    where: str
    open_image: Callable[[], Pillow.Image]
    modality: object
    source: str
    license: object
    attribution: str
    split: object
    patient: str
    caption: str | None
    turns: tuple[Turn, ...] = ()
    labels: dict = field(default_factory=dict)
    left_out: int = 0
