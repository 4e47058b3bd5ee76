"""What readers hand over: a record as its source tells it, or the reason why it could not be read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image as Pillow

from corpus.sample import Sample, Turn

Opener = Callable[[], Pillow.Image]


class Unreadable(ValueError):
    """A picture that cannot be opened, with the reason code it is kept aside under."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Rejection:
    """Something kept aside. `where` names file and line within the source, never a path of this machine.

    `record` is the id (of `Sample.record`) under which a person may let it in, empty where there is nothing to decide.
    """

    source: str
    where: str
    reason: str
    detail: str
    record: str = ""


@dataclass(frozen=True)
class HeldBack(Rejection):
    """A rejection that a person may overrule: with the samples the record would give."""

    samples: tuple[Sample, ...] = ()

    def told(self) -> Rejection:
        """The rejection without its samples."""
        return Rejection(self.source, self.where, self.reason, self.detail, self.record)


@dataclass(frozen=True)
class Record:
    """Pictures that belong together with what their source says of them; nothing here is checked yet.

    `linked` are other identifiers that count as this patient: who is forgotten by one of them is forgotten.
    `turns` ask about all `images`, `caption` describes the first, and `instruction` turns the first into `target`.
    Openers decode on demand (and raise Unreadable), so a stream of records never holds more than one record's pictures.
    """

    id: str
    where: str
    images: tuple[Opener, ...]
    modality: object
    source: str
    license: object
    attribution: str
    split: object
    patient: str
    caption: str | None = None
    turns: tuple[Turn, ...] = ()
    instruction: str | None = None
    target: Opener | None = None
    labels: dict = field(default_factory=dict)
    left_out: int = 0
    linked: tuple[str, ...] = ()
