"""A stage's checkpoint: weights, average, optimiser moments, stream positions and loss history."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from model.optimisation import EMA, optimiser_tensors, restore_optimiser
from model.unimedvl import UniMedVL
from ray_jobs.loader import Stream

STATE, WEIGHTS, AVERAGE, OPTIMISER = "state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"


class TrainingState:
    """Everything that must survive for the next step to be the one of the undisturbed run."""

    def __init__(self, parameters: dict[str, nn.Parameter], ema: EMA, optimiser):
        self.parameters, self.ema, self.optimiser = parameters, ema, optimiser
        self.step = 0
        self.history: list[dict] = []

    def save(self, folder: Path, positions: dict[str, dict]) -> None:
        save_file({name: p.detach() for name, p in self.parameters.items()}, folder / WEIGHTS)
        save_file(self.ema.average, folder / AVERAGE)
        save_file(optimiser_tensors(self.optimiser, self.parameters), folder / OPTIMISER)
        state = {"step": self.step, "streams": positions, "history": self.history}
        (folder / STATE).write_text(json.dumps(state))

    def load(self, folder: Path, streams: list[Stream]) -> None:
        state = json.loads((folder / STATE).read_text())
        weights, average = load_file(folder / WEIGHTS), load_file(folder / AVERAGE)
        for name, parameter in self.parameters.items():
            parameter.data.copy_(weights[name])
            self.ema.average[name].copy_(average[name])
        restore_optimiser(self.optimiser, self.parameters, load_file(folder / OPTIMISER))
        for stream in streams:
            stream.load_state_dict(state["streams"][stream.name])
        self.step, self.history = state["step"], state["history"]


def load_average(model: UniMedVL, folder: Path) -> list[dict]:
    """Give a model the averaged weights of a stage's checkpoint; returns the stage's loss history."""
    for name, tensor in load_file(folder / AVERAGE).items():
        model.get_parameter(name).data.copy_(tensor)
    return json.loads((folder / STATE).read_text())["history"]
