"""The published packing loop: which samples of several weighted groups share a sequence.

Samples go in until the sequence is long enough; one that no longer fits waits in a look-ahead buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True)
class PackingLimits:
    """Token limits of a sequence (the published defaults)."""

    enough: int = 32768  # expected_num_tokens: a sequence this long is handed out
    most: int = 36864  # max_num_tokens: no drawn sample makes a sequence longer
    per_sample: int = 16384  # max_num_tokens_per_sample: longer samples are passed over
    prefer_buffer_before: int = 16384  # shorter sequences are filled from the buffer first
    buffer_size: int = 50


@dataclass(frozen=True)
class Group:
    """A source of samples with its sampling weight; a sample of every mandatory group opens a sequence."""

    samples: Iterator
    weight: float
    mandatory: bool = False


@dataclass
class PackingLoop:
    """An iterator over lists of samples that share a sequence; ends when a group ends.

    Args:
        cost: tokens of a sample, special tokens included.
        draw: uniform numbers in [0, 1), one for each weighted choice of a group.
        reference: lose the sample at hand when the buffer is full, as the published loop does; otherwise it
            opens the next sequence.
    """

    groups: Sequence[Group]
    cost: Callable[[object], int]
    draw: Callable[[], float]
    limits: PackingLimits = PackingLimits()
    reference: bool = False
    buffer: list = field(default_factory=list)
    _held: list = field(default_factory=list)

    def __iter__(self) -> Iterator[list]:
        try:
            while True:
                yield self._next_batch()
        except StopIteration:
            return

    def _next_batch(self) -> list:
        batch, self._held = self._held, []
        batch = batch + [self._short_enough(group) for group in self.groups if group.mandatory]
        length = sum(map(self.cost, batch))
        while True:
            from_buffer = bool(self.buffer) and length < self.limits.prefer_buffer_before
            sample = self.buffer.pop(0) if from_buffer else next(self._choose().samples)
            tokens = self.cost(sample)
            if tokens > self.limits.per_sample:
                continue
            if length + tokens <= self.limits.most:
                batch.append(sample)
                length += tokens
                if length >= self.limits.enough:
                    return batch
            elif len(self.buffer) < self.limits.buffer_size and not from_buffer:
                self.buffer.append(sample)
            else:
                self._held = [] if self.reference else [sample]
                return batch

    def _short_enough(self, group: Group):
        return next(sample for sample in group.samples if self.cost(sample) < self.limits.per_sample)

    def _choose(self) -> Group:
        total = sum(group.weight for group in self.groups)
        bounds = accumulate(group.weight / total for group in self.groups)
        drawn = self.draw()
        return next((group for group, bound in zip(self.groups, bounds) if drawn < bound), self.groups[0])
