"""Accidents in training: a loss or gradient that is no number, or a loss far above those before it."""

from dataclasses import dataclass, field
from math import isfinite
from statistics import median

from model.curriculum import AnomalyParams


@dataclass
class Watchdog:
    """Losses of the last good steps, by kind, and bad steps in a row. Every worker sees the same numbers, so all judge alike."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    bad: int = 0
    skipped: int = 0

    def is_good(self, losses: dict[str, float], norm: float, params: AnomalyParams) -> bool:
        """Whether the step may change the weights.

        Args:
            losses: the mean of each kind that the step had targets of. They are judged apart: where drawings are rare,
                steps without one are no measure of a step with one.
        """
        good = isfinite(norm) and all(isfinite(loss) and not self._spikes(kind, loss, params) for kind, loss in losses.items())
        if good:
            self.losses |= {kind: [*self.losses.get(kind, []), loss][-params.window :] for kind, loss in losses.items()}
            self.bad = 0
        else:
            self.bad += 1
            self.skipped += 1
        return good

    def gives_up(self, params: AnomalyParams) -> bool:
        """Whether too many steps in a row were bad."""
        return self.bad > params.max_skips

    def _spikes(self, kind: str, loss: float, params: AnomalyParams) -> bool:
        before = self.losses.get(kind, [])
        return len(before) == params.window and loss > params.spike * median(before)
