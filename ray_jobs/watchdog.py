"""Accidents in training: a loss or gradient that is no number, or a loss far above those before it."""

from dataclasses import dataclass, field
from math import isfinite
from statistics import median

from model.curriculum import AnomalyParams


@dataclass
class Watchdog:
    """Losses of the last good steps, and bad steps in a row. Every worker sees the same numbers, so all judge alike."""

    losses: list[float] = field(default_factory=list)
    bad: int = 0
    skipped: int = 0

    def is_good(self, loss: float, norm: float, params: AnomalyParams) -> bool:
        """Whether the step may change the weights."""
        good = isfinite(loss) and isfinite(norm) and not self._spikes(loss, params)
        if good:
            self.losses = [*self.losses, loss][-params.window :]
            self.bad = 0
        else:
            self.bad += 1
            self.skipped += 1
        return good

    def gives_up(self, params: AnomalyParams) -> bool:
        """Whether too many steps in a row were bad."""
        return self.bad > params.max_skips

    def _spikes(self, loss: float, params: AnomalyParams) -> bool:
        return len(self.losses) == params.window and loss > params.spike * median(self.losses)
