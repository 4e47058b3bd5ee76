"""The stage before the first: `python -m ray_jobs.bootstrap --inputs bootstrap.json`.

Trains tokenizer and VAE on a release's training split and lays a fresh network around them. Inputs:
`release`, `model`, `bootstrap`, `threads`, `seed`.
"""

import tempfile
from collections import Counter
from pathlib import Path

import torch

from infra.jobs import entrypoint
from model.bootstrap import bootstrap
from model.config import ModelConfig
from model.preprocess import resize, to_tensor
from ray_jobs.benchmarks import evenly
from ray_jobs.checkpoints import publish_folder
from ray_jobs.params import StartParams
from ray_jobs.releases import open_release

MAX_IMAGES = 4000
LOG_EVERY = 50


def run(inputs: dict) -> dict:
    """Publish the starting checkpoint; returns its record and the VAE's loss history."""
    torch.set_num_threads(inputs["threads"])
    torch.use_deterministic_algorithms(True)
    config, params = ModelConfig(**inputs["model"]), StartParams(**inputs["bootstrap"])
    reader = open_release(inputs["release"])
    samples = [reader.load(i) for i, entry in enumerate(reader.index) if entry.split == "train"]
    texts = [part.text for sample in samples for part in sample.parts if part.text]
    pictures = {image.sha256: (image, (sample.source, sample.modality)) for sample in samples for image in sample.images}
    chosen = evenly([pictures[key] for key in sorted(pictures)], MAX_IMAGES)
    square = config.image.draw_size
    pixels = torch.stack([to_tensor(resize(image.open(), config.image.vae).resize((square, square))) for image, _ in chosen])
    weights = _square_root_weights([group for _, group in chosen])
    print(f"{len(texts)} texts, {len(pixels)} pictures", flush=True)
    history: list[dict] = []

    def on_step(step: int, loss: float) -> None:
        if (step + 1) % LOG_EVERY == 0:
            history.append({"step": step + 1, "vae": loss})
            print(f"vae step {step + 1}/{params.vae_steps} loss {loss:.3f}", flush=True)

    model = bootstrap(config, params, texts, pixels, weights, inputs["seed"], on_step)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        record = publish_folder(Path(folder), "bootstrap")
    return {**record, "stage": "bootstrap", "steps": params.vae_steps, "history": history, "scores": {}}


def _square_root_weights(groups: list[tuple[str, str]]) -> torch.Tensor:
    """Weights that let a group count by the square root of its size: a large source does not drown a small one."""
    sizes = Counter(groups)
    return torch.tensor([sizes[group] ** -0.5 for group in groups])


if __name__ == "__main__":
    entrypoint(run)
