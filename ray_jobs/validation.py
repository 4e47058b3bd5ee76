"""How a stage is doing on the way: the loss on a fixed set of validation packs, and a few answers and drawings."""

import io
from contextlib import contextmanager

import torch
from PIL import Image as Pillow
from torch import Tensor

from corpus.reader import ReleaseReader
from corpus.sample import Sample
from model.curriculum import Dropout, StageParams
from model.losses import TokenCounts, count
from model.packing import PackedSequence
from model.unimedvl import UniMedVL
from ray_jobs.benchmarks import Questions, evenly, questions
from ray_jobs.loader import Loader
from ray_jobs.mixture import validated
from ray_jobs.place import Place, from_first
from ray_jobs.plans import Planner
from ray_jobs.step import Stepper

PACKS = 4  # of each stream
QUESTIONS = 48  # of each source
DRAWINGS = 4


class Validation:
    """Scores the averaged weights, which are the ones that ship. The same packs every time, without dropout."""

    def __init__(self, reader: ReleaseReader, model: UniMedVL, stage: StageParams, seed: int, numbers: list[int], streams: int, place: Place, sharded: bool, half: bool = False):
        self.reader, self.model, self.stage, self.place, self.sharded, self.seed = reader, model, stage, place, sharded, seed
        quiet = validated(reader.index, stage).model_copy(update={"dropout": Dropout(text=0, vit=0, vae=0), "shift_pixels": 0})
        loader = Loader(reader, Planner(model, quiet, half=half), quiet, seed, numbers, streams, prefetch=1, split="val")
        try:
            self.packs = [(f"val-{name}-{number}", pack) for number in range(PACKS) for name, pack in next(loader).packs.items()]
        finally:
            loader.close()

    def loss(self, stepper: Stepper) -> dict[str, float]:
        """{"loss", "ce", "mse"} over the tokens of all workers' packs, without what none of these is a target of."""
        sums, counts = torch.zeros(2), TokenCounts()
        with averaged(stepper), torch.no_grad():
            for name, pack in self.packs:
                sums += self._sums(stepper, pack, name)
                counts += count(pack)
        ce, mse, ces, mses = stepper.sum(torch.cat([sums.double(), torch.tensor([counts.ce, counts.mse], dtype=torch.float64)])).tolist()
        means = {name: total / count for name, total, count in (("ce", ce, ces), ("mse", mse, mses)) if count}
        weights = {"ce": self.stage.ce_weight, "mse": self.stage.mse_weight}
        return {"loss": sum(weights[name] * mean for name, mean in means.items())} | means

    def look(self, stepper: Stepper) -> tuple[dict[str, float], bytes | None]:
        """Accuracy by source on a few validation questions, and a sheet of drawings beside the real pictures.

        By the first worker alone; while the network is sharded by all of them, as each of its steps needs all, on what the first has read.
        """
        if not (self.sharded or self.place.first):
            return {}, None
        from ray_jobs.evaluate import quick_scores

        asked, wanted = from_first(self._looked_at() if self.place.first else None, self.place.workers if self.sharded else 1)
        with averaged(stepper), torch.no_grad():
            self.model.eval()
            try:
                return quick_scores(self.model, asked), self._drawings(wanted)
            finally:
                self.model.train()

    def _looked_at(self) -> tuple[Questions, list[Sample]]:
        """What is asked, and what is to be drawn."""
        wanted = evenly(self.reader.select("val", "generation"), DRAWINGS)
        return questions(self.reader, "val", QUESTIONS), [self.reader.load(i) for i in wanted]

    def _sums(self, stepper: Stepper, pack: PackedSequence, name: str) -> Tensor:
        pack = pack.to(self.place.device)
        losses = self.model(pack, stepper.noise_of(pack, f"{self.seed}/{self.stage.name}/{name}").to(self.place.device))
        return torch.stack([losses.ce.sum(), losses.mse.mean(dim=-1).sum()]).cpu()

    def _drawings(self, chosen: list[Sample]) -> bytes | None:
        if not chosen:
            return None
        drawn = self.model.draw_batch([[sample.parts[0].text] for sample in chosen], seeds=list(range(len(chosen))))
        side = self.model.config.image.draw_size
        sheet = Pillow.new("RGB", (side * len(chosen), side * 2), "white")
        for column, (sample, picture) in enumerate(zip(chosen, drawn)):
            sheet.paste(sample.images[0].open().convert("RGB").resize((side, side)), (column * side, 0))
            sheet.paste(picture.convert("RGB"), (column * side, side))
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()


@contextmanager
def averaged(stepper: Stepper):
    """The averaged weights in the parameters' place, and the parameters back afterwards, bit for bit."""
    _swap(stepper)
    try:
        yield
    finally:
        _swap(stepper)


@torch.no_grad()
def _swap(stepper: Stepper) -> None:
    state = stepper.state
    if stepper.sharded:
        # Without a backward pass FSDP keeps what the root has gathered, and the next forward pass would take that for its weights.
        stepper.model.reshard()
    for name, parameter in state.parameters.items():
        held = parameter.detach().clone()
        parameter.copy_(state.ema.average[name])
        state.ema.average[name].copy_(held)
