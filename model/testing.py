"""A complete `tiny` checkpoint folder with random weights: for tests and for trying the machinery."""

from pathlib import Path

import torch

from model.config import ModelConfig
from model.tokenizer import TextTokenizer

SENTENCES = ("Which imaging modality is this?", "Is this an image of the chest?", "CT image of the abdomen.", "yes", "no")


def make_tiny(folder: str | Path, seed: int = 0, config: ModelConfig | None = None) -> Path:
    """Write a loadable checkpoint; the same seed gives the same bytes."""
    from model.unimedvl import UniMedVL

    config = config or ModelConfig()
    generator = torch.Generator().manual_seed(seed)
    # Layers draw their biases from the global generator when they are made.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UniMedVL(config)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.vae.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    model.tokenizer = TextTokenizer.train(SENTENCES, config.llm.vocab_size)
    model.save_pretrained(folder)
    return Path(folder)
