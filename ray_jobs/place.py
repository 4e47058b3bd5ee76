"""Where a training worker stands among its fellows, and what they agree on."""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """A worker: its number, its number on its machine, how many there are, and its device."""

    rank: int
    local_rank: int
    workers: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether it is the first of its machine, which does for the others there what one has to do."""
        return self.local_rank == 0


def alone(device: str = "cpu") -> Place:
    """The only worker of a run."""
    return Place(0, 0, 1, torch.device(device))


def gather(value: object, workers: int, group: dist.ProcessGroup | None = None) -> list:
    """Everybody's value, in order of rank."""
    if workers == 1:
        return [value]
    values: list = [None] * workers
    dist.all_gather_object(values, value, group=group)
    return values


def from_first(value: object, workers: int, group: dist.ProcessGroup | None = None) -> object:
    """The first worker's value, for all."""
    if workers == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, group=group)
    return told[0]
