"""The order of samples: a function of release, seed, stream and position alone.

A stage reads `streams` logical streams, one pack of each a step. Workers share the streams out among
themselves, so the order of samples never depends on how many workers there are. A stream's whole
state is two small values, saved with every checkpoint.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from corpus.reader import ReleaseReader
from model.curriculum import StageParams
from model.packing import Item, PackedSequence, item_cost, pack
from ray_jobs.plans import Planner


class Stream:
    """One endless, restartable stream of packs."""

    def __init__(self, reader: ReleaseReader, planner: Planner, stage: StageParams, seed: int, number: int):
        self.reader, self.planner, self.stage = reader, planner, stage
        self.name = str(number)
        self.key = f"{seed}/{stage.name}/{number}"
        self.groups = _group(reader.index)
        self.tasks, self.weights = _mixture(stage, self.groups)
        self.position, self.drawn = 0, Counter()
        self._orders: dict[tuple[str, int], list[int]] = {}

    def next_pack(self) -> PackedSequence:
        """Samples in order until the next one would overrun the token budget; that one opens the next pack."""
        samples, tokens = [], 0
        while True:
            state = self.position, self.drawn.copy()
            items = self._next_sample()
            cost = sum(item_cost(item, self.planner.config) for item in items)
            if samples and tokens + cost > self.stage.tokens_per_pack:
                self.position, self.drawn = state
                return pack(samples, self.planner.config)
            samples.append(items)
            tokens += cost

    def state_dict(self) -> dict:
        return {"position": self.position, "drawn": dict(self.drawn)}

    def load_state_dict(self, state: dict) -> None:
        self.position, self.drawn = state["position"], Counter(state["drawn"])

    def _next_sample(self) -> list[Item]:
        rng = random.Random(f"{self.key}/{self.position}")
        task = rng.choices(self.tasks, self.weights)[0]
        sources = self.groups[task]
        # Less than in proportion: a large source counts for more than a small one, but does not drown it.
        source = rng.choices(list(sources), [len(rows) ** 0.75 for rows in sources.values()])[0]
        row = self._in_order(f"{task}/{source}", sources[source])
        self.position += 1
        return self.planner.plan(self.reader.load(row), rng)

    def _in_order(self, group: str, rows: Sequence[int]) -> int:
        """The next row of a group: every pass visits each row once, in an order of its own."""
        epoch, place = divmod(self.drawn[group], len(rows))
        self.drawn[group] += 1
        if (group, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != group}
            self._orders[group, epoch] = random.Random(f"{self.key}/{group}/{epoch}").sample(rows, len(rows))
        return self._orders[group, epoch][place]


def _group(index) -> dict[str, dict[str, list[int]]]:
    """Row numbers of the training split by task and source, in release order."""
    groups: dict = defaultdict(lambda: defaultdict(list))
    for row, entry in enumerate(index):
        if entry.split == "train":
            groups[entry.task][entry.source].append(row)
    return {task: {source: rows for source, rows in sorted(sources.items())} for task, sources in groups.items()}


def _mixture(stage: StageParams, groups: dict) -> tuple[list[str], list[float]]:
    tasks = [task for task, weight in stage.mixture.items() if weight > 0 and task in groups]
    if not tasks:
        raise ValueError(f"stage {stage.name!r}: the release has no training sample of {sorted(stage.mixture)}; it has {sorted(groups)}")
    return tasks, [stage.mixture[task] for task in tasks]
