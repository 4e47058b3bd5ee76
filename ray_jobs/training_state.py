"""Everything that must survive for the next step to be the one of the undisturbed run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.curriculum import StageParams
from model.optimisation import EMA, make_optimiser, set_trainable
from model.unimedvl import UniMedVL
from ray_jobs.watchdog import Watchdog

AVERAGE = "average/"


@dataclass
class Progress:
    """The small part, as JSON: where the run stands and how it went."""

    step: int = 0
    done: bool = False
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    # Sums since the last line of the history, and how many steps each is of.
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    watchdog: Watchdog = field(default_factory=Watchdog)
    rollbacks: int = 0
    rolled_back_to: int | None = None
    best: float | None = None
    since_best: int = 0
    # Of the last validation.
    scores: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict:
        return vars(self) | {"watchdog": vars(self.watchdog)}

    @classmethod
    def from_json(cls, saved: dict) -> "Progress":
        return cls(**saved | {"watchdog": Watchdog(**saved["watchdog"])})


class TrainingState:
    """Learning parameters, their average, the optimiser's moments, and `progress`. Tensors may be sharded (DTensors)."""

    def __init__(self, model: UniMedVL, stage: StageParams):
        self.parameters: dict[str, nn.Parameter] = set_trainable(model, stage.trainable)
        self.ema = EMA(self.parameters, stage.ema_decay)
        self.optimiser = make_optimiser(self.parameters, stage)
        for parameter in self.parameters.values():
            self.optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.progress = Progress()

    @property
    def step(self) -> int:
        return self.progress.step

    @torch.no_grad()
    def begin_again(self, start: UniMedVL) -> None:
        """The weights that the stage began with; of moments and progress there is nothing yet."""
        for name, parameter in self.parameters.items():
            parameter.copy_(start.get_parameter(name))
            self.ema.average[name].copy_(parameter)
            for moment in self.optimiser.state[parameter].values():
                moment.zero_()
        self.progress = Progress()

    def not_finite(self) -> int:
        """How many of this worker's weights and averages hold what is no finite number."""
        held = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in (*self.parameters.values(), *self.ema.average.values()))
        return sum(not tensor.isfinite().all() for tensor in held)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a name of their own; loading a checkpoint fills them in place."""
        found = {f"weights/{name}": p.detach() for name, p in self.parameters.items()}
        found |= {f"{AVERAGE}{name}": tensor for name, tensor in self.ema.average.items()}
        return found | {f"{key}/{name}": value for name, p in self.parameters.items() for key, value in self.optimiser.state[p].items()}
