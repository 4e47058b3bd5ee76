"""What a source becomes, without a store: the rows that would be written, and what is kept aside."""

from dataclasses import dataclass

from corpus import index, quality
from corpus.params import CorpusParams, QualityParams
from corpus.record import Rejection
from corpus.sample import Sample
from corpus.settle import settle

SALT = b"salt"


@dataclass
class Taken:
    """The samples of a source and what was kept aside."""

    samples: list[Sample]
    aside: list[Rejection]

    @property
    def reasons(self) -> list[str]:
        return [rejection.reason for rejection in self.aside]


def take_in(reader, source, params: QualityParams = CorpusParams().quality) -> Taken:
    """Read a source and put it through quality control."""
    kept, aside = [], []
    for record in reader.read(source):
        outcome = record if isinstance(record, Rejection) else quality.examine(record, params, SALT)
        aside.append(outcome) if isinstance(outcome, Rejection) else kept.extend(outcome)
    settled = settle(index.read(index.to_bytes([index.row(sample) for sample in kept]), "all"))
    return Taken([sample for sample, stays in zip(kept, settled.kept) if stays], aside + settled.aside)
