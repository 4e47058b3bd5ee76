"""The order of samples: a function of release, seed, stage, stream and position alone.

A stage reads `streams` logical streams, one pack of each a step. Workers share the streams out among
themselves, so the order of samples never depends on how many workers there are. Packs are made ahead in a
thread; a stream's whole state is a few small values, saved with every checkpoint.
"""

import copy
import os
import queue
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from corpus.reader import ReleaseReader
from corpus.sample import Sample
from model.curriculum import StageParams
from model.packing import Item, PackedSequence, item_cost, pack
from ray_jobs.mixture import Mixture, MixtureError
from ray_jobs.plans import Planner

# A shard is asked for so many draws of its group before it is needed, a pass at most.
AHEAD = 256
# Samples that a stream reads at a time: one by one, between pictures that are decoded, each takes twice as long.
AT_ONCE = 16
# Samples in a row that may be unusable before the stage is told to have none.
MOST_SKIPPED = 1000
# A thread that still waits for a silent store when the loader is closed is left to itself after so long.
CLOSE_S = 5.0
# The thread's priority, beside the trainer's 0; the longest that it keeps the interpreter while others wait for it.
NICE, SWITCH_S = 10, 0.0005


@dataclass(frozen=True)
class Drawn:
    """Restore key of a sample in a pack: `position` counts the draws of its stream."""

    stream: str
    position: int
    sample: str


@dataclass(frozen=True)
class Batch:
    """What a worker trains on in one step.

    `packs` by stream name; `states` of these streams after this batch, whatever was made beyond it; `skipped`
    {stream, position, sample, reason} of samples that were met and cannot be used; `tokens` really in the packs,
    out of a `capacity`.
    """

    packs: dict[str, PackedSequence]
    drawn: list[Drawn]
    states: dict[str, dict]
    skipped: list[dict]
    tokens: int
    capacity: int


@dataclass(eq=False)
class _Waiting:
    """A drawn sample that waits for a pack with room; everything but its key is planned again after a restart.

    `tokens` are those it takes in a pack: dropped conditions take none.
    """

    position: int
    row: int
    items: list[Item]
    tokens: int


@dataclass
class StreamState:
    """All that a stream must remember: draws so far, of each group, and the samples that wait as (position, row)."""

    position: int = 0
    drawn: Counter = field(default_factory=Counter)
    waiting: list[tuple[int, int]] = field(default_factory=list)

    def to_json(self) -> dict:
        return {"position": self.position, "drawn": dict(self.drawn), "waiting": [list(key) for key in self.waiting]}

    @classmethod
    def from_json(cls, saved: dict) -> "StreamState":
        return cls(saved["position"], Counter(saved["drawn"]), [tuple(key) for key in saved["waiting"]])


class Stream:
    """One endless, restartable stream of packs."""

    def __init__(self, reader: ReleaseReader, planner: Planner, stage: StageParams, mixture: Mixture, number: int):
        self.reader, self.planner, self.stage, self.mixture, self.number = reader, planner, stage, mixture, number
        self.name = str(number)
        self.key = f"{mixture.key}/{number}"
        self.most = min(stage.tokens_per_pack, stage.tokens_per_sample or stage.tokens_per_pack)
        self.position, self.drawn = 0, Counter()
        # Read and not drawn yet: group, row and sample of each.
        self._read: deque[tuple[str, int, Sample]] = deque()
        self.waiting: list[_Waiting] = []
        self.skipped: list[dict] = []

    def next_pack(self) -> tuple[PackedSequence, list[Drawn]]:
        """The longest-waiting sample, then each time the largest that still fits, until none does of as many as may wait."""
        self._look_ahead()
        chosen = [self.waiting.pop(0)]
        room = self.stage.tokens_per_pack - chosen[0].tokens
        while True:
            self._look_ahead()
            fits = [sample for sample in self.waiting if sample.tokens <= room]
            if not fits:
                break
            best = max(fits, key=lambda sample: sample.tokens)
            self.waiting.remove(best)
            chosen.append(best)
            room -= best.tokens
        drawn = [Drawn(self.name, sample.position, self.reader.index.id(sample.row)) for sample in chosen]
        return pack([sample.items for sample in chosen], self.planner.config), drawn

    def state(self) -> StreamState:
        return StreamState(self.position, self.drawn.copy(), [(sample.position, sample.row) for sample in self.waiting])

    def restore(self, state: StreamState) -> None:
        self.position, self.drawn = state.position, state.drawn.copy()
        self.waiting = [sample for position, row in state.waiting if (sample := self._planned(position, row, self.reader.load(row)))]

    def _look_ahead(self) -> None:
        skipped = 0
        while len(self.waiting) < max(1, self.stage.lookahead):
            if sample := self._planned(*self._draw()):
                self.waiting.append(sample)
                skipped = 0
            elif (skipped := skipped + 1) == MOST_SKIPPED:
                raise MixtureError(f"stage {self.stage.name!r}: {skipped} samples in a row cannot be used, the last for {self.skipped[-1]['reason']!r}")

    def _draw(self) -> tuple[int, int, Sample]:
        """The next position, row and sample."""
        if not self._read:
            self._read.extend((group, row, self.reader.load(row)) for group, row in self._next_rows())
        group, row, sample = self._read.popleft()
        self.drawn[group] += 1
        self.position += 1
        return self.position - 1, row, sample

    def _next_rows(self) -> list[tuple[str, int]]:
        """Group and row of the next draws."""
        drawn, found = self.drawn.copy(), []
        for position in range(self.position, self.position + AT_ONCE):
            group = self.mixture.draw(random.Random(f"{self.key}/{position}/group"))
            passes = self.mixture.groups[group]
            self.reader.fetch_ahead(passes.at(self.number, drawn[group] + min(AHEAD, len(passes) // passes.streams)))
            found.append((group, passes.at(self.number, drawn[group])))
            drawn[group] += 1
        return found

    def _planned(self, position: int, row: int, sample: Sample) -> _Waiting | None:
        """The sample's items, the same whenever they are planned; None for one that cannot be used, which is noted."""
        try:
            items = self.planner.plan(sample, random.Random(f"{self.key}/{position}"))
            costs = [item_cost(item, self.planner.config) for item in items]
        except (RuntimeError, MemoryError):
            # The machine's trouble, not the sample's: no memory, a failed device.
            raise
        except Exception as error:
            # Whatever a decoder stumbles over; its words may hold what the file says.
            return self._skip(position, row, f"cannot be planned ({type(error).__name__})")
        if sum(costs) > self.most:
            return self._skip(position, row, f"{sum(costs)} tokens; a sample may have {self.most}")
        return _Waiting(position, row, items, sum(cost for item, cost in zip(items, costs) if not item.dropped))

    def _skip(self, position: int, row: int, reason: str) -> None:
        self.skipped.append({"stream": self.name, "position": position, "sample": self.reader.index.id(row), "reason": reason})


class Loader:
    """Batches of a worker's streams, made ahead in a thread. `absent` says what of the mixture the release has not.

    Args:
        numbers: this worker's logical streams, out of `streams`.
        prefetch: batches that are made ahead.
        known: which samples the stage's start has learned from, bool, for replay.
    """

    def __init__(self, reader: ReleaseReader, planner: Planner, stage: StageParams, seed: int, numbers: Sequence[int], streams: int, prefetch: int = 2, known: np.ndarray | None = None, split: str = "train"):
        mixture = Mixture(reader.index, stage, f"{seed}/{stage.name}", streams, split, known)
        self.stage, self.prefetch, self.absent = stage, prefetch, mixture.absent
        self._begin_streams = lambda: [Stream(reader, planner, stage, mixture, number) for number in numbers]
        self._streams = self._begin_streams()
        self._handed_out = _states(self._streams)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """Raises what stopped the thread: LostShard for one that vanished, StoreUnavailable for a silent store."""
        if self._failed:
            # The streams stopped half-way through a batch: only a state can be gone on from.
            raise self._failed
        if self._thread is None:
            self._begin()
        made = self._queue.get()
        if isinstance(made, BaseException):
            self._thread, self._failed = None, made
            raise made
        self._handed_out = made.states
        return made

    def state_dict(self) -> dict[str, dict]:
        """State of the streams after the last batch handed out."""
        return copy.deepcopy(self._handed_out)

    def load_state_dict(self, states: dict[str, dict]) -> None:
        """Go on from a state; states of other workers' streams are passed over."""
        self.close()
        # New ones: the thread that was closed may still be at work on its own.
        self._failed, self._streams = None, self._begin_streams()
        for stream in self._streams:
            stream.restore(StreamState.from_json(states[stream.name]))
        self._handed_out = _states(self._streams)

    def close(self) -> None:
        """End the thread. What it made ahead is forgotten: `load_state_dict` alone makes the loader useful again."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join(CLOSE_S)
            self._thread = None

    def _begin(self) -> None:
        self._queue: queue.Queue = queue.Queue(self.prefetch)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(torch.get_num_threads(), self._queue, self._ending), daemon=True, name="loader")
        self._thread.start()

    def _make(self, threads: int, made: queue.Queue, ending: threading.Event) -> None:
        # Every thread starts with as many as there are cores.
        torch.set_num_threads(threads)
        _give_way()
        streams = self._streams
        while not ending.is_set():
            try:
                _hand_over(self._batch(streams), made, ending)
            except BaseException as error:
                _hand_over(error, made, ending)
                return

    def _batch(self, streams: list[Stream]) -> Batch:
        packs, drawn, skipped = {}, [], []
        for stream in streams:
            packs[stream.name], keys = stream.next_pack()
            drawn += keys
            skipped, stream.skipped = skipped + stream.skipped, []
        tokens = sum(made.length for made in packs.values())
        return Batch(packs, drawn, _states(streams), skipped, tokens, self.stage.tokens_per_pack * len(packs))


def _give_way() -> None:
    """Leave the core and the interpreter to whoever trains: this thread is ahead of it anyway."""
    if sys.platform == "linux":  # where each thread has a priority of its own, and those that it starts inherit it
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    sys.setswitchinterval(SWITCH_S)


def _states(streams: list[Stream]) -> dict[str, dict]:
    return {stream.name: stream.state().to_json() for stream in streams}


def _hand_over(batch: object, made: queue.Queue, ending: threading.Event) -> None:
    while not ending.is_set():
        try:
            made.put(batch, timeout=0.1)
            return
        except queue.Full:
            continue
