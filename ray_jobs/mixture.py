"""What a stage draws from: tasks by its mixture, within them modalities, old and new data, and sources."""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from corpus.reader import Index
from model.curriculum import StageParams
from ray_jobs.order import Passes

ALL, KNOWN, NEW = "all", "known", "new"


class MixtureError(ValueError):
    """The release has nothing of what a stage draws, or nothing that can be used; the message names the stage, what it asks for and what there is."""


@dataclass(frozen=True)
class Choice:
    """Something to choose among by weight, each entry either a name of a group or another choice."""

    weights: tuple[float, ...]
    of: tuple

    def draw(self, rng: random.Random) -> str:
        chosen = rng.choices(self.of, self.weights)[0]
        return chosen.draw(rng) if isinstance(chosen, Choice) else chosen


class Mixture:
    """The groups of a stage, and which of them a draw comes from.

    `absent` says which tasks of the mixture the release has nothing of, and what becomes of their shares, and of which it has
    nothing old or nothing new to replay; empty where it has all. `known` tells of each sample whether it is old.

    Raises:
        MixtureError: the release has nothing of what the stage asks for.
    """

    def __init__(self, index: Index, stage: StageParams, key: str, streams: int, split: str, known: np.ndarray | None):
        self.index, self.key, self.streams, self.split = index, key, streams, split
        self.groups: dict[str, Passes] = {}
        self._known = None if stage.replay is None else known
        # What is all old, or all new.
        self._of_one_age: dict[str, list[str]] = {KNOWN: [], NEW: []}
        tasks = {task: index.where(split=split, task=task) for task, weight in stage.shares.items() if weight > 0}
        found = {task: rows for task, rows in tasks.items() if len(rows)}
        if not found:
            raise MixtureError(f"stage {stage.name!r}: the release has no {split} sample of {sorted(tasks)}; it has {index.values('task', np.arange(len(index)))}")
        self._choice = Choice(tuple(stage.shares[task] for task in found), tuple(self._by_modality(task, rows, stage) for task, rows in found.items()))
        self.absent = "; ".join(filter(None, (_absent(stage, split, tasks.keys() - found.keys(), sorted(found)), self._unmixed(stage))))

    def draw(self, rng: random.Random) -> str:
        """The name of a group."""
        return self._choice.draw(rng)

    def _by_modality(self, task: str, rows: np.ndarray, stage: StageParams) -> Choice:
        weights = stage.modalities.get(task)
        if not weights:
            return self._by_age(task, rows, stage)
        present = self.index.values("modality", rows)
        missing = [modality for modality, weight in weights.items() if weight > 0 and modality not in present]
        if missing:
            raise MixtureError(f"stage {stage.name!r}: modalities.{task} names {', '.join(missing)}, of which the release has no {self.split} sample; it has {', '.join(present)}")
        words, codes = self.index.words["modality"], self.index.codes["modality"][rows]
        named = [(modality, weight) for modality, weight in weights.items() if weight > 0]
        return Choice(tuple(weight for _, weight in named), tuple(self._by_age(f"{task}/{modality}", rows[codes == words.index(modality)], stage) for modality, _ in named))

    def _by_age(self, name: str, rows: np.ndarray, stage: StageParams) -> Choice:
        """Old against new data, where the stage replays; all of it where there is only one kind."""
        if self._known is None:
            return self._by_source(f"{name}/{ALL}", rows)
        old, new = rows[self._known[rows]], rows[~self._known[rows]]
        if not len(old) or not len(new):
            age = KNOWN if len(old) else NEW
            self._of_one_age[age].append(name)
            return self._by_source(f"{name}/{age}", rows)
        return Choice((stage.replay, 1 - stage.replay), (self._by_source(f"{name}/{KNOWN}", old), self._by_source(f"{name}/{NEW}", new)))

    def _by_source(self, name: str, rows: np.ndarray) -> Choice:
        """Less than in proportion: a large source counts for more than a small one, but does not drown it."""
        codes, words = self.index.codes["source"][rows], self.index.words["source"]
        names, weights = [], []
        for source in self.index.values("source", rows):
            of = rows[codes == words.index(source)]
            group = f"{name}/{source}"
            self.groups[group] = Passes(of, self.index.shard[of], f"{self.key}/{group}", self.streams)
            names.append(group)
            weights.append(len(of) ** 0.75)
        return Choice(tuple(weights), tuple(names))

    def _unmixed(self, stage: StageParams) -> str:
        """Where replay mixes nothing, so that the share of old samples is not the stage's."""
        told = [f"of its {self.split} samples of {', '.join(names)} all are {'old' if age == KNOWN else 'new'}" for age, names in self._of_one_age.items() if names]
        return f"{' and '.join(told)}, so replay={stage.replay:g} has nothing to mix there" if told else ""


def validated(index: Index, stage: StageParams) -> StageParams:
    """The stage as it draws from the validation split: of old and new alike, and of those modalities that are there, as all of a rare one's patients may be in training."""
    held = {}
    for task, weights in stage.modalities.items():
        present = index.values("modality", index.where(split="val", task=task))
        held[task] = {modality: weight for modality, weight in weights.items() if weight > 0 and modality in present}
    return stage.model_copy(update={"replay": None, "modalities": {task: weights for task, weights in held.items() if weights}})


def refuse_early(index: Index, stages: Sequence[StageParams]) -> None:
    """See before the first stage is trained that the release has what each of them draws from.

    Raises:
        MixtureError: it has nothing of what a stage asks for, or of what it is validated on.
    """
    for stage in stages:
        Mixture(index, stage, stage.name, 1, "train", None)
        if stage.evaluate_every:
            Mixture(index, validated(index, stage), stage.name, 1, "val", None)


def _absent(stage: StageParams, split: str, tasks: Set[str], others: Sequence[str]) -> str:
    if not tasks:
        return ""
    named = ", ".join(f"{task} ({stage.shares[task]:.1%} of the mixture)" for task in sorted(tasks))
    return f"the release has no {split} sample of {named}; {', '.join(others)} take its part in proportion"
